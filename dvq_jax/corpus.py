"""Passes over the corpus in blocks: what is held is a block and the result, never the corpus.

Every process takes a share of the rows, and every device of it a block; the last ones are padded, so that
there are few compiled shapes. What processes do together, all of them have to call.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from dvq_jax import host, host_encode
from dvq_jax.blocks import cut
from dvq_jax.progress import Progress
from dvq_jax.quantizer import assign
from dvq_jax.types import Array, IndexParams

BLOCK = 8192
ROWS = 1024
_HOST_BLOCK = 65_536
_TOTALLED = 2**20  # numbers that processes exchange at once


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
    blocks = tuple(x.reshape(-1, rows, *x.shape[1:]) for x in arrays)
    parts = jax.lax.map(lambda some: function(*some), blocks)
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

    def pad(array: np.ndarray) -> np.ndarray:
        padding = [(0, fan * size - len(array))] + [(0, 0)] * (array.ndim - 1)
        return np.pad(array, padding).reshape(fan, size, *array.shape[1:])

    return jax.tree.map(pad, block)


def gathered(array: Array, count: int) -> np.ndarray:
    """The first rows of what the devices made of a `spread` block: [devices, size, ...] to [count, ...]."""
    return np.asarray(array).reshape(-1, *array.shape[2:])[:count]


def one_behind(launched: Iterable[Any]) -> Iterator[Any]:
    """Yields each item when the next has come: devices work on that while the host takes in this one."""
    items = iter(launched)
    for last in items:
        for item in items:
            yield last
            last = item
        yield last


def replicated(tree: Any) -> Any:
    """A tree of arrays [...] on every local device, as [devices, ...]."""
    fan = jax.local_device_count()
    return jax.tree.map(lambda x: _put()(np.broadcast_to(x, (fan, *np.shape(x)))), tree)


@functools.cache
def _put() -> Callable:
    return jax.pmap(lambda x: x, devices=jax.local_devices(), donate_argnums=0)


@functools.cache
def _on_devices(function: Callable) -> Callable:
    return jax.pmap(lambda shared, rows: function(*shared, *rows), devices=jax.local_devices())


def own_rows(count: int) -> slice:
    """Those of `count` rows that are this process's to do; none for the last ones of too many processes."""
    each = -(-count // jax.process_count())
    return slice(min(jax.process_index() * each, count), min((jax.process_index() + 1) * each, count))


def joined(own: np.ndarray, count: int) -> np.ndarray:
    """What all processes made of their `own_rows`, in every process.

    Args:
      own: [n, ...] of at most 32 bits, for JAX has no others.
      count: rows of all processes.

    Returns:
      [count, ...].
    """
    if jax.process_count() == 1:
        return own
    padded = np.zeros((-(-count // jax.process_count()), *own.shape[1:]), own.dtype)
    padded[: len(own)] = own
    return np.array(multihost_utils.process_allgather(padded)).reshape(-1, *own.shape[1:])[:count]


def total(own: np.ndarray) -> np.ndarray:
    """The sum of all processes' arrays [n, ...] float64, in every process."""
    if jax.process_count() == 1:
        return own
    sums = np.empty_like(own)
    for rows in cut(len(own), max(1, _TOTALLED * len(own) // own.size)):
        halves = multihost_utils.process_allgather(own[rows].view(np.uint32))  # JAX has no float64
        sums[rows] = np.asarray(halves).view(np.float64).sum(axis=0)
    return sums


def over_rows(
    function: Callable[..., Array],
    shared: tuple,
    read: Callable[[slice], tuple],
    count: int,
    *,
    size: int,
    label: str,
    together: bool,
) -> np.ndarray:
    """Applies a function to rows, block by block, on all devices of this process, or of all.

    Long passes show progress.

    Args:
      function: (*shared, *rows) -> [size, ...]; one of a module, for it is compiled once.
      shared: trees of arrays that all rows need; each device holds them during the pass.
      read: the arrays of a slice of rows, each [n, ...] or None.
      count: how many rows there are.
      size: of what a device takes at once.
      label: what is being done.
      together: whether all processes call, and each does its share; else this one does all.

    Returns:
      [count, ...] on the host.
    """
    shared, own = replicated(shared), own_rows(count) if together else slice(0, count)

    def launched() -> Iterator[tuple[int, Array]]:
        parts = cut(own.stop - own.start, size * jax.local_device_count())
        for part in parts or [slice(0, 0)]:
            some = read(slice(own.start + part.start, own.start + part.stop))
            yield part.stop - part.start, _on_devices(function)(shared, spread(some, size))

    progress = Progress(label, total=own.stop - own.start, unit='rows')
    done = []
    for rows, found in one_behind(launched()):
        done.append(gathered(found, rows))
        progress.add(rows)
    progress.end()
    return joined(np.concatenate(done), count) if together else np.concatenate(done)


def _assign_block(params: IndexParams, docs: Array, taken: Array | None) -> Array:
    own = () if taken is None else (taken,)
    return by_rows(lambda *rows: assign(params, *rows), docs.astype(jnp.float32), *own)


def assign_corpus(
    params: IndexParams, corpus: np.ndarray, taken: np.ndarray | None = None, *, together: bool = False
) -> np.ndarray:
    """The nearest list of every document, see `quantizer.assign`.

    Args:
      params: the index.
      corpus: [N, D] float16 or float32, may be memory-mapped.
      taken: [N] int32, the documents' first lists, where it is their second that is wanted.
      together: see `over_rows`.

    Returns:
      [N] int32 on the host.
    """
    count = len(corpus)

    def read(rows: slice) -> tuple[np.ndarray, np.ndarray | None]:
        return corpus[rows], None if taken is None else taken[rows]

    if not host.is_all_there_is():
        size = BLOCK if count > jax.local_device_count() * ROWS else ROWS
        settings = {'size': size, 'label': 'assign', 'together': together}
        return over_rows(_assign_block, (params,), read, count, **settings)
    own = own_rows(count) if together else slice(0, count)
    lists = np.empty(own.stop - own.start, np.int32)
    progress = Progress('assign', total=len(lists), unit='documents')
    for rows in cut(len(lists), _HOST_BLOCK):
        lists[rows] = host_encode.assign(params, *read(slice(own.start + rows.start, own.start + rows.stop)))
        progress.add(rows.stop - rows.start)
    progress.end()
    return joined(lists, count) if together else lists
