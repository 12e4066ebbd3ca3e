"""The nearest of many centers: what a screen may be off by, when it is believed, and what is done else."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dvq_jax import host, host_centers


def some(seed, rows, *, dim=32, same=0.0, size=1.0):
    """Rows of which the share `same` points one way."""
    rng = np.random.default_rng(seed)
    common = np.random.default_rng(0).normal(size=dim)
    return (size * (rng.normal(size=(rows, dim)) + 10 * same * common)).astype(np.float32)


def distances(vectors, centers):
    """Squared distances [n, K] in float64."""
    return np.square(vectors[:, None].astype(np.float64) - centers).sum(axis=-1)


@pytest.fixture(params=['screen', 'BLAS'])
def by(request, monkeypatch):
    """Chooses how centers are found, and records what BLAS is asked for."""
    monkeypatch.setattr(host, 'has_matrix_units', lambda: request.param == 'screen')
    monkeypatch.setattr(host_centers, '_FEWEST', 0)
    by_blas = host_centers.Centers._by_blas
    request.asked = []

    def recorded(self, vectors, taken):
        request.asked.extend(vectors)
        return by_blas(self, vectors, taken)

    monkeypatch.setattr(host_centers.Centers, '_by_blas', recorded)
    return request


@pytest.mark.parametrize('same', [0.0, 1.0])
@pytest.mark.parametrize(('count', 'centers'), [(1, 1), (5, 100), (host_centers.ROWS + 3, 700)])
def test_finds_the_nearest_and_then_the_second(by, count, centers, same):
    vectors, table = some(1, count, same=same), some(2, centers, same=same)
    gaps = distances(vectors, table)
    search = host_centers.Centers(table, count)
    first = search.nearest(vectors)
    np.testing.assert_array_equal(first, np.argmin(gaps, axis=1))
    if by.param == 'screen':
        assert len(by.asked) < 0.3 * count + 5
    if centers > 1:
        np.testing.assert_array_equal(search.nearest(vectors, first), np.argsort(gaps, axis=1)[:, 1])


def test_the_lowest_of_equal_centers_is_found(by):
    vectors = some(1, 300)
    table = np.repeat(some(2, 50), 3, axis=0)
    assert np.all(host_centers.Centers(table, 300).nearest(vectors) % 3 == 0)


def test_many_centers_are_compared_with_few_vectors_at_once(by, monkeypatch):
    monkeypatch.setattr(host_centers, '_DISTANCES', 0)
    vectors, table = some(1, 500), some(2, 300)
    found = host_centers.Centers(table, 500).nearest(vectors)
    np.testing.assert_array_equal(found, np.argmin(distances(vectors, table), axis=1))


def test_what_is_not_finite_is_in_some_list(by):
    vectors = some(1, 3)
    vectors[0, 0], vectors[1] = np.nan, 3e38
    with np.errstate(all='ignore'):
        found = host_centers.Centers(some(2, 300), 3).nearest(vectors)
    assert found.max() < 300


def screen(vectors, centers):
    """What rounded products say of vectors, and what may not be believed of it."""
    padded = np.zeros((-len(vectors) % host_centers._BLOCK, vectors.shape[1]), np.float32)
    rows = np.concatenate([vectors, padded])
    found = host_centers._by_rounded(*host_centers._screen_of(centers), rows, None)
    return [np.asarray(part)[: len(vectors)] for part in found]


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 99),
    same=st.sampled_from([0.0, 1.0]),
    size=st.sampled_from([1e-3, 1.0, 1e3]),
    near=st.sampled_from([1e-4, 1e-2, 1.0]),
)
def test_what_is_believed_is_right(seed, same, size, near):
    """Centers in pairs that are the closer, the smaller `near`."""
    centers = np.repeat(some(seed, 40, same=same, size=size), 2, axis=0)
    centers[1::2] += some(seed + 100, 40, size=near * size)
    vectors = some(seed + 200, 200, same=same, size=size)
    nearest, unsure = screen(vectors, centers)
    expected = np.argmin(distances(vectors, centers), axis=1)
    np.testing.assert_array_equal(nearest[~unsure], expected[~unsure])
    if near == 1.0:
        assert np.mean(unsure) < 0.5


def bfloat16(values):
    return np.asarray(values, jnp.bfloat16).astype(np.float32)


@pytest.mark.parametrize('worst', ['vector', 'center'])
def test_what_lies_along_the_rounding_is_not_believed(worst):
    """A vector as far from c as from −c, of which one lies along what rounding takes away from the other."""
    one = some(7, 1)[0]
    other = bfloat16(2.0**7 * (one - bfloat16(one)))
    much = bfloat16(one @ other)
    little = bfloat16(one @ other - much)
    one, other = np.append(one, [1, 1]), np.append(other, [-much, -little])  # ⟨one, other⟩ is about 0
    vector, center = (one, other) if worst == 'vector' else (other, one)
    centers = np.stack([center, -center])
    _, (unsure,) = screen(vector[None], centers)
    assert unsure
    _, (unsure,) = screen(center[None], centers)
    assert not unsure


def test_what_float32_sums_cannot_tell_is_not_believed():
    """Nothing is rounded to bfloat16. The two nearest have their terms in another order, but for one."""
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(30):
        terms = bfloat16(np.exp(rng.normal(size=256)))
        near, far = np.append(terms, 2.0**-16), np.append(rng.permutation(terms), -(2.0**-16))
        vector = np.append(np.full(256, 1 + 2.0**-7), 2.0**-4).astype(np.float32)
        (nearest,), (unsure,) = screen(vector[None], np.float32([near, far, -near, -far]))  # about 0
        wrong += nearest != 0
        assert unsure
    assert wrong
