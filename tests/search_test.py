import jax.numpy as jnp
import numpy as np
import pytest

from dvq_jax import quantizer, search
from dvq_jax.errors import InputError
from dvq_jax.types import Encoding, IndexParams

L, M, K, D, N = 24, 4, 16, 16, 900


@pytest.fixture(scope='module')
def index():
    rng = np.random.default_rng(0)
    return IndexParams(
        centroids=jnp.asarray(rng.normal(size=(L, D)), jnp.float32),
        codebooks=jnp.asarray(0.3 * rng.normal(size=(M, K, D // M)), jnp.float32),
        rotation=jnp.asarray(np.linalg.qr(rng.normal(size=(D, D)))[0], jnp.float32),
    )


@pytest.fixture(scope='module')
def encoding(index):
    docs = np.random.default_rng(1).normal(size=(N, D)).astype(np.float32)
    lists = np.asarray(quantizer.assign(index, docs)) // 2 * 2  # every other list is empty
    return quantizer.encode(index, docs, jnp.asarray(lists))


def brute_force(index, encoding, queries, k, nprobe):
    """Scores over the reconstructions in the best lists by inner product."""
    rotated = np.asarray(quantizer.rotate(index, queries), np.float64)
    best = np.argsort(-rotated @ np.asarray(index.centroids, np.float64).T, axis=1, kind='stable')[:, :nprobe]
    scores = rotated @ np.asarray(quantizer.reconstruct(index, encoding), np.float64).T
    probed = (np.asarray(encoding.lists)[None, :, None] == best[:, None, :]).any(-1)
    scores = np.where(probed, scores, -np.inf)
    rows = np.argsort(-scores, axis=1, kind='stable')[:, :k]
    found = np.take_along_axis(scores, rows, axis=1)
    return found, np.where(np.isfinite(found), rows, -1), probed.sum(1)


@pytest.mark.parametrize('nprobe', [1, 3, L])
@pytest.mark.parametrize('k', [1, 10, 120])
def test_equals_brute_force_over_the_probed_lists(index, encoding, k, nprobe):
    queries = np.random.default_rng(2).normal(size=(33, D)).astype(np.float32)
    scores, rows = search.search(index, encoding, queries, k=k, nprobe=nprobe)
    expected, expected_rows, scanned = brute_force(index, encoding, queries, k, nprobe)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)
    assert (rows == expected_rows).mean() > 0.99  # equal codes tie
    np.testing.assert_array_equal((rows >= 0).sum(1), np.minimum(scanned, k))
    np.testing.assert_array_equal(search.documents_scanned(index, encoding, queries, nprobe=nprobe), scanned)


def test_a_query_does_not_depend_on_its_neighbours(index, encoding):
    queries = np.random.default_rng(3).normal(size=(20, D)).astype(np.float32)
    together = search.search(index, encoding, queries, k=5, nprobe=4)[1]
    alone = [search.search(index, encoding, queries[i : i + 1], k=5, nprobe=4)[1][0] for i in range(20)]
    np.testing.assert_array_equal(together, alone)


def test_inverted_lists_hold_each_document_once(encoding):
    inverted = search.invert(encoding, L)
    assert sorted(np.asarray(inverted.rows)) == list(range(N))
    lists = np.repeat(np.arange(L), np.diff(inverted.offsets))
    np.testing.assert_array_equal(lists, np.asarray(encoding.lists)[np.asarray(inverted.rows)])


def test_empty_lists_give_padding(index):
    encoding = Encoding(lists=np.zeros(3, np.int32), codes=np.zeros((3, M), np.uint8))
    away = -np.asarray(index.centroids[0]) @ np.asarray(index.rotation).T  # list 0 is the worst
    scores, rows = search.search(index, encoding, away[None], k=2, nprobe=1)
    assert rows.tolist() == [[-1, -1]] and np.isneginf(scores).all()


@pytest.mark.parametrize('nprobe', [0, L + 1])
def test_nprobe_out_of_range_is_refused(index, encoding, nprobe):
    with pytest.raises(InputError, match=f'the index has {L} lists'):
        search.search(index, encoding, np.zeros((1, D), np.float32), k=1, nprobe=nprobe)


def test_a_document_in_two_lists_is_found_once_by_its_mean_score(index, encoding):
    second = np.asarray(encoding.lists) + 1  # every list is even: these are others
    docs = np.random.default_rng(1).normal(size=(N, D)).astype(np.float32)
    again = quantizer.encode(index, docs, jnp.asarray(second))
    both = Encoding(
        lists=np.concatenate([encoding.lists, again.lists]),
        codes=np.concatenate([encoding.codes, again.codes]),
        copies=2,
    )
    assert both.documents == N
    queries = np.random.default_rng(2).normal(size=(33, D)).astype(np.float32)
    for nprobe, k in ((2, 10), (5, 50), (L, N)):
        scores, rows = search.search(index, both, queries, k=k, nprobe=nprobe)
        entry_scores, entries, scanned = brute_force(index, both, queries, 2 * k, nprobe)
        for query in range(len(queries)):
            parts = {}
            for score, entry in zip(entry_scores[query], entries[query], strict=True):
                if entry >= 0:
                    parts.setdefault(entry % N, []).append(score)
            means = {row: np.mean(values) for row, values in parts.items()}
            expected = sorted(means.values(), reverse=True)[:k]
            found = rows[query][rows[query] >= 0]
            assert len(found) == len(set(found)) == len(expected)
            np.testing.assert_allclose(scores[query, : len(expected)], expected, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose([means[row] for row in found], expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(search.documents_scanned(index, both, queries, nprobe=nprobe), scanned)
