import threading
from concurrent import futures

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from dvq_jax import corpus, host, quantizer
from tests.quantizer_test import random_docs, random_index


@pytest.mark.parametrize('by', ['host', 'devices'])
@pytest.mark.parametrize('count', [1, 1500, corpus.BLOCK + 3])
def test_blocks_equal_the_whole(count, by, monkeypatch):
    monkeypatch.setattr(host, 'is_all_there_is', lambda: by == 'host')
    index, docs = random_index(), random_docs(1, count).astype(np.float16)
    lists = corpus.assign_corpus(index, docs)
    np.testing.assert_array_equal(lists, quantizer.assign(index, docs))
    np.testing.assert_array_equal(
        corpus.assign_corpus(index, docs, lists), quantizer.assign(index, docs, lists)
    )


def test_a_second_list_is_the_second_nearest():
    index, docs = random_index(), random_docs(1)
    gaps = ((docs @ np.asarray(index.rotation))[:, None] - np.asarray(index.centroids)) ** 2
    nearest = np.argsort(gaps.sum(axis=-1), axis=1)
    np.testing.assert_array_equal(quantizer.assign(index, docs, nearest[:, 0]), nearest[:, 1])


def in_processes(monkeypatch, count, function):
    """What a function returns in each of so many processes, played by threads."""
    this, barrier, gathered = threading.local(), threading.Barrier(count), [None] * count

    def all_gather(array):
        assert array.dtype.itemsize <= 4  # JAX would cut others
        gathered[this.number] = array
        barrier.wait()
        found = np.stack(gathered)
        barrier.wait()
        return found

    def run(number):
        this.number = number
        return function()

    monkeypatch.setattr(jax, 'process_count', lambda: count)
    monkeypatch.setattr(jax, 'process_index', lambda: this.number)
    monkeypatch.setattr(multihost_utils, 'process_allgather', all_gather)
    with futures.ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


@pytest.mark.parametrize('processes', [1, 2, 3, 4])
@pytest.mark.parametrize('count', [1, 5, 12])
def test_processes_share_rows_and_join_what_they_made(count, processes, monkeypatch):
    rows = np.arange(2 * count, dtype=np.int32).reshape(count, 2)

    def share():
        own = corpus.own_rows(count)
        assert own.stop - own.start <= -(-count // processes)
        return corpus.joined(rows[own], count)

    for found in in_processes(monkeypatch, processes, share):
        np.testing.assert_array_equal(found, rows)


@pytest.mark.parametrize('processes', [1, 3])
def test_totals_are_float64_of_all_processes(processes, monkeypatch):
    monkeypatch.setattr(corpus, '_TOTALLED', 6)  # numbers exchanged at once: four times here
    whole = np.random.default_rng(0).normal(size=(processes, 7, 3))

    def add():
        return corpus.total(whole[jax.process_index()])

    for found in in_processes(monkeypatch, processes, add):
        np.testing.assert_allclose(found, whole.sum(axis=0), rtol=1e-15)


def test_over_rows_is_the_function_of_all_rows_and_makes_the_next_block_before_it_takes_one():
    rows, read = np.arange(20.0, dtype=np.float32).reshape(10, 2), []

    def some(part):
        read.append(part)
        return rows[part], None

    found = corpus.over_rows(scaled, (np.float32(3),), some, 10, size=4, label='scale', together=False)
    np.testing.assert_array_equal(found, 3 * rows)
    assert read == [slice(0, 4), slice(4, 8), slice(8, 10)]
    events = []
    for item in corpus.one_behind(events.append(f'make {n}') or n for n in range(3)):
        events.append(f'take {item}')
    assert events == ['make 0', 'make 1', 'take 0', 'make 2', 'take 1', 'take 2']


def scaled(factor, rows, nothing):
    assert nothing is None
    return factor * rows
