"""Codewords taken by their codes, and sums over the documents that took each: a gather and its transpose.

A TPU gathers and scatters row by row, about ten cycles each, and pads rows of S numbers to 128. There both
are products with one-hot columns [K, n], a codebook at a time: picking rounds nothing, for all terms but one
are 0, and sums round as any do.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

from dvq_jax.types import Array

_MOST = 1024  # rows up to which products with one-hot columns pay


def _on_tpu_or_else(tpu: Callable, default: Callable, *args: Array, words: int) -> Array:
    if words > _MOST:
        return default(*args)
    return jax.lax.platform_dependent(*args, tpu=tpu, default=default)


def _one_hot(codes: Array, words: int) -> Array:
    return (jnp.arange(words, dtype=codes.dtype)[:, None] == codes).astype(jnp.float32)


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


@jax.custom_vjp
def pick(codebooks: Array, codes: Array) -> Array:
    """The chosen codewords, c^m_{b_m} for each m; the gradient of `codebooks` is `sums` of the result's.

    Args:
      codebooks: [M, K, S] float32.
      codes: [n, M] int32.

    Returns:
      [n, M, S] float32.
    """
    return _on_tpu_or_else(pick_by_products, pick_by_gather, codebooks, codes, words=codebooks.shape[1])


def pick_by_gather(codebooks: Array, codes: Array) -> Array:
    """As `pick`."""
    return codebooks[jnp.arange(len(codebooks)), codes]


def pick_by_products(codebooks: Array, codes: Array) -> Array:
    """As `pick`."""
    words = codebooks.shape[1]
    found = jax.lax.map(lambda book: _product(book[0].T, _one_hot(book[1], words)), (codebooks, codes.T))
    return jnp.moveaxis(found, -1, 0)


def sums(codes: Array, values: Array, *, words: int) -> Array:
    """Σ of the values of all documents with each code.

    Args:
      codes: [n, M] int32.
      values: [n, M, W] float32.
      words: K.

    Returns:
      [M, K, W] float32.
    """
    by_products = functools.partial(sums_by_products, words=words)
    by_scatter = functools.partial(sums_by_scatter, words=words)
    return _on_tpu_or_else(by_products, by_scatter, codes, values, words=words)


def sums_by_scatter(codes: Array, values: Array, *, words: int) -> Array:
    """As `sums`."""
    _, books, width = values.shape
    return jnp.zeros((books, words, width)).at[jnp.arange(books), codes].add(values)


def sums_by_products(codes: Array, values: Array, *, words: int) -> Array:
    """As `sums`."""
    by_book = codes.T, jnp.moveaxis(values, 0, -1)
    return jax.lax.map(lambda book: _product(_one_hot(book[0], words), book[1].T), by_book)


def sums_on_host(codes: np.ndarray, values: np.ndarray, *, words: int) -> np.ndarray:
    """As `sums`, of one codebook, by a sparse product: vectors are added in their order.

    Args:
      codes: [n] int.
      values: [n, W] float32.
      words: K.

    Returns:
      [K, W] float32.
    """
    # A column for each vector, and in it a 1 in the row of its code.
    ones, columns = np.ones(len(values), np.float32), np.arange(len(values) + 1)
    return sparse.csc_array((ones, codes, columns), shape=(words, len(values))) @ values


def sums_added(total: Array, codes: Array, values: Array) -> Array:
    """As `sums` of one codebook, added to others, in an order that is always the same, as a scatter's is not.

    What the vectors of each code that they have sum up to is a product with one-hot columns; that goes to as
    many different rows.

    Args:
      total: [K, W] float32.
      codes: [n] int32, n of at most about a thousand.
      values: [n, W] float32.

    Returns:
      [K, W] float32.
    """
    count = len(codes)
    own, places = jnp.unique(codes, size=count, fill_value=len(total), return_inverse=True)
    own = jnp.where(own < len(total), own, len(total) + jnp.arange(count))  # what fills up is different too
    found = _product(_one_hot(places.astype(jnp.int32), count), values)
    return total.at[own].add(found, mode='drop', indices_are_sorted=True, unique_indices=True)


def _forward(codebooks: Array, codes: Array) -> tuple[Array, tuple[Array, Array]]:
    return pick(codebooks, codes), (codebooks, codes)


def _backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, None]:
    codebooks, codes = kept
    return sums(codes, gradient, words=codebooks.shape[1]), None


pick.defvjp(_forward, _backward)
