"""What a host without accelerators does by NumPy's BLAS: XLA's products take half as long again there.

Rows go in tiles, each through all of its products on one core, so that what is made of a tile stays in the
core's cache: a thread for each core, and a BLAS thread for each of them.
"""

import collections
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from typing import Any

import jax
import numpy as np
import threadpoolctl

from dvq_jax.blocks import cut
from dvq_jax.data import gather
from dvq_jax.types import Encoding, IndexParams

_ROWS = 512  # in a tile
_DISTANCES = 1024  # of each row at once


def is_all_there_is() -> bool:
    """Whether JAX has no accelerator, so that the host is what computes."""
    return jax.default_backend() == 'cpu'


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def on_threads(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """Maps over items, in order, on a thread for each core.

    Args:
      function: of an item; most of its time goes to BLAS and NumPy, which let other threads run.
      items: what to map over.

    Yields:
      What the function returns.
    """
    with _libraries().limit(limits=1, user_api='blas'):
        yield from _threads(os.getpid(), cores()).map(function, items)


def each(function: Callable[[Any], None], items: Sequence[Any]) -> None:
    """As `on_threads`, for what a function does and not for what it returns.

    Args:
      function: of an item.
      items: one alone is done by the caller's thread, which keeps BLAS's own ones.
    """
    if len(items) == 1:
        function(items[0])
    else:
        collections.deque(on_threads(function, items), maxlen=0)


@functools.cache
def _libraries() -> threadpoolctl.ThreadpoolController:
    """Kept, for it goes through all libraries that the process has loaded."""
    return threadpoolctl.ThreadpoolController()


@functools.cache
def _threads(_process: int, count: int) -> futures.ThreadPoolExecutor:
    """Kept, for a new thread begins without memory of its own, and gets it page by page."""
    return futures.ThreadPoolExecutor(count)


def _by_products(centers: np.ndarray) -> np.ndarray:
    """[G, S + 1, K] of centers [G, K, S]: (x, 1) times it is ‖c‖² − 2⟨x, c⟩."""
    norms = np.sum(np.square(centers), axis=-1)
    return np.concatenate([-2 * centers.transpose(0, 2, 1), norms[:, None]], axis=1, dtype=np.float32)


def _on_host(params: IndexParams) -> IndexParams:
    return IndexParams(*(np.asarray(x) for x in (params.centroids, params.codebooks, params.rotation)))


def _extended(vectors: np.ndarray) -> np.ndarray:
    """[G, n, S + 1], (x, 1) of vectors [n, G, S]."""
    count, groups, width = vectors.shape
    extended = np.ones((groups, count, width + 1), np.float32)
    extended[..., :width] = vectors.transpose(1, 0, 2)
    return extended


def _nearest(vectors: np.ndarray, table: np.ndarray) -> np.ndarray:
    """As `quantizer.nearest`, [n, G] of vectors [n, G, S] and the centers' `_by_products`."""
    extended, (groups, _, words) = _extended(vectors), table.shape
    some = max(1, min(groups, _DISTANCES // words))
    distances = np.empty((some, len(vectors), words), np.float32)
    nearest = np.empty((groups, len(vectors)), np.int64)
    for part in cut(groups, some):
        gaps = np.matmul(extended[part], table[part], out=distances[: part.stop - part.start])
        np.argmin(gaps, axis=-1, out=nearest[part])
    return nearest.T


def assign(params: IndexParams, docs: np.ndarray, taken: np.ndarray | None = None) -> np.ndarray:
    """As `quantizer.assign`.

    Args:
      params: the index.
      docs: [n, D] float, in the caller's space, may be memory-mapped.
      taken: [n] int32, the documents' first lists, where it is their second that is wanted.

    Returns:
      [n] int32.
    """
    params = _on_host(params)
    table = _by_products(params.centroids[None])

    def tile(rows: slice) -> np.ndarray:
        rotated = np.asarray(docs[rows], np.float32) @ params.rotation
        gaps = _extended(rotated[:, None])[0] @ table[0]
        if taken is not None:
            gaps[np.arange(len(gaps)), taken[rows]] = np.inf
        return np.argmin(gaps, axis=-1)

    return np.concatenate(list(on_threads(tile, cut(len(docs), _ROWS)))).astype(np.int32)


def encode(
    params: IndexParams, corpus: np.ndarray, rows: np.ndarray, lists: np.ndarray | None = None
) -> Encoding:
    """As `quantizer.encode`.

    Args:
      params: the index.
      corpus: [N, D] float, in the caller's space, may be memory-mapped.
      rows: [n] int, the documents to encode.
      lists: [n] int32, their lists where they are already decided; else they are assigned.

    Returns:
      The encoding of the n documents.
    """
    params = _on_host(params)
    coarse, fine = _by_products(params.centroids[None]), _by_products(params.codebooks)
    books = len(params.codebooks)

    def tile(part: slice) -> tuple[np.ndarray, np.ndarray]:
        rotated = gather(corpus, rows[part]) @ params.rotation
        own = _nearest(rotated[:, None], coarse)[:, 0] if lists is None else lists[part]
        residuals = (rotated - params.centroids[own]).reshape(len(rotated), books, -1)
        return own.astype(np.int32), _nearest(residuals, fine).astype(np.uint8)

    parts = zip(*on_threads(tile, cut(len(rows), _ROWS)), strict=True)
    return Encoding(*(np.concatenate(part) for part in parts))
