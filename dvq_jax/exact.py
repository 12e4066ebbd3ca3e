"""The exact Top-K of a block of queries over the whole corpus, which streams by in blocks.

Two ways to the same answer: on accelerators by XLA, and on a host by NumPy's BLAS, whose products are half as
fast again as XLA's there. In both the K largest inner products are kept, larger first, ties by lowest row.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dvq_jax import host
from dvq_jax.blocks import cut, even
from dvq_jax.progress import Progress
from dvq_jax.stream import Stream
from dvq_jax.types import Array

Search = Callable[[np.ndarray, Progress], tuple[np.ndarray, np.ndarray]]

# Queries that a device scores at once, and the fewest: documents are read again for each tile.
_TILE, _FEW = 1024, 64
# What a core of a host does: BLAS packs both sides of a product, which wants many rows of each, and 5 MB of
# scores are read again while the last cache still has them.
_QUERIES_ON_HOST = 1280
_DOCS_ON_HOST = 1024  # documents that it scores at once
_RESERVE = 3  # candidates that a query collects before they are cut to K, in K
_NOTHING = np.iinfo(np.int64).min


def on_devices(stream: Stream, k: int, *, query_block: int) -> Search:
    """Search by XLA, in float32: tiles of queries keep a running Top-K.

    The shapes of the products do not depend on the number of devices, and so neither do the results.

    Args:
      stream: the corpus, on devices each of which takes a share of the queries.
      k: how many documents a query gets, at most N.
      query_block: the most queries that a search is given.

    Returns:
      search(queries [q ≤ query_block, D] float16 or float32, progress) -> ids [q, k] int32, scores [q, k]
      float32; `progress` counts scores.
    """
    devices, total = stream.devices, len(stream.corpus)
    blocks = stream.through(lambda docs: docs.astype(jnp.float32))
    merge = functools.partial(_merge_tiles, group=group_of(stream.width, k), total=total)
    merge = jax.pmap(merge, in_axes=(0, 0, 0, 0, None), devices=devices, donate_argnums=(0, 1))
    put = jax.pmap(lambda queries: queries.astype(jnp.float32), devices=devices)

    def search(queries: np.ndarray, progress: Progress) -> tuple[np.ndarray, np.ndarray]:
        tile = min(_TILE, query_block, max(_FEW, 1 << (len(queries) - 1).bit_length()))
        padded = put(in_tiles(queries, tile, devices=len(devices), query_block=query_block))
        shape = (*padded.shape[:-1], k)
        best, ids = np.full(shape, -np.inf, np.float32), np.zeros(shape, np.int32)
        scored = 0
        for start, docs in blocks():
            jax.block_until_ready(best)  # only now: the read above overlapped the block before
            progress.add(scored)
            best, ids = merge(best, ids, padded, docs, start)
            scored = len(queries) * min(stream.width, total - start)
        ids, best = (np.asarray(x).reshape(-1, k)[: len(queries)] for x in (ids, best))
        progress.add(scored)
        return ids, best

    return search


def in_tiles(queries: np.ndarray, tile: int, *, devices: int, query_block: int) -> np.ndarray:
    """Cuts queries into tiles that a device scores one after the other; there are few shapes in all.

    Args:
      queries: [q ≤ query_block, D] float.
      tile: queries in a tile.
      devices: each gets as many tiles.
      query_block: the most queries that there ever are.

    Returns:
      [devices, tiles, tile, D], filled up with zeros; a view of the queries where they fill it.
    """
    tiles, most = (-(-count // (tile * devices)) for count in (len(queries), query_block))
    shape = (devices, min(1 << (tiles - 1).bit_length(), most), tile)
    if len(queries) == math.prod(shape):
        return queries.reshape(*shape, -1)
    padded = np.zeros((math.prod(shape), queries.shape[1]), queries.dtype)
    padded[: len(queries)] = queries
    return padded.reshape(*shape, -1)


def group_of(width: int, k: int) -> int:
    """How many consecutive documents of so many share a maximum, a power of two.

    Top-K over the maxima and over the members of k groups is least work where both are as many.
    """
    return 2 ** max(0, round(math.log2(width / k) / 2))


def _merge_tiles(
    best: Array, ids: Array, queries: Array, docs: Array, start: Array, *, group: int, total: int
) -> tuple[Array, Array]:
    """`_merge` for each of [tiles, q, ...], one after the other: a device holds the scores of one tile."""
    merge = functools.partial(_merge, docs=docs, start=start, group=group, total=total)
    return jax.lax.map(lambda tile: merge(*tile), (best, ids, queries))


def _merge(
    best: Array, ids: Array, queries: Array, docs: Array, start: Array, *, group: int, total: int
) -> tuple[Array, Array]:
    """Merges a block of documents into the running Top-K.

    XLA's top_k is slow on long rows, so it runs twice on short ones: first over the maxima of groups of
    consecutive documents, whose k best groups hold the block's Top-K, then over the members of those groups.
    Ties stay canonical: top_k prefers earlier positions, groups are consecutive rows in ascending order, and
    the running Top-K, whose rows are all lower, comes first.

    Args:
      best: [q, k] float32, the scores so far, descending.
      ids: [q, k] int32, their rows.
      queries: [q, D] float32.
      docs: [n, D] float32, rows `start` to `start + n` of the corpus, n a multiple of `group`.
      start: scalar int32.
      group: documents in a group.
      total: N; later rows are padding.

    Returns:
      best and ids, merged.
    """
    k, groups = best.shape[-1], docs.shape[0] // group
    scores = jnp.matmul(queries, docs.T, precision=jax.lax.Precision.HIGHEST)
    scores = scores.reshape(-1, groups, group)
    rows = start + jnp.arange(groups * group, dtype=jnp.int32).reshape(groups, group)
    maxima = jnp.max(jnp.where(rows < total, scores, -jnp.inf), axis=-1)
    _, chosen = jax.lax.top_k(maxima, min(k, groups))
    chosen = jnp.sort(chosen, axis=-1)
    candidates = jnp.take_along_axis(scores, chosen[:, :, None], axis=1).reshape(len(queries), -1)
    rows = rows[chosen].reshape(len(queries), -1)
    candidates = jnp.where(rows < total, candidates, -jnp.inf)
    best, places = jax.lax.top_k(jnp.concatenate([best, candidates], axis=-1), k)
    return best, jnp.take_along_axis(jnp.concatenate([ids, rows], axis=-1), places, axis=-1)


def on_host(corpus: np.ndarray, k: int, *, corpus_block: int) -> Search:
    """Search by NumPy's BLAS: what does not beat a query's K-th best so far is dropped at once.

    Args:
      corpus: [N, D] float16 or float32, usually memory-mapped.
      k: how many documents a query gets, at most N.
      corpus_block: documents that are read at once.

    Returns:
      As `on_devices`.
    """
    width = min(corpus_block, _DOCS_ON_HOST)

    def search(queries: np.ndarray, progress: Progress) -> tuple[np.ndarray, np.ndarray]:
        queries, kept = np.asarray(queries, np.float32), reservoirs(len(queries), k, width)

        def add(part: tuple[slice, Reservoir]) -> int:  # of the block that is read, below
            share, reservoir = part
            some = queries[share]
            products = np.empty(len(some) * width, np.float32)
            for first in range(0, len(docs), width):
                tile = docs[first : first + width]
                scores = products[: len(some) * len(tile)].reshape(len(some), -1)
                np.matmul(some, tile.T, out=scores)
                reservoir.add(scores, start + first)
            return len(some) * len(docs)

        for start in range(0, len(corpus), corpus_block):
            docs = np.asarray(corpus[start : start + corpus_block], np.float32)
            for count in host.on_threads(add, kept):
                progress.add(count)
        return best(kept)

    return search


class Reservoir:
    """The best K documents of each of some queries.

    A candidate is one int64: its score in the upper half, in an order that integers share, and its row,
    complemented, in the lower. So the best are the largest, ties go to the lowest row, and one array is
    sorted.

    Args:
      count: q, the queries.
      k: documents that each gets.
      width: the most documents that are added at once.
    """

    def __init__(self, count: int, k: int, width: int):
        self._k = k
        self._keys = np.empty((count, k + width), np.int64)
        self._filled = np.zeros(count, np.int64)
        self._bar = np.full((count, 1), -np.inf, np.float32)

    def add(self, scores: np.ndarray, start: int) -> None:
        """Takes in scores [q, n ≤ width] float32 of rows `start` to `start + n`, later ones than before."""
        if not self._filled.any() and scores.shape[1] > self._k:
            kth = scores.shape[1] - self._k
            self._bar = np.nextafter(np.partition(scores, kth, axis=1)[:, kth, None], np.float32(-np.inf))
        (count, width), room = scores.shape, self._keys.shape[1]
        above = np.flatnonzero(scores > self._bar)
        queries = above // width
        counts = np.bincount(queries, minlength=count)
        if np.max(self._filled + counts) > room:
            self._cut()  # now K are held at most, and all of these fit
            self.add(scores, start)
            return
        # The n-th above a query's bar goes n places after what the query holds.
        first = room * np.arange(count) + self._filled - np.cumsum(counts) + counts
        places = first[queries] + np.arange(len(above))
        self._keys.reshape(-1)[places] = order_keys(
            scores.reshape(-1)[above], start + above - width * queries
        )
        self._filled += counts
        if np.max(self._filled) > _RESERVE * self._k:
            self._cut()

    def best(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows [q, K] int32 and scores [q, K] float32, best first."""
        self._cut()
        keys = np.sort(self._keys[:, : self._k], axis=1)[:, ::-1]
        return rows_of(keys), scores_of(keys)

    def _cut(self) -> None:
        """Leaves the best K of each query, and raises the bar to the last of them."""
        width = np.max(self._filled)
        if width <= self._k:
            return
        held = self._keys[:, :width]
        held[np.arange(width) >= self._filled[:, None]] = _NOTHING
        held[:] = np.partition(held, width - self._k, axis=1)[:, ::-1]
        self._filled = np.minimum(self._filled, self._k)
        full = self._filled == self._k
        self._bar[full] = scores_of(held[full, self._k - 1, None])


def reservoirs(count: int, k: int, width: int) -> list[tuple[slice, Reservoir]]:
    """One for each share of `count` queries; cores get as many, and all that a core's cache holds."""
    shares = cut(count, even(count, _QUERIES_ON_HOST, multiple=host.cores()))
    return [(share, Reservoir(share.stop - share.start, k, width)) for share in shares]


def best(kept: Sequence[tuple[slice, Reservoir]]) -> tuple[np.ndarray, np.ndarray]:
    """`Reservoir.best` of all shares' queries, in order."""
    found = host.on_threads(lambda part: part[1].best(), kept)
    ids, scores = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return ids, scores


def order_keys(scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """int64 keys, larger for a larger score, and of equal scores for the lower row; of float32 and int."""
    bits = (scores + np.float32(0)).view(np.int32)  # no -0
    ordered = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits).astype(np.int64)
    return (ordered << 32) | (0x7FFFFFFF - rows)


def rows_of(keys: np.ndarray) -> np.ndarray:
    """The rows, int32, that `order_keys` took."""
    return (0x7FFFFFFF - (keys & 0x7FFFFFFF)).astype(np.int32)


def scores_of(keys: np.ndarray) -> np.ndarray:
    """The scores, float32, that `order_keys` took."""
    ordered = (keys >> 32).astype(np.int32)
    return np.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).view(np.float32)
