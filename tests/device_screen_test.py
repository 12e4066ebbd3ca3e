"""What a device chooses by rounded products: the best, or what it says of those that it has dropped."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dvq_jax import device_screen, screened, stream
from dvq_jax.progress import Progress

DIM = 16


def vectors(seed, rows):
    return np.random.default_rng(seed).normal(size=(rows, DIM)).astype(np.float32)


def chosen(corpus, queries, wide, *, largest, k=10, query_block=64):
    some = stream.Stream(corpus, jax.local_devices(), largest=largest)
    middle = screened._mean(corpus)
    search = device_screen.search(some, k, wide, middle=middle, query_block=query_block)
    found = search(queries, Progress('mine', total=None, unit='scores', every=float('inf')))
    rows = (np.asarray(x).reshape(-1, *x.shape[2:])[: len(queries)] for x in found)
    return device_screen.Chosen(*rows), middle


@pytest.mark.parametrize('largest', [3000, 400, 90])  # one block, some, and so many that they are cut often
@pytest.mark.parametrize('fewest', [3, 500])  # a block drops some, or none
@pytest.mark.parametrize('order', ['any', 'best last', 'best first'])
def test_what_is_dropped_is_no_better_than_it_says(largest, fewest, order, monkeypatch):
    monkeypatch.setattr(device_screen, '_FEWEST', fewest)
    monkeypatch.setattr(device_screen, '_PLACES', 4)
    monkeypatch.setattr(device_screen, '_TILE', 16)
    corpus, queries, wide = vectors(1, 2010), vectors(2, 40), 50
    if order != 'any':
        ranks = np.argsort(corpus @ queries[0])
        corpus = corpus[ranks if order == 'best last' else ranks[::-1]]
    found, middle = chosen(corpus, queries, wide, largest=largest)
    true = queries.astype(np.float64) @ (corpus - middle).T.astype(np.float64)
    own = np.take_along_axis(true, found.ids, axis=1)
    assert all(len(set(ids)) == wide for ids in found.ids)
    assert np.all(np.diff(found.products, axis=1) <= 0)
    assert np.all(np.abs(own - found.products)[:, 9:] <= found.error[:, None])
    np.put_along_axis(true, found.ids, -np.inf, axis=1)
    assert np.all(true.max(axis=1) <= found.dropped + found.error)
    np.testing.assert_array_equal(found.queries, queries)


def test_all_documents_may_be_wanted():
    corpus, queries = vectors(1, 130), vectors(2, 3)
    found, _ = chosen(corpus, queries, 130, largest=50)
    np.testing.assert_array_equal(np.sort(found.ids, axis=1), np.tile(np.arange(130), (3, 1)))
    assert np.all(found.dropped == -np.inf) and np.all(np.isfinite(found.error))


def test_products_are_written_in_bfloat16():
    found, _ = chosen(vectors(1, 500), vectors(2, 3), 20, largest=500)
    np.testing.assert_array_equal(found.products, found.products.astype(jnp.bfloat16).astype(np.float32))


def test_the_bound_is_of_all_blocks():
    corpus, queries = vectors(1, 2010), vectors(2, 40)
    corpus[:100] *= 30  # of the first block alone
    found, middle = chosen(corpus, queries, 50, largest=400)
    true = queries.astype(np.float64) @ (corpus - middle).T.astype(np.float64)
    own = np.take_along_axis(true, found.ids, axis=1)
    assert np.all(np.abs(own - found.products)[:, 9:] <= found.error[:, None])


@pytest.mark.parametrize('documents', [1000, 86_039, 1_032_468, 8_841_823])
@pytest.mark.parametrize('wide', [30, 600, 3000])
def test_a_block_is_so_large_that_a_query_keeps_few_of_it(documents, wide):
    largest = device_screen.largest_block(documents, wide, 131_072)
    blocks = -(-documents // stream.width_of(documents, largest))
    assert largest <= 2 * 131_072
    assert 2 * -(-wide // blocks) <= 128 or largest == 8192
    smaller = blocks > 1 and largest not in (8192, 2 * 131_072)
    assert not smaller or 2 * -(-wide // (blocks - 1)) > 128  # than need be


def test_a_block_is_counted_when_it_is_done_but_for_the_last_two(monkeypatch):
    corpus, queries = vectors(1, 2010), vectors(2, 40)
    some = stream.Stream(corpus, jax.local_devices(), largest=400)
    search = device_screen.search(some, 10, 50, middle=screened._mean(corpus), query_block=64)
    waited, ready = [], jax.block_until_ready
    monkeypatch.setattr(jax, 'block_until_ready', lambda x: waited.append(float(ready(x).max())) or x)
    counted = []
    told = Progress('mine', total=None, unit='scores', every=float('inf'))
    monkeypatch.setattr(told, 'add', lambda scores: counted.append((scores, len(waited))))
    search(queries, told)
    done = [number for _, number in counted]
    assert done == [*range(1, some.blocks - 1), some.blocks - 2, some.blocks - 2]
    assert sum(scores for scores, _ in counted) == 40 * 2010
    products = (queries @ (corpus - screened._mean(corpus)).T)[:, : some.width * (some.blocks - 2)]
    best = products.reshape(40, -1, some.width).max(axis=(0, 2))
    np.testing.assert_allclose(waited, best, rtol=0.02)  # it waits for the block itself


def test_several_devices_share_the_queries():
    """The tests above, in a process that has three."""
    environment = {**os.environ, 'XLA_FLAGS': '--xla_force_host_platform_device_count=3'}
    these = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-k', 'not several', __file__]
    done = subprocess.run(these, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:]
