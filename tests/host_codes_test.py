"""The nearest codewords, of every shape, and where distances are nothing at all."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dvq_jax import host_codes


def some(seed, *shape, size=1.0):
    return (size * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def distances(residuals, codebooks):
    """Squared distances [n, M, K] in float64."""
    books, _, width = codebooks.shape
    split = residuals.reshape(-1, books, 1, width).astype(np.float64)
    return np.square(split - codebooks).sum(axis=-1)


@pytest.mark.parametrize(
    ('books', 'words', 'width'),
    [
        (4, 256, 8),
        (1, 1, 3),
        (3, 5, 2),
        (2, 12, 24),
        (2, 255, 4),
        (6, 16, 1),
        (2, 8, host_codes._WIDE),
        (1, 40, 100),
    ],
)
@pytest.mark.parametrize('count', [1, 300, host_codes.ROWS + 1])
def test_finds_the_nearest(books, words, width, count):
    codebooks, residuals = some(1, books, words, width), some(2, count, books * width)
    found = host_codes.Codebooks(codebooks, count).nearest(residuals)
    assert found.shape == (count, books) and found.dtype == np.uint8
    gaps = distances(residuals, codebooks)
    chosen = np.take_along_axis(gaps, found[..., None].astype(int), axis=-1)[..., 0]
    np.testing.assert_allclose(chosen, gaps.min(axis=-1), rtol=2e-6, atol=1e-6)
    assert np.mean(found == np.argmin(gaps, axis=-1)) > 0.999


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 99),
    size=st.sampled_from([1e-12, 1e-3, 1.0, 1e6]),
    width=st.sampled_from([1, 8]),
)
def test_what_equals_a_codeword_finds_it(seed, size, width):
    codebooks = some(seed, 3, 24, width, size=size)
    codebooks[0, 17] = 0
    own = np.random.default_rng(seed).integers(24, size=(400, 3))
    own[:, 0] = 17
    residuals = codebooks[np.arange(3), own].reshape(400, -1)
    found = host_codes.Codebooks(codebooks, 400).nearest(residuals)
    np.testing.assert_array_equal(found[:, 0], 17)
    off = np.square(codebooks[np.arange(3), found].astype(np.float64) - codebooks[np.arange(3), own]).sum(-1)
    assert np.all(off <= 1e-6 * np.square(codebooks[np.arange(3), own], dtype=np.float64).sum(-1))
    if width > 1:
        np.testing.assert_array_equal(found, own)


@pytest.mark.parametrize('size', [0.0, 1.0])
def test_the_lowest_of_equal_codewords_is_found(size):
    codebooks = np.repeat(some(1, 2, 8, 4, size=size), 3, axis=1)
    residuals = np.concatenate([some(2, 300, 8), codebooks.swapaxes(0, 1).reshape(-1, 8)])
    found = host_codes.Codebooks(codebooks, len(residuals)).nearest(residuals)
    assert np.all(found % 3 == 0) and (size or not found.any())
