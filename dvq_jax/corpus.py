"""Passes over the corpus in blocks: what is held is a block and the result, never the corpus.

Every local device takes a block; the last ones are padded, so that there are few compiled shapes.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dvq_jax import host
from dvq_jax.progress import Progress
from dvq_jax.quantizer import assign
from dvq_jax.types import Array, IndexParams

BLOCK = 8192
ROWS = 1024


def by_blocks(vectors: np.ndarray, size: int = BLOCK) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields vectors block by block.

    Args:
      vectors: [n, D] float, may be memory-mapped.
      size: of a block.

    Yields:
      The rows, and the block [at most size, D] float32.
    """
    for start in range(0, len(vectors), size):
        rows = slice(start, min(start + size, len(vectors)))
        yield rows, np.asarray(vectors[rows], np.float32)


def by_rows(function: Callable, *arrays: Array, rows: int = ROWS) -> Any:
    """Applies a function of rows to so many of them at a time; what it makes of them stays in cache.

    Args:
      function: ([rows, ...], ...) -> a tree of [rows, ...].
      arrays: [n, ...], n a multiple of `rows`.
      rows: how many at a time.

    Returns:
      The tree of [n, ...].
    """
    cut = [x.reshape(-1, rows, *x.shape[1:]) for x in arrays]
    parts = jax.lax.map(lambda some: function(*some), tuple(cut))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), parts)


def spread(block: Any, size: int) -> Any:
    """Cuts a block into one of `size` rows for each local device, padded with zeros.

    Args:
      block: a tree of [n, ...] arrays, n at most `size` times the devices.
      size: rows that a device takes.

    Returns:
      The tree of [devices, size, ...].
    """
    fan = jax.local_device_count()

    def cut(array: np.ndarray) -> np.ndarray:
        padding = [(0, fan * size - len(array))] + [(0, 0)] * (array.ndim - 1)
        return np.pad(array, padding).reshape(fan, size, *array.shape[1:])

    return jax.tree.map(cut, block)


def gathered(array: Array, count: int) -> np.ndarray:
    """The first rows of what the devices made of a `spread` block: [devices, size, ...] to [count, ...]."""
    return np.asarray(array).reshape(-1, *array.shape[2:])[:count]


def _assign_block(params: IndexParams, docs: Array, taken: Array | None) -> Array:
    own = () if taken is None else (taken,)
    return by_rows(lambda *rows: assign(params, *rows), docs.astype(jnp.float32), *own)


@functools.cache
def _assign_on_devices():
    return jax.pmap(_assign_block, in_axes=(None, 0, 0), devices=jax.local_devices())


def assign_corpus(params: IndexParams, corpus: np.ndarray, taken: np.ndarray | None = None) -> np.ndarray:
    """The nearest list of every document, see `quantizer.assign`.

    Args:
      params: the index.
      corpus: [N, D] float16 or float32, may be memory-mapped.
      taken: [N] int32, the documents' first lists, where it is their second that is wanted.

    Returns:
      [N] int32 on the host.
    """
    count, fan = len(corpus), jax.local_device_count()
    size = BLOCK if count > fan * ROWS else ROWS
    lists = np.empty(count, np.int32)
    progress = Progress('assign', total=count, unit='documents')
    for start in range(0, count, fan * size):
        rows = slice(start, min(start + fan * size, count))
        some = corpus[rows], None if taken is None else taken[rows]
        if host.is_all_there_is():
            lists[rows] = host.assign(params, *some)
        else:
            found = _assign_on_devices()(params, *spread(some, size))
            lists[rows] = gathered(found, rows.stop - start)
        progress.add(rows.stop - start)
    progress.done()
    return lists
