import gc
import weakref

import jax
import numpy as np
import pytest

from dvq_jax import stream


def corpus(count, kind=np.float16):
    return np.random.default_rng(0).normal(size=(count, 3)).astype(kind)


def read(found, times=1):
    blocks = found.through(lambda docs: (docs, times * docs))()
    return [(start, *map(np.asarray, made)) for start, made in blocks]


@pytest.mark.parametrize('room', [0, float('inf')])
@pytest.mark.parametrize('kind', [np.float16, np.float32])
def test_blocks_are_the_corpus_whenever_it_is_read(room, kind, monkeypatch):
    monkeypatch.setattr(stream, 'room', lambda devices: room)
    docs = corpus(50, kind)
    found = stream.Stream(docs, jax.local_devices(), largest=20)
    for _ in range(2):
        blocks = read(found, times=3)
        assert [start for start, *_ in blocks] == [found.width * number for number in range(3)]
        joined, tripled = (np.concatenate(parts, axis=1) for parts in list(zip(*blocks, strict=True))[1:])
        assert joined.dtype == kind
        np.testing.assert_array_equal(tripled, 3 * joined)
        np.testing.assert_array_equal(joined[:, :50], [docs])
        np.testing.assert_array_equal(joined[:, 50:], np.broadcast_to(docs[-1], joined[:, 50:].shape))
    assert (found.kept is None) == (not room)


def test_what_is_kept_is_sent_once(monkeypatch):
    monkeypatch.setattr(stream, 'room', lambda devices: float('inf'))
    found, sent = stream.Stream(corpus(50), jax.local_devices(), largest=20), []
    send = found._send
    monkeypatch.setattr(found, '_send', lambda *args: sent.append(1) or send(*args))
    next(found.through(lambda docs: docs)())  # a reading that was broken off
    assert len(sent) == 1
    first, second = read(found), read(found)
    assert len(sent) == 3
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one[1], other[1])


@pytest.mark.parametrize(('size', 'calls'), [(2, 4), (3, 9), (None, 9)])
def test_what_is_made_is_made_once_where_it_has_room_beside_the_corpus(size, calls, monkeypatch):
    """Four blocks of 16 documents, 6 bytes each."""
    monkeypatch.setattr(stream, 'room', lambda devices: 8 * 64)
    docs, made = corpus(63), []

    def count(docs):
        jax.debug.callback(lambda: made.append(1))
        return docs[:, 0]

    blocks = stream.Stream(docs, jax.local_devices(), largest=20).through(count, size=size)
    next(blocks())  # a reading that was broken off
    for _ in range(2):
        found = np.concatenate([block[0] for _, block in blocks()])
        np.testing.assert_array_equal(found[:63], docs[:, 0])
    jax.effects_barrier()
    assert len(made) == calls


@pytest.mark.parametrize(('size', 'kept'), [(383, False), (384, True)])
def test_is_kept_where_it_has_room(size, kept, monkeypatch):
    """Four blocks of 16 documents, 6 bytes each."""
    monkeypatch.setattr(stream, 'room', lambda devices: size)
    found = stream.Stream(corpus(63), jax.local_devices(), largest=20)
    read(found)
    assert (found.kept is not None) == kept


def test_what_was_kept_goes_with_the_stream(monkeypatch):
    monkeypatch.setattr(stream, 'room', lambda devices: float('inf'))
    found = stream.Stream(corpus(50), jax.local_devices(), largest=20)
    read(found), read(found)
    kept = weakref.ref(found)
    del found
    gc.collect()
    assert kept() is None


@pytest.mark.parametrize('documents', [1, 2, 17, 63, 64, 65, 1000, 8_841_823])
@pytest.mark.parametrize('largest', [1, 16, 100, 131_072])
def test_blocks_can_be_cut_into_groups(documents, largest):
    width = stream.width_of(documents, largest)
    root = 1 << round(np.log2(width) / 2)  # the largest group that `exact` makes
    assert width % root == 0 and width - min(documents, largest) <= 2 * root
