import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dvq_jax import placement, stream
from dvq_jax.data import gather
from dvq_jax.prepare import prepare
from dvq_jax.types import Batch
from tests.conftest import write_collection
from tests.runs import arrays, difference, finish, start, start_two

IDS = np.array([[0, 5, 6, 29, 30, -1], [0, 8, 15, 16, 30, -1]], np.int32)  # [devices, m]


def make_corpus(kind=np.float16):
    return np.random.default_rng(0).normal(size=(31, 4)).astype(kind)


@pytest.mark.parametrize('size', [16, 20])
def test_documents_come_from_the_device_that_has_them(size):
    corpus = make_corpus()
    rows = np.zeros((2, size, 4), np.float16)
    rows.reshape(-1, 4)[:31] = corpus
    fetch = jax.vmap(functools.partial(placement.fetch, axis='devices'), axis_name='devices')
    np.testing.assert_array_equal(fetch(rows, IDS), gather(corpus, IDS))


@pytest.mark.parametrize('where', ['replicated', 'sharded'])
@pytest.mark.parametrize('block', [8, 64])
def test_a_placed_corpus_brings_what_gather_does(where, block, monkeypatch):
    monkeypatch.setattr(placement, 'BLOCK', block)
    corpus, ids = make_corpus(), IDS.reshape(1, 12)
    placed = placement.place(where, corpus)
    batch = Batch(queries=None, doc_ids=ids, docs=None, lists=None, positives=None)
    np.testing.assert_array_equal(placed.bring(batch).docs, gather(corpus, ids))
    assert placed.rows.dtype == np.float16


def test_float32_is_held_as_bfloat16():
    corpus = make_corpus(np.float32)
    placed = placement.place('replicated', corpus)
    np.testing.assert_array_equal(placed.rows[0], np.asarray(corpus, jnp.bfloat16))


class Device:
    def __init__(self, limit):
        self._limit = limit

    def memory_stats(self):
        return None if self._limit is None else {'bytes_limit': self._limit + 7, 'bytes_in_use': 7}


@pytest.mark.parametrize(
    ('limit', 'expected'),
    [(None, 'host'), (1000 + 496, 'replicated'), (1000 + 495, 'sharded'), (1123, 'host')],
)
def test_auto_goes_by_size(limit, expected, monkeypatch):
    """248 bytes on each of 4 devices, or 62; half of what a step leaves is for them."""
    monkeypatch.setattr(jax, 'local_devices', lambda: 2 * [Device(limit)])
    monkeypatch.setattr(jax, 'device_count', lambda: 4)
    assert placement.choose('auto', make_corpus(), step_bytes=1000) == expected
    assert placement.choose('sharded', make_corpus(), step_bytes=1000) == 'sharded'
    assert stream.room(jax.local_devices()) == (limit or 0) / 2


def test_the_host_holds_its_own():
    assert placement.place('host', make_corpus()) is None


@pytest.fixture(scope='module')
def half_precision(tmp_path_factory):
    """A dataset whose corpus is float16, as devices hold it."""
    folder = tmp_path_factory.mktemp('half')
    paths = write_collection(folder)
    np.save(folder / 'docs.npy', np.load(folder / 'docs.npy').astype(np.float16))
    prepare(**paths, topk=50, dev_queries=60, out=folder / 'dataset')
    return {'dataset': str(folder / 'dataset')}


def test_where_the_corpus_is_changes_nothing(half_precision, tmp_path):
    """On the host, on a device, cut over four of them, and over those of two processes."""
    finish(start(half_precision, tmp_path / 'host'))
    finish(start(half_precision, tmp_path / 'replicated', **{'data.placement': 'replicated'}))
    finish(start(half_precision, tmp_path / 'sharded', devices=4, **{'data.placement': 'sharded'}))
    for process in start_two(half_precision, tmp_path / 'two', **{'data.placement': 'sharded'}):
        finish(process)
    assert difference(arrays(tmp_path / 'replicated'), arrays(tmp_path / 'host')) == 0
    assert difference(arrays(tmp_path / 'sharded'), arrays(tmp_path / 'host')) < 1e-4
    assert difference(arrays(tmp_path / 'two'), arrays(tmp_path / 'host')) < 1e-4
