import numpy as np
import pytest

from dvq_jax import corpus, demand, quantizer
from tests.quantizer_test import L, random_docs, random_index


@pytest.mark.parametrize('count', [1, 1500, corpus.BLOCK + 3])
def test_blocks_equal_the_whole(count):
    index, docs = random_index(), random_docs(1, count).astype(np.float16)
    expected = quantizer.encode(index, docs)
    encoding = corpus.encode_corpus(index, docs)
    np.testing.assert_array_equal(encoding.lists, expected.lists)
    np.testing.assert_array_equal(encoding.codes, expected.codes)
    np.testing.assert_array_equal(corpus.assign_corpus(index, docs), expected.lists)


def test_keeps_frozen_lists():
    index, docs = random_index(), random_docs(1, 1500)
    lists = (np.arange(1500) % L).astype(np.int32)
    encoding = corpus.encode_corpus(index, docs, lists)
    np.testing.assert_array_equal(encoding.lists, lists)
    np.testing.assert_array_equal(encoding.codes, quantizer.encode(index, docs, lists).codes)


@pytest.mark.parametrize('most', [16, 64])  # some or none have as many
def test_codes_serve_the_queries_that_want_a_document(most):
    index, docs = random_index(), random_docs(1, 600)
    rng = np.random.default_rng(0)
    queries = (docs[rng.integers(600, size=300)] + 0.3 * random_docs(2, 300)).astype(np.float32)
    scores = queries @ docs.T
    ids = np.argsort(-scores, axis=1)[:, :20].astype(np.int32)
    known = demand.turn_round(queries, ids, np.take_along_axis(scores, ids, axis=1), len(docs))
    audience = corpus.Audience(demand=known, transformed=queries, queries=most, prior=1.0, sweeps=3)
    plain = corpus.encode_corpus(index, docs)
    chosen = corpus.encode_corpus(index, docs, np.tile(plain.lists, 2), audience=audience)
    assert chosen.copies == 2
    np.testing.assert_array_equal(chosen.codes[:600], chosen.codes[600:])

    def missed(codes):
        approximate = quantizer.score(index, queries, plain.replace(codes=codes))
        return np.square(np.take_along_axis(scores - np.asarray(approximate), ids, axis=1)).mean()

    assert missed(chosen.codes[:600]) < 0.8 * missed(plain.codes)
    unwanted = np.setdiff1d(np.arange(600), ids)
    assert len(unwanted)
    np.testing.assert_array_equal(chosen.codes[unwanted], plain.codes[unwanted])
