"""Reference IVF + PQ search: the P best lists of each query, their documents by code, the best k of them.

Only the documents of the probed lists are scored: this is what a served index computes, and what exporters
are checked against. A document of list l with codes c scores ⟨q·R, o_l⟩ + Σ_m T_m[c_m], where
T_m[j] = ⟨(q·R)^m, c_j^m⟩ is the query's lookup table.

The floor is one byte and one addition per document scanned and codebook; XLA's gathers reach a fraction of
it on a CPU, so that serving belongs to an exported index.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from dvq_jax.errors import InputError
from dvq_jax.quantizer import rotate, split
from dvq_jax.types import Array, Encoding, IndexParams

_PRECISION = jax.lax.Precision.HIGHEST
_CODES_PER_BLOCK = 2**26
_PROBE_BLOCK = 1024


@dataclasses.dataclass(frozen=True)
class InvertedLists:
    """Documents sorted by list, each in `copies` of them.

    Attributes:
      rows: [copies·N] int32, rows of the corpus in the order of their lists.
      codes: [copies·N, M] uint8, in the same order.
      offsets: [L + 1] int32; list l is rows[offsets[l]:offsets[l + 1]].
      copies: lists that a document is in.
    """

    rows: Array
    codes: Array
    offsets: Array
    copies: int


def invert(encoding: Encoding, lists: int) -> InvertedLists:
    """Sorts encoded documents by list, on the device.

    Args:
      encoding: N documents, arrays on the host or the device.
      lists: L.

    Returns:
      The inverted lists; documents of a list stay in the order of the corpus.
    """
    order = np.argsort(np.asarray(encoding.lists), kind='stable')
    sizes = np.bincount(np.asarray(encoding.lists), minlength=lists)
    return InvertedLists(
        rows=jnp.asarray(order % encoding.documents, jnp.int32),
        codes=jnp.asarray(np.asarray(encoding.codes)[order]),
        offsets=jnp.asarray(np.concatenate([[0], np.cumsum(sizes)]), jnp.int32),
        copies=encoding.copies,
    )


@functools.partial(jax.jit, static_argnames='nprobe')
def _probe(params: IndexParams, offsets: Array, queries: Array, *, nprobe: int) -> tuple[Array, Array, Array]:
    """The nprobe best lists by inner product [q, P], their scores [q, P], the documents in them [q]."""
    scores = jnp.matmul(rotate(params, queries), params.centroids.T, precision=_PRECISION)
    scores, lists = jax.lax.top_k(scores, nprobe)
    return lists, scores, jnp.sum(offsets[lists + 1] - offsets[lists], axis=-1)


def _once(scores: Array, rows: Array) -> Array:
    """Scores [q, n] with a document's mean where its row first stands, and -inf where it stands again."""
    places = jnp.arange(rows.shape[1])
    real = jnp.isfinite(scores)
    same = (rows[:, :, None] == rows[:, None, :]) & real[:, None, :]
    again = jnp.any(same & (places < places[:, None]), axis=-1)
    total = jnp.sum(jnp.where(same, scores[:, None, :], 0.0), axis=-1)
    mean = total / jnp.maximum(jnp.sum(same, axis=-1), 1)
    return jnp.where(real & ~again, mean, -jnp.inf)


@functools.partial(jax.jit, static_argnames=('k', 'width', 'copies'))
def _scan(
    params: IndexParams,
    inverted: tuple[Array, Array, Array],
    queries: Array,
    lists: Array,
    coarse: Array,
    *,
    k: int,
    width: int,
    copies: int,
) -> tuple[Array, Array]:
    """Scores the documents of the probed lists, at most `width` a query, and keeps the best k.

    Of a document's copies, those among the best copies·k entries count, as one, by the mean of their scores:
    two quantizations err less than one. ScaNN does the same.
    """
    rows, codes, offsets = inverted
    sizes = offsets[lists + 1] - offsets[lists]
    ends = jnp.cumsum(sizes, axis=-1)
    places = jnp.arange(width, dtype=jnp.int32)
    real = places < ends[:, -1:]
    probe = jax.vmap(functools.partial(jnp.searchsorted, side='right'), in_axes=(0, None))(ends, places)
    probe = jnp.minimum(probe, lists.shape[1] - 1)
    shifts = offsets[lists] - (ends - sizes)
    slots = jnp.where(real, jnp.take_along_axis(shifts, probe, axis=-1) + places, 0)
    parts = split(params, rotate(params, queries))
    tables = jnp.einsum('qms,mks->qmk', parts, params.codebooks, precision=_PRECISION)
    books, words = tables.shape[1:]
    flat = codes[slots].astype(jnp.int32) + jnp.arange(books) * words
    tables = tables.reshape(len(tables), -1)
    fine = jax.vmap(lambda table, index: jnp.sum(table[index], axis=-1))(tables, flat)
    scores = jnp.where(real, jnp.take_along_axis(coarse, probe, axis=-1) + fine, -jnp.inf)
    best, chosen = jax.lax.top_k(scores, min(copies * k, width))
    found = jnp.take_along_axis(rows[slots], chosen, axis=-1)
    if copies > 1:
        best, chosen = jax.lax.top_k(_once(best, found), min(k, width))
        found = jnp.take_along_axis(found, chosen, axis=-1)
    return best, jnp.where(jnp.isfinite(best), found, -1)


def check_nprobe(nprobe: int, lists: int) -> None:
    """Raises InputError unless 1 ≤ nprobe ≤ lists."""
    if not 1 <= nprobe <= lists:
        raise InputError(f'nprobe is {nprobe}; the index has {lists} lists, probe between 1 and {lists}.')


def search(
    params: IndexParams, encoding: Encoding | InvertedLists, queries: np.ndarray, *, k: int, nprobe: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best k documents in the nprobe lists with the largest ⟨q·R, o⟩.

    Args:
      params: the index.
      encoding: the documents; inverted lists save sorting them again.
      queries: [q, D] float, in the caller's space, after the query tower.
      k: documents a query gets.
      nprobe: P, lists a query visits.

    Returns:
      scores [q, k] float32, larger first, and rows [q, k] int32 of the corpus; where the lists hold fewer
      than k documents the rest is -inf and -1.

    Raises:
      InputError: nprobe is not in [1, L].

    Example:
      scores, rows = search(params, encoding, queries, k=100, nprobe=10)
    """
    check_nprobe(nprobe, len(params.centroids))
    lists = _inverted(params, encoding)
    arrays = (lists.rows, lists.codes, lists.offsets)
    probed, coarse, sizes = _probe_all(params, lists.offsets, queries, nprobe)
    scores = np.full((len(queries), k), -np.inf, np.float32)
    rows = np.full((len(queries), k), -1, np.int32)
    # Queries that scan about as many documents share a block: its width is a power of two, for few shapes.
    order = np.argsort(sizes, kind='stable')
    start = 0
    while start < len(order):
        width, block = _block_shape(sizes[order[start:]], total=len(lists.rows), books=lists.codes.shape[1])
        picked = order[start : start + block]
        padded = np.resize(picked, block)
        best, found = _scan(
            params,
            arrays,
            jnp.asarray(queries[padded], jnp.float32),
            probed[padded],
            coarse[padded],
            k=k,
            width=width,
            copies=lists.copies,
        )
        columns = best.shape[1]
        scores[picked, :columns] = np.asarray(best)[: len(picked)]
        rows[picked, :columns] = np.asarray(found)[: len(picked)]
        start += block
    return scores, rows


def documents_scanned(
    params: IndexParams, encoding: Encoding | InvertedLists, queries: np.ndarray, *, nprobe: int
) -> np.ndarray:
    """How many entries a search scores for each query: what P costs. A document in two lists may count twice.

    Args:
      params: the index.
      encoding: the documents.
      queries: [q, D] float, after the query tower.
      nprobe: P.

    Returns:
      [q] int32.
    """
    check_nprobe(nprobe, len(params.centroids))
    return _probe_all(params, _inverted(params, encoding).offsets, queries, nprobe)[2]


def _inverted(params: IndexParams, encoding: Encoding | InvertedLists) -> InvertedLists:
    return encoding if isinstance(encoding, InvertedLists) else invert(encoding, len(params.centroids))


def _probe_all(
    params: IndexParams, offsets: Array, queries: np.ndarray, nprobe: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    parts = []
    for start in range(0, len(queries), _PROBE_BLOCK):
        block = np.asarray(queries[start : start + _PROBE_BLOCK], np.float32)
        padded = np.pad(block, ((0, _PROBE_BLOCK - len(block)), (0, 0)))
        parts.append([np.asarray(x)[: len(block)] for x in _probe(params, offsets, padded, nprobe=nprobe)])
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


def _block_shape(sizes: np.ndarray, *, total: int, books: int) -> tuple[int, int]:
    """Width and number of queries of the next block, given what each remaining query scans, ascending."""
    block = 1
    while block < len(sizes):
        last = sizes[min(2 * block, len(sizes)) - 1]
        if 2 * block * _width(last, total) * books > _CODES_PER_BLOCK:
            break
        block *= 2
    return _width(sizes[min(block, len(sizes)) - 1], total), block


def _width(size: int, total: int) -> int:
    return min(1 << max(int(size) - 1, 127).bit_length(), total)
