import pathlib
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / 'benchmarks'))

import baselines
import quality_report

from dvq_jax import search

DOCS, DIM, LISTS = 1500, 32, 16


@pytest.fixture(scope='module')
def vectors():
    rng = np.random.default_rng(3)
    points = rng.normal(size=(DOCS + 40, DIM)).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return points[:DOCS], points[DOCS:]


@pytest.mark.parametrize(
    ('opq', 'settings', 'codewords'),
    [
        (False, {}, 256),
        (True, {}, 16),
        (False, {'inner_product_lists': True}, 16),
    ],
)
def test_a_converted_faiss_index_finds_what_faiss_finds(vectors, opq, settings, codewords):
    docs, queries = vectors
    shape = {'codebooks': 8, 'codewords': codewords}
    rotation = baselines.train_opq(docs, **shape) if opq else np.eye(DIM, dtype=np.float32)
    whole = baselines.train_ivfpq(docs, lists=LISTS, rotation=rotation, **shape, **settings)
    params, encoding = baselines.convert(whole)
    np.testing.assert_array_equal(params.rotation, rotation)
    np.testing.assert_allclose(params.rotation @ params.rotation.T, np.eye(DIM), atol=1e-4)
    assert encoding.codes.max() < codewords
    for probes in (3, LISTS):
        baselines.faiss.downcast_index(whole.index).nprobe = probes
        wanted, their_rows = whole.search(queries, 10)
        scores, rows = search.search(params, encoding, queries, k=10, nprobe=probes)
        np.testing.assert_allclose(scores, wanted, atol=1e-5)
        assert np.mean(rows == their_rows) > 0.99  # but for ties


def test_lists_are_filled_by_the_distance_that_they_were_trained_with(vectors):
    docs, _ = vectors
    for inner_product in (False, True):
        whole = baselines.train_ivfpq(
            docs, lists=LISTS, codebooks=8, codewords=16, inner_product_lists=inner_product
        )
        params, encoding = baselines.convert(whole)
        scores = docs @ params.centroids.T
        scores = scores if inner_product else scores - np.square(params.centroids).sum(axis=1) / 2
        assert np.mean(scores.argmax(axis=1) == encoding.lists) > 0.999


def test_scann_scans_what_its_lists_hold(vectors):
    docs, queries = vectors
    for soar_lambda, least in ((None, DOCS), (1.5, 1.5 * DOCS)):
        index = baselines.train_scann(
            docs, lists=LISTS, codebooks=8, codewords=16, soar_lambda=soar_lambda, seed=1
        )
        assert least <= index.sizes.sum() <= 2 * DOCS and len(index.sizes) == LISTS
        np.testing.assert_array_equal(
            index.documents_scanned(queries, nprobe=LISTS), [index.sizes.sum()] * len(queries)
        )
        _, rows = index.search(docs[:50], k=10, nprobe=LISTS)
        assert np.mean([row in found for row, found in enumerate(rows)]) > 0.8


def test_jpq_draws_negatives_that_are_not_positive():
    topk = np.array([[5, 6, 7], [1, 2, 3]])
    positives = np.array([[5, 7], [9, -1]])
    rng = np.random.default_rng(0)
    drawn = np.array([baselines._hard_negatives(topk, positives, rng) for _ in range(100)])
    assert set(drawn[:, 0]) == {6} and set(drawn[:, 1]) == {1, 2, 3}


def _row(method, value, *, seed=0, size=16, extra=0):
    metrics = {'RR@10': value, 'R@10': value + 0.1, 'R@100': value + 0.2, 'teacher@10': value}
    nprobe = {'10': {**metrics, 'docs_scanned': 800.4}, '1024': {**metrics, 'docs_scanned': 9000.0}}
    row = {'method': method, 'bytes': size, 'codewords': 256, 'seed': seed, 'train_seconds': 12.3}
    return {**row, 'nprobe': nprobe, 'bytes_per_document': size + extra, 'extra_bytes': extra and extra + 4}


@pytest.fixture
def stored():
    dense = _row('dense flat', 0.42, size=1536)
    dense['nprobe'].pop('10')
    rows = [dense, _row('peer', 0.25), _row('two copies', 0.2, extra=16)]
    rows += [_row('ours', 0.3), _row('ours', 0.31, seed=1), _row('ours', 0.35, size=32)]
    settings = {'nprobe': [10, 1024], 'lists': 1024}
    return {'settings': settings, **{str(number): row for number, row in enumerate(rows)}}


def test_tables_average_seeds_and_mark_the_best_index(stored):
    text = quality_report.markdown(stored)
    assert '### 16 bytes a document, K 256' in text and '### 32 bytes a document, K 256' in text
    first = text.split('###')[1]
    assert '| 10 | ours | **.305** ± .005 | **.405** ± .005 |' in first
    assert '| 10 | peer | .250 | .350 | .450 | .250 | 800 | 16 |' in first
    assert '| 10 | two copies | .200 | .300 | .400 | .200 | 800 | 32 + 4 |' in first
    assert '| all 1024 | dense flat | .420 |' in first and '| 10 | dense flat' not in first


def test_plots_are_made_of_what_is_stored(stored, tmp_path):
    files = quality_report.draw(stored, tmp_path / 'plots')
    assert [path.name for path in files] == ['quality_recall.png', 'quality_bytes.png']
    assert all(path.read_bytes().startswith(b'\x89PNG') for path in files)
