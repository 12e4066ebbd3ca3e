import numpy as np
import pytest

from dvq_jax import corpus, host, quantizer
from tests.quantizer_test import random_docs, random_index


@pytest.mark.parametrize('by', ['BLAS', 'XLA'])
@pytest.mark.parametrize('count', [1, 1500, corpus.BLOCK + 3])
def test_blocks_equal_the_whole(count, by, monkeypatch):
    monkeypatch.setattr(host, 'is_all_there_is', lambda: by == 'BLAS')
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
