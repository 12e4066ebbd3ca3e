import faiss
import numpy as np
import pytest

from dvq_jax import clustering
from tests.conftest import clustered

faiss.omp_set_num_threads(2)


@pytest.fixture(scope='module')
def sample():
    return clustered(np.random.default_rng(0), 4000, dim=32)


def distortion(sample, centers):
    """Σ over groups of the mean squared distance to the nearest center, by faiss."""
    grouped = sample.reshape(len(sample), len(centers), -1)
    total = 0.0
    for group, group_centers in enumerate(centers):
        flat = faiss.IndexFlatL2(group_centers.shape[1])
        flat.add(group_centers)
        total += flat.search(np.ascontiguousarray(grouped[:, group]), 1)[0].mean()
    return total


@pytest.mark.parametrize('seeding', ['sample', 'plusplus'])
def test_kmeans_is_as_good_as_faiss(sample, seeding):
    """Each alone is at the mercy of its seeds: the mean over five of them is compared."""

    def theirs(seed):
        trained = faiss.Kmeans(32, 64, niter=15, seed=seed)
        trained.train(sample)
        return trained.centroids[None]

    def ours(seed):
        return clustering.kmeans(sample, 64, iterations=15, seeding=seeding, seed=seed)

    means = [np.mean([distortion(sample, fit(seed)) for seed in range(1, 6)]) for fit in (ours, theirs)]
    assert means[0] <= 1.02 * means[1]


def test_an_iteration_is_assign_and_mean(sample):
    start = clustering.seed_centers(sample, 16, groups=2, seeding='sample', seed=3)
    got = clustering.kmeans(sample, 16, groups=2, iterations=1, seed=3)
    grouped = sample.reshape(len(sample), 2, 16).astype(np.float64)
    for group in range(2):
        gaps = ((grouped[:, group, None] - start[group]) ** 2).sum(-1)
        nearest = gaps.argmin(1)
        means = [grouped[nearest == k, group].mean(0) for k in range(16)]
        np.testing.assert_allclose(got[group], means, atol=1e-5)


def test_empty_clusters_are_repaired():
    """Seeds that coincide leave all but one of them empty; repair must put every center to use."""
    rng = np.random.default_rng(0)
    sample = np.concatenate([np.zeros((60, 4)), rng.normal(size=(40, 4))]).astype(np.float32)
    centers = clustering.kmeans(sample, 30, iterations=20, seed=1)[0]
    used = np.unique(((sample[:, None] - centers) ** 2).sum(-1).argmin(1))
    assert len(used) >= 28  # 41 distinct points
    assert np.isfinite(centers).all()


def test_plusplus_spreads_better_than_sampling():
    rng = np.random.default_rng(0)
    sample = np.repeat(rng.normal(size=(10, 4)) * 10, [500] + [5] * 9, axis=0).astype(np.float32)
    centers = clustering.seed_centers(sample, 10, groups=1, seeding='plusplus', seed=0)[0]
    assert len(np.unique(centers.round(3), axis=0)) == 10


def test_spherical_centers_have_unit_norm(sample):
    centers = clustering.kmeans(sample, 16, iterations=4, spherical=True)
    np.testing.assert_allclose(np.linalg.norm(centers, axis=-1), 1.0, atol=1e-5)


def test_procrustes_recovers_a_rotation():
    rng = np.random.default_rng(0)
    points, rotation = rng.normal(size=(100, 6)), np.linalg.qr(rng.normal(size=(6, 6)))[0]
    np.testing.assert_allclose(clustering.procrustes(points.T @ (points @ rotation)), rotation, atol=1e-5)


def test_opq_is_as_good_as_faiss_and_better_than_pq(sample):
    mixed = sample * np.linspace(
        0.2, 2, 32, dtype=np.float32
    )  # unequal subspaces, which a rotation evens out
    books, rotation = clustering.opq(mixed, codebooks=4, codewords=16, iterations=25, pq_iterations=10)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(32), atol=1e-5)
    ours = distortion(np.ascontiguousarray(mixed @ rotation), books)
    matrix = faiss.OPQMatrix(32, 4)
    matrix.niter, matrix.pq = 25, faiss.ProductQuantizer(32, 4, 4)
    matrix.train(mixed)
    rotated = matrix.apply(mixed)
    pq = faiss.ProductQuantizer(32, 4, 4)
    pq.cp.niter = 10
    pq.train(rotated)
    assert ours <= 1.02 * distortion(rotated, faiss.vector_to_array(pq.centroids).reshape(4, 16, 8))
    plain = clustering.kmeans(mixed, 16, groups=4, iterations=35)
    assert ours < 0.95 * distortion(mixed, plain)
