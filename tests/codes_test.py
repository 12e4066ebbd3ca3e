import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from dvq_jax import codes, quantizer
from dvq_jax.types import IndexParams

N, D, M, K, B = 30, 12, 3, 4, 7


@pytest.fixture
def problem():
    rng = np.random.default_rng(1)
    params = IndexParams(
        centroids=jnp.zeros((1, D)),
        codebooks=jnp.asarray(rng.normal(size=(M, K, D // M)), jnp.float32),
        rotation=jnp.eye(D),
    )
    residuals = rng.normal(size=(N, D)).astype(np.float32)
    queries = rng.normal(size=(N, B, D)).astype(np.float32)
    weights = rng.uniform(size=(N, B)).astype(np.float32)
    weights[:, -2:] = 0
    errors = np.einsum('nbd,nd->nb', queries, residuals) + 0.1 * rng.normal(size=(N, B))
    return params, residuals, queries, errors.astype(np.float32), weights


def objective(params, residuals, queries, errors, weights, chosen, ridge):
    """The module's formula, written as arithmetic."""
    books = np.asarray(params.codebooks)
    approximate = np.stack(
        [np.concatenate([books[m, code] for m, code in enumerate(row)]) for row in np.asarray(chosen)]
    )
    missed = errors - np.einsum('nbd,nd->nb', queries, approximate)
    return (weights * missed**2).sum(1) + ridge * ((residuals - approximate) ** 2).sum(1)


def choose(problem, start, *, ridge, sweeps):
    params, residuals, queries, errors, weights = problem
    return codes.choose(
        params,
        codes.codeword_products(params.codebooks),
        codes.by_codebook(params, residuals),
        start,
        codes.by_codebook(params, queries),
        errors,
        weights,
        ridge=ridge,
        sweeps=sweeps,
    )


def nearest(problem):
    params, residuals = problem[:2]
    return quantizer.nearest(quantizer.split(params, jnp.asarray(residuals)), params.codebooks)[0]


def test_never_worse_and_ends_where_no_single_codeword_is_better(problem):
    start = nearest(problem)
    before = objective(*problem, start, 0.5)
    found = np.asarray(choose(problem, start, ridge=0.5, sweeps=20))
    after = objective(*problem, found, 0.5)
    assert (after <= before + 1e-4).all() and after.mean() < 0.8 * before.mean()
    for m, k in itertools.product(range(M), range(K)):
        other = found.copy()
        other[:, m] = k
        assert (objective(*problem, other, 0.5) >= after - 1e-3).all()


def test_mostly_the_best_of_all_combinations(problem):
    everything = np.stack(
        [objective(*problem, np.tile(row, (N, 1)), 0.5) for row in itertools.product(range(K), repeat=M)]
    )
    found = objective(*problem, choose(problem, nearest(problem), ridge=0.5, sweeps=20), 0.5)
    assert np.mean(found <= everything.min(0) + 1e-3) > 0.6


def test_without_queries_the_nearest_codewords_stay(problem):
    params, residuals, queries, errors, weights = problem
    start = nearest(problem)
    alone = (params, residuals, queries, errors, np.zeros_like(weights))
    np.testing.assert_array_equal(choose(alone, start, ridge=0.3, sweeps=3), start)


def test_a_strong_prior_gives_the_nearest_codewords(problem):
    start = nearest(problem)
    np.testing.assert_array_equal(choose(problem, start, ridge=1e6, sweeps=3), start)
