"""Passes over the corpus: what is held is a part of it and the result, never the corpus.

A region of consecutive rows is finished, and where there are `blocks.Parts` kept, together. In it every
device takes a block at once; the last ones are padded, so that there are few compiled shapes.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dvq_jax import blocks, host, host_encode
from dvq_jax.progress import Progress
from dvq_jax.quantizer import assign
from dvq_jax.types import Array, IndexParams

_REGION = 2**16
BLOCK = 8192
ROWS = 1024
_HOST_BLOCK = 65_536


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


def rows_at_once(count: int) -> int:
    """How many of so many rows a device takes at a time: fewer than a block where all get along with that."""
    return BLOCK if count > jax.local_device_count() * ROWS else ROWS


def spread(block: Any, size: int) -> Any:
    """Cuts a block into one of `size` rows for each local device, padded with zeros, and sends it there.

    A function that is launched waits until the host has copied what it takes, so a block should be on its
    way, by `one_behind`, while the one before is launched. What a CPU is sent may share memory with what was
    given, which must not be written to afterwards.

    Args:
      block: a tree of [n, ...] arrays, n at most `size` times the devices.
      size: rows that a device takes.

    Returns:
      The tree of [devices, size, ...], on its way to the devices.
    """
    fan = jax.local_device_count()

    def pad(array: np.ndarray) -> np.ndarray:
        if len(array) < fan * size:
            array = np.pad(array, [(0, fan * size - len(array))] + [(0, 0)] * (array.ndim - 1))
        return array.reshape(fan, size, *array.shape[1:])

    return jax.device_put(jax.tree.map(pad, block), _over_devices())


def gathered(array: Array, count: int) -> np.ndarray:
    """The first rows of what the devices made of a `spread` block: [devices, size, ...] to [count, ...]."""
    return np.asarray(array).reshape(-1, *array.shape[2:])[:count]


def one_behind(begun: Iterable[Any]) -> Iterator[Any]:
    """Yields each item when the next has come: that is sent, or worked on, while this one is taken in."""
    items = iter(begun)
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
def _over_devices() -> jax.sharding.Sharding:
    """Of the arrays [devices, ...] that a mapped function takes as they are."""
    return _put()(np.zeros(jax.local_device_count(), np.float32)).sharding


@functools.cache
def _on_devices(function: Callable) -> Callable:
    return jax.pmap(lambda shared, rows: function(*shared, *rows), devices=jax.local_devices())


class Pass:
    """What is made of rows, cut into regions; a `blocks.Work`.

    A region is 'made' [n, ...].

    Args:
      make: (rows, progress) -> [n, ...], counting the rows that are done.
      count: how many rows there are.
      label: what is being done.
    """

    unit = 'rows'

    def __init__(self, make: Callable[[slice, Progress], np.ndarray], count: int, *, label: str):
        self._make, self.label = make, label
        self.blocks = blocks.cut(count, _REGION)

    def size(self, number: int) -> int:
        """How many rows a region has."""
        return self.blocks[number].stop - self.blocks[number].start

    def __call__(self, number: int, progress: Progress) -> dict[str, np.ndarray]:
        """Makes a region."""
        return {'made': self._make(self.blocks[number], progress)}


def _collect(work: Pass, parts: blocks.Parts | None) -> np.ndarray:
    """All rows of a pass; long ones show progress."""
    found = blocks.finish(work, parts, quiet=True)
    return np.concatenate([found[number]['made'] for number in range(len(work.blocks))])


def over_rows(
    function: Callable[..., Array],
    shared: tuple,
    read: Callable[[slice], tuple],
    count: int,
    *,
    size: int,
    label: str,
    parts: blocks.Parts | None = None,
) -> np.ndarray:
    """Applies a function to rows, block by block, on all devices.

    Args:
      function: (*shared, *rows) -> [size, ...]; one of a module, for it is compiled once.
      shared: trees of arrays that all rows need; each device holds them during the pass.
      read: the arrays of a slice of rows, each [n, ...] or None.
      count: how many rows there are, one or more.
      size: of what a device takes at once.
      label: what is being done.
      parts: where finished regions are kept: what an interrupted call for the same has finished is not done
        again, and the processes of a run share the work. None holds them in this process's memory.

    Returns:
      [count, ...] on the host.
    """
    shared, fan = replicated(shared), jax.local_device_count()

    def sent(region: slice) -> Iterator[tuple[int, Any]]:
        for start in range(region.start, region.stop, size * fan):
            rows = slice(start, min(start + size * fan, region.stop))
            yield rows.stop - start, spread(read(rows), size)

    def launched(region: slice) -> Iterator[tuple[int, Array]]:
        for rows, block in one_behind(sent(region)):
            yield rows, _on_devices(function)(shared, block)

    def make(region: slice, progress: Progress) -> np.ndarray:
        done = []
        for rows, found in one_behind(launched(region)):
            done.append(gathered(found, rows))
            progress.add(rows)
        return np.concatenate(done)

    return _collect(Pass(make, count, label=label), parts)


def _assign_block(params: IndexParams, docs: Array, taken: Array | None) -> Array:
    own = () if taken is None else (taken,)
    return by_rows(lambda *rows: assign(params, *rows), docs.astype(jnp.float32), *own)


def assign_corpus(
    params: IndexParams,
    corpus: np.ndarray,
    taken: np.ndarray | None = None,
    *,
    parts: blocks.Parts | None = None,
) -> np.ndarray:
    """The nearest list of every document, see `quantizer.assign`.

    Args:
      params: the index.
      corpus: [N, D] float16 or float32, may be memory-mapped.
      taken: [N] int32, the documents' first lists, where it is their second that is wanted.
      parts: see `over_rows`.

    Returns:
      [N] int32 on the host.
    """
    count = len(corpus)

    def read(rows: slice) -> tuple[np.ndarray, np.ndarray | None]:
        return corpus[rows], None if taken is None else taken[rows]

    if not host.is_all_there_is():
        settings = {'size': rows_at_once(count), 'label': 'assign', 'parts': parts}
        return over_rows(_assign_block, (params,), read, count, **settings)

    def make(region: slice, progress: Progress) -> np.ndarray:
        lists = np.empty(region.stop - region.start, np.int32)
        for rows in blocks.cut(len(lists), _HOST_BLOCK):
            some = slice(region.start + rows.start, region.start + rows.stop)
            lists[rows] = host_encode.assign(params, *read(some))
            progress.add(rows.stop - rows.start)
        return lists

    return _collect(Pass(make, count, label='assign'), parts)
