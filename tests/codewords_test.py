"""Codewords by their codes, both ways, and the gradient that comes back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dvq_jax import codewords

M, K, S, N = 3, 16, 5, 200


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    books = rng.normal(size=(M, K, S)).astype(np.float32)
    codes = rng.integers(K, size=(N, M)).astype(np.int32)
    return books, codes, rng.normal(size=(N, M, S)).astype(np.float32)


def test_both_ways_pick_the_same_bits(problem):
    books, codes, _ = problem
    expected = np.stack([books[book, codes[:, book]] for book in range(M)], axis=1)
    for pick in (codewords.pick, codewords.pick_by_gather, codewords.pick_by_products):
        np.testing.assert_array_equal(jax.jit(pick)(books, codes), expected)


def test_both_ways_sum_what_has_a_code(problem):
    _, codes, values = problem
    expected = np.zeros((M, K, S))
    for book in range(M):
        np.add.at(expected[book], codes[:, book], values[:, book].astype(np.float64))
    for sums in (codewords.sums, codewords.sums_by_scatter, codewords.sums_by_products):
        np.testing.assert_allclose(sums(codes, values, words=K), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('pick', [codewords.pick, codewords.pick_by_products])
def test_the_gradient_is_that_of_a_gather(problem, pick):
    books, codes, values = problem

    def loss(pick):
        return lambda books: jnp.sum(values * jnp.sin(pick(books, codes)))

    expected = jax.grad(loss(codewords.pick_by_gather))(books)
    np.testing.assert_allclose(jax.grad(loss(pick))(books), expected, rtol=1e-5, atol=1e-5)


def test_the_way_is_the_platforms():
    """As it is lowered: products for a TPU, unless there are many words."""
    shapes = [jax.ShapeDtypeStruct((M, words, S), jnp.float32) for words in (K, 4096)]
    codes = jax.ShapeDtypeStruct((N, M), jnp.int32)
    for platform, expected in (('tpu', (True, False)), ('cpu', (False, False)), ('cuda', (False, False))):
        traced = [jax.jit(codewords.pick).trace(books, codes) for books in shapes]
        texts = [trace.lower(lowering_platforms=(platform,)).as_text() for trace in traced]
        assert tuple('dot_general' in text for text in texts) == expected


def test_sums_are_added_to_others():
    rng = np.random.default_rng(3)
    for words, high in ((7, 7), (3000, 3000), (50, 1)):
        codes, values = (
            rng.integers(0, high, 40).astype(np.int32),
            rng.normal(size=(40, 5)).astype(np.float32),
        )
        before = rng.normal(size=(words, 5)).astype(np.float32)
        wanted = before.astype(np.float64)
        np.add.at(wanted, codes, values)
        found = codewords.sums_added(jnp.asarray(before), codes, values)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
