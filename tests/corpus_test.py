import jax
import numpy as np
import pytest

from dvq_jax import blocks, corpus, host, quantizer
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


@pytest.mark.parametrize('by', ['host', 'devices'])
def test_an_interrupted_pass_goes_on_after_its_regions(by, tmp_path, monkeypatch):
    monkeypatch.setattr(host, 'is_all_there_is', lambda: by == 'host')
    monkeypatch.setattr(corpus, '_REGION', 100)
    index, docs, done = random_index(), random_docs(1, 350), []
    make = corpus.Pass.__call__

    def counted(work, number, progress):
        if (number, len(done)) == (2, 2):
            done.append('interrupted')
            raise KeyboardInterrupt
        done.append(number)
        return make(work, number, progress)

    monkeypatch.setattr(corpus.Pass, '__call__', counted)
    parts = blocks.Parts(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        corpus.assign_corpus(index, docs, parts=parts)
    lists = corpus.assign_corpus(index, docs, parts=parts)
    assert done == [0, 1, 'interrupted', 2, 3]
    np.testing.assert_array_equal(lists, quantizer.assign(index, docs))


def test_over_rows_is_the_function_of_all_rows_and_makes_the_next_block_before_it_takes_one():
    rows, read = np.arange(20.0, dtype=np.float32).reshape(10, 2), []

    def some(part):
        read.append(part)
        return rows[part], None

    found = corpus.over_rows(scaled, (np.float32(3),), some, 10, size=4, label='scale')
    np.testing.assert_array_equal(found, 3 * rows)
    assert read == [slice(0, 4), slice(4, 8), slice(8, 10)]
    events = []
    for item in corpus.one_behind(events.append(f'make {n}') or n for n in range(3)):
        events.append(f'take {item}')
    assert events == ['make 0', 'make 1', 'take 0', 'make 2', 'take 1', 'take 2']


def test_a_block_is_on_its_way_before_the_one_before_is_launched(monkeypatch):
    rows, events = np.arange(20.0, dtype=np.float32).reshape(10, 2), []
    send, launch = corpus.spread, corpus._on_devices(scaled)

    def sent(block, size):
        events.append(('sent', float(block[0][0, 0])))
        return send(block, size)

    def launched(shared, block):
        events.append(('launched', float(block[0][0, 0, 0])))
        with jax.transfer_guard('disallow'):  # all of it is where it should be
            return launch(shared, block)

    launch((np.ones((1, 1), np.float32),), send((rows[:4], None), 4))  # compiles
    monkeypatch.setattr(corpus, 'spread', sent)
    monkeypatch.setattr(corpus, '_on_devices', lambda _: launched)
    found = corpus.over_rows(
        scaled, (np.float32(3),), lambda part: (rows[part], None), 10, size=4, label='scale'
    )
    np.testing.assert_array_equal(found, 3 * rows)
    assert events == [
        ('sent', 0.0), ('sent', 8.0), ('launched', 0.0), ('sent', 16.0), ('launched', 8.0), ('launched', 16.0)
    ]  # fmt: skip


def scaled(factor, rows, nothing):
    assert nothing is None
    return factor * rows
