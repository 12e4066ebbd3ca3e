"""The teacher's exact Top-K: for each query the K documents with the largest inner product (eq. 4).

The corpus streams by in blocks, once for each block of queries (the unit of resumption); tiles of queries
keep a running Top-K. Neither [Q, N] scores nor the corpus are ever held whole. The shapes of the products do
not depend on the number of devices, and so neither do the results.
"""

import functools
import hashlib
import math
import os
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dvq_jax import files
from dvq_jax.data import fingerprint
from dvq_jax.errors import InputError
from dvq_jax.progress import Progress
from dvq_jax.types import Array

_TILE = 256  # queries that a device scores at once


def mine(
    corpus: np.ndarray,
    queries: np.ndarray,
    k: int,
    *,
    cache: str | os.PathLike | None = None,
    devices: Sequence[jax.Device] | None = None,
    query_block: int = 8192,
    corpus_block: int = 131_072,
) -> tuple[np.ndarray, np.ndarray]:
    """The k largest ⟨v_q, v_d⟩ of each query over the whole corpus, larger first, ties by lowest row.

    Args:
      corpus: [N, D] float16 or float32, usually memory-mapped.
      queries: [Q, D] float16 or float32.
      k: how many documents a query gets, at most N.
      cache: a folder for finished query blocks; another call with the same inputs goes on from there.
        None keeps nothing.
      devices: what to compute on; None takes all local devices.
      query_block: at most so many queries are finished, and stored, together; each such block reads the
        corpus once.
      corpus_block: at most so many documents are scored at once; a device holds [256, corpus_block] scores
        and [corpus_block, D] float32 documents, twice.

    Returns:
      ids [Q, k] int32, rows of the corpus, and scores [Q, k] float32.

    Raises:
      InputError: k is not in [1, N], or the cache folder cannot be written to.

    Example:
      ids, scores = mine(np.load('docs.npy', mmap_mode='r'), queries, 200)
    """
    if not 1 <= k <= len(corpus):
        raise InputError(f'top {k} of {len(corpus)} documents does not exist; choose 1 to {len(corpus)}.')
    devices = devices or jax.local_devices()
    size = _even(len(queries), query_block)
    blocks = [slice(start, min(start + size, len(queries))) for start in range(0, len(queries), size)]
    paths = {}
    if cache is not None:
        inputs = (fingerprint(corpus), fingerprint(queries), k, size, corpus_block, devices[0].platform)
        name = hashlib.sha256(repr(inputs).encode()).hexdigest()[:16]
        paths = {block.start: files.make_folder(cache) / f'{name}.{block.start}.npz' for block in blocks}
    found = {start for start, path in paths.items() if path.exists()}
    finished = sum(block.stop - block.start for block in blocks if block.start in found)
    total = len(queries) * len(corpus)
    progress = Progress('mine', total=total, unit='scores', start=finished * len(corpus))
    search = _searcher(corpus, k, devices=devices, query_block=size, corpus_block=corpus_block)
    ids = np.empty((len(queries), k), np.int32)
    scores = np.empty((len(queries), k), np.float32)
    for block in blocks:
        if block.start in found:
            with np.load(paths[block.start]) as stored:
                ids[block], scores[block] = stored['ids'], stored['scores']
            continue
        ids[block], scores[block] = search(np.asarray(queries[block], np.float32), progress)
        if paths:
            with files.atomic_file(paths[block.start]) as aside, open(aside, 'wb') as file:
                np.savez(file, ids=ids[block], scores=scores[block])
    progress.done()
    return ids, scores


def _even(total: int, largest: int) -> int:
    """The size of equal blocks, as few as possible and none above `largest`, that hold `total`."""
    return -(-total // -(-total // largest))


def _searcher(
    corpus: np.ndarray, k: int, *, devices: Sequence[jax.Device], query_block: int, corpus_block: int
) -> Callable[[np.ndarray, Progress], tuple[np.ndarray, np.ndarray]]:
    """Returns search(queries [q ≤ query_block, D] float32, progress) -> ids [q, k], scores [q, k]."""
    width = _even(len(corpus), corpus_block)
    # `group` documents share a maximum: Top-K over width/group maxima and over k·group members is least work
    # where the two are equal.
    group = 2 ** max(0, round(math.log2(width / k) / 2))
    width = -(-width // group) * group
    tile = min(_TILE, query_block)
    tiles = -(-query_block // (tile * len(devices)))
    merge = functools.partial(_merge_tiles, group=group, total=len(corpus))
    merge = jax.pmap(merge, in_axes=(0, 0, 0, 0, None), devices=devices, donate_argnums=(0, 1))
    widen = jax.pmap(lambda _, docs: docs.astype(jnp.float32), in_axes=(0, None), devices=devices)

    def search(queries: np.ndarray, progress: Progress) -> tuple[np.ndarray, np.ndarray]:
        shape = (len(devices), tiles, tile)
        padded = np.zeros((math.prod(shape), queries.shape[1]), np.float32)
        padded[: len(queries)] = queries
        padded = padded.reshape(*shape, -1)
        best, ids = np.full((*shape, k), -np.inf, np.float32), np.zeros((*shape, k), np.int32)
        scored = 0
        for start in range(0, len(corpus), width):
            docs = corpus[start : start + width]
            count = len(docs)
            docs = widen(np.arange(len(devices)), np.pad(docs, ((0, width - count), (0, 0))))
            jax.block_until_ready(best)  # only now: the read above overlapped the block before
            progress.add(scored)
            best, ids = merge(best, ids, padded, docs, start)
            scored = len(queries) * count
        ids, best = (np.asarray(x).reshape(-1, k)[: len(queries)] for x in (ids, best))
        progress.add(scored)
        return ids, best

    return search


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
    scores = jnp.matmul(queries, docs.T, precision=jax.lax.Precision.HIGHEST).reshape(-1, groups, group)
    rows = start + jnp.arange(groups * group, dtype=jnp.int32).reshape(groups, group)
    maxima = jnp.max(jnp.where(rows < total, scores, -jnp.inf), axis=-1)
    _, chosen = jax.lax.top_k(maxima, min(k, groups))
    chosen = jnp.sort(chosen, axis=-1)
    candidates = jnp.take_along_axis(scores, chosen[:, :, None], axis=1).reshape(len(queries), -1)
    rows = rows[chosen].reshape(len(queries), -1)
    candidates = jnp.where(rows < total, candidates, -jnp.inf)
    best, places = jax.lax.top_k(jnp.concatenate([best, candidates], axis=-1), k)
    return best, jnp.take_along_axis(jnp.concatenate([ids, rows], axis=-1), places, axis=-1)
