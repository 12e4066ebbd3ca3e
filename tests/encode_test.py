import numpy as np
import pytest

from dvq_jax import corpus, demand, encode, host, host_encode, quantizer, towers
from dvq_jax.store import Store
from tests.quantizer_test import L, random_docs, random_index


@pytest.mark.parametrize('by', ['host', 'devices'])
@pytest.mark.parametrize('count', [1, 1500, corpus.BLOCK + 3])
def test_blocks_equal_the_whole(count, by, monkeypatch):
    monkeypatch.setattr(host, 'is_all_there_is', lambda: by == 'host')
    index, docs = random_index(), random_docs(1, count).astype(np.float16)
    expected = quantizer.encode(index, docs)
    encoding = encode.encode_corpus(index, docs)
    np.testing.assert_array_equal(encoding.lists, expected.lists)
    np.testing.assert_array_equal(encoding.codes, expected.codes)


@pytest.mark.parametrize('by', ['host', 'devices'])
def test_keeps_frozen_lists(by, monkeypatch):
    monkeypatch.setattr(host, 'is_all_there_is', lambda: by == 'host')
    index, docs = random_index(), random_docs(1, 1500)
    lists = (np.arange(1500) % L).astype(np.int32)
    encoding = encode.encode_corpus(index, docs, lists)
    np.testing.assert_array_equal(encoding.lists, lists)
    np.testing.assert_array_equal(encoding.codes, quantizer.encode(index, docs, lists).codes)


@pytest.mark.parametrize('by', ['host', 'devices'])
@pytest.mark.parametrize('most', [16, 64])  # some or none have as many
def test_codes_serve_the_queries_that_want_a_document(most, by, monkeypatch):
    monkeypatch.setattr(host, 'is_all_there_is', lambda: by == 'host')
    index, docs = random_index(), random_docs(1, 600)
    rng = np.random.default_rng(0)
    queries = (docs[rng.integers(600, size=300)] + 0.3 * random_docs(2, 300)).astype(np.float32)
    scores = queries @ docs.T
    ids = np.argsort(-scores, axis=1)[:, :20].astype(np.int32)
    known = demand.turn_round(queries, ids, np.take_along_axis(scores, ids, axis=1), len(docs))
    audience = encode.Audience(demand=known, tower=towers.Tower(), queries=most, prior=1.0, sweeps=3)
    plain = encode.encode_corpus(index, docs)
    chosen = encode.encode_corpus(index, docs, np.tile(plain.lists, 2), audience=audience)
    assert chosen.copies == 2
    np.testing.assert_array_equal(chosen.codes[:600], chosen.codes[600:])

    def missed(codes):
        approximate = quantizer.score(index, queries, plain.replace(codes=codes))
        return np.square(np.take_along_axis(scores - np.asarray(approximate), ids, axis=1)).mean()

    assert missed(chosen.codes[:600]) < 0.8 * missed(plain.codes)
    unwanted = np.setdiff1d(np.arange(600), ids)
    assert len(unwanted)
    np.testing.assert_array_equal(chosen.codes[unwanted], plain.codes[unwanted])


@pytest.fixture
def audience():
    docs = random_docs(1, 600)
    queries = random_docs(2, 300)
    scores = queries @ docs.T
    ids = np.argsort(-scores, axis=1)[:, :20].astype(np.int32)
    known = demand.turn_round(queries, ids, np.take_along_axis(scores, ids, axis=1), len(docs))
    return encode.Audience(demand=known, tower=towers.Tower(), queries=16, prior=1.0, sweeps=3)


@pytest.mark.parametrize('decided', [True, False])
def test_an_interrupted_store_goes_on_where_it_was(tmp_path, monkeypatch, audience, decided):
    index, docs = random_index(), random_docs(1, 600)
    lists = (np.arange(1200) % L).astype(np.int32) if decided else None
    whole = encode.encode_corpus(index, docs, lists, audience=audience)
    monkeypatch.setattr(encode, '_REGION', 100)
    read, limit = set(), 350

    def gather(corpus, rows, **_):
        read.update(rows.tolist())
        if len(read) > limit:
            raise KeyboardInterrupt
        return corpus[rows]

    monkeypatch.setattr(encode, 'gather', gather)
    monkeypatch.setattr(host_encode, 'gather', gather)
    settings = {'audience': audience, 'quiet': True}
    with pytest.raises(KeyboardInterrupt):
        encode.encode_corpus(index, docs, lists, store=Store(tmp_path / 'S'), **settings)
    read, limit = set(), 10_000
    again = encode.encode_corpus(index, docs, lists, store=Store(tmp_path / 'S'), **settings)
    assert read == set(range(300, 600)) and isinstance(again.codes, np.memmap)
    np.testing.assert_array_equal(again.codes, whole.codes)
    np.testing.assert_array_equal(again.lists, whole.lists)
    read = set()
    encode.encode_corpus(index, docs, lists, store=Store(tmp_path / 'S'), **settings)
    assert not read


def test_a_store_of_something_else_is_made_anew(tmp_path, audience):
    docs = random_docs(1, 600)
    settings = {'store': Store(tmp_path / 'S'), 'quiet': True}
    encode.encode_corpus(random_index(), docs, audience=audience, **settings)
    index = random_index().replace(codebooks=2 * random_index().codebooks)
    for other in ({}, {'audience': audience}):
        encoding = encode.encode_corpus(index, docs, **other, **settings)
        np.testing.assert_array_equal(encoding.codes, encode.encode_corpus(index, docs, **other).codes)
