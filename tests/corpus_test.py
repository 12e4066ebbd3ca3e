import numpy as np
import pytest

from dvq_jax import corpus, quantizer
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
