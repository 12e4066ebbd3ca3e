"""Passes over the corpus in blocks: what is held is a block and the result, never the corpus.

Every local device takes a block; the last ones are padded, so that there is one compiled shape.
"""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from dvq_jax import codes
from dvq_jax.data import gather
from dvq_jax.demand import Demand
from dvq_jax.progress import Progress
from dvq_jax.quantizer import assign, encode, rotate
from dvq_jax.types import Array, Encoding, IndexParams

BLOCK = 8192
_ROWS = 1024
# Where codes are chosen each row brings its queries along: few of them fit a core's cache, an accelerator's
# launches want many.
_CHOSEN_ROWS = {'cpu': 64}
_CHOSEN_ROWS_ELSEWHERE = 512
_FEWEST = 8  # queries, to which documents with fewer are padded


@dataclasses.dataclass(frozen=True)
class Audience:
    """The queries that documents' codes are chosen for, see `codes`.

    Attributes:
      demand: the training queries.
      transformed: [Q, D] float32, the same after the tower.
      queries: how many a document gets at most.
      prior: how many more it is taken to have, from everywhere.
      sweeps: of the coordinate descent.
    """

    demand: Demand
    transformed: np.ndarray
    queries: int
    prior: float
    sweeps: int

    @property
    def ridge(self) -> float:
        """ρ = prior·E‖v_q‖²/D."""
        return self.prior * float(np.mean(np.square(self.demand.queries, dtype=np.float64)))


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


def _by_rows(function, *arrays: Array, rows: int = _ROWS):
    """Applies a function of rows to so many of them at a time; what it makes of them stays in cache."""
    cut = [x.reshape(-1, rows, *x.shape[1:]) for x in arrays]
    parts = jax.lax.map(lambda some: function(*some), tuple(cut))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), parts)


def _encode_block(params: IndexParams, docs: Array, lists: Array | None) -> Encoding:
    docs = docs.astype(jnp.float32)
    if lists is None:
        return _by_rows(lambda rows: encode(params, rows), docs)
    return _by_rows(lambda rows, own: encode(params, rows, own), docs, lists)


def _assign_block(params: IndexParams, docs: Array) -> Array:
    return _by_rows(lambda rows: assign(params, rows), docs.astype(jnp.float32))


def _choose_block(
    params: IndexParams,
    products: Array,
    table: Array,
    ridge: Array,
    sweeps: Array,
    docs: Array,
    encoding: Encoding,
    wanted: tuple[Array, Array, Array],
) -> Array:
    def some(docs, lists, start, queries, weights, scores):
        coarse = params.centroids[lists]
        students = table[:, queries]
        own = codes.by_codebook(params, coarse)
        reached = jnp.einsum('mnbs,mns->nb', students, own, precision=jax.lax.Precision.HIGHEST)
        return codes.choose(
            params,
            products,
            codes.by_codebook(params, rotate(params, docs) - coarse),
            start.astype(jnp.int32),
            students,
            scores - reached,
            weights,
            ridge=ridge,
            sweeps=sweeps,
        )

    parts = (docs, encoding.lists, encoding.codes, *wanted)
    few = _CHOSEN_ROWS.get(jax.default_backend(), _CHOSEN_ROWS_ELSEWHERE)
    return _by_rows(some, *parts, rows=few).astype(jnp.uint8)


@functools.cache
def _mapped(name: str):
    functions = {
        'encode': (_encode_block, (None, 0, None)),
        'encode in lists': (_encode_block, (None, 0, 0)),
        'assign': (_assign_block, (None, 0)),
        'choose': (_choose_block, (None, 0, 0, None, None, 0, 0, 0)),
        'put': (lambda x: x, (0,)),
    }
    function, in_axes = functions[name]
    return jax.pmap(function, in_axes=in_axes, devices=jax.local_devices())


def _block_size(count: int, fan: int) -> int:
    """Documents that each device takes at once: BLOCK, or fewer where the corpus is small."""
    return min(BLOCK, -(-count // (fan * _ROWS)) * _ROWS)


def _spread(block: np.ndarray, fan: int, size: int) -> np.ndarray:
    padding = [(0, fan * size - len(block))] + [(0, 0)] * (block.ndim - 1)
    return np.pad(block, padding).reshape(fan, size, *block.shape[1:])


def _on_every_device(array: np.ndarray) -> Array:
    return _mapped('put')(np.broadcast_to(array, (jax.local_device_count(), *array.shape)))


class _Chooser:
    """Improves encoded blocks for their audience; its tables are put on the devices once."""

    def __init__(self, params: IndexParams, audience: Audience):
        rotated = np.asarray(rotate(params, jnp.asarray(audience.transformed)))
        padded = np.concatenate([rotated, np.zeros_like(rotated[:1])])  # the last row pads
        table = np.ascontiguousarray(codes.by_codebook(params, padded))
        self._params, self._audience = params, audience
        self._table = _on_every_device(table)
        self._products = _on_every_device(np.asarray(codes.codeword_products(jnp.asarray(params.codebooks))))

    def __call__(
        self, rows: np.ndarray, docs: np.ndarray, encoding: Encoding, *, width: int, size: int
    ) -> np.ndarray:
        """The codes [n, M] of n documents with at most `width` queries each, `size` a device."""
        audience, fan = self._audience, jax.local_device_count()
        wanted = audience.demand.of(rows, width)
        chosen = _mapped('choose')(
            self._params,
            self._products,
            self._table,
            audience.ridge,
            audience.sweeps,
            *jax.tree.map(lambda part: _spread(part, fan, size), (docs, encoding, wanted)),
        )
        return np.asarray(chosen).reshape(fan * size, -1)[: len(rows)]


def _choose_codes(
    params: IndexParams, corpus: np.ndarray, encoding: Encoding, audience: Audience, *, every: float
) -> None:
    """Improves codes in place; documents with about as many queries go together, to pad few."""
    wanted = np.minimum(np.diff(audience.demand.offsets), audience.queries)
    chooser, fan = _Chooser(params, audience), jax.local_device_count()
    total = encoding.copies * int(np.count_nonzero(wanted))
    progress = Progress('choose codes', total=total, unit='documents', every=every)
    width = audience.queries
    while width:
        at_least = width // 2 if width > _FEWEST else 0
        rows = np.flatnonzero((wanted > at_least) & (wanted <= width))
        size = _block_size(max(len(rows), 1), fan)
        for first in range(0, len(encoding.lists), encoding.documents):
            for start in range(0, len(rows), fan * size):
                some = rows[start : start + fan * size]
                now = Encoding(lists=encoding.lists[first + some], codes=encoding.codes[first + some])
                encoding.codes[first + some] = chooser(
                    some, gather(corpus, some), now, width=width, size=size
                )
                progress.add(len(some))
        width = at_least
    if every < float('inf'):
        progress.done()


def encode_corpus(
    params: IndexParams,
    corpus: np.ndarray,
    lists: np.ndarray | None = None,
    *,
    audience: Audience | None = None,
    quiet: bool = False,
) -> Encoding:
    """Encodes every document, see `quantizer.encode`.

    Args:
      params: the index.
      corpus: [N, D] float16 or float32, may be memory-mapped.
      lists: [A·N] int32, the documents' lists where they are decided, entry e that of document e mod N; None
        assigns the nearest.
      audience: the queries to choose codes for; None takes the nearest codewords.
      quiet: print no progress.

    Returns:
      The encoding of A·N entries on the host.

    Example:
      encoding = encode_corpus(params, np.load('docs.npy', mmap_mode='r'))
    """
    count, fan = len(corpus), jax.local_device_count()
    size = _block_size(count, fan)
    entries = count if lists is None else len(lists)
    out = Encoding(
        lists=np.empty(entries, np.int32),
        codes=np.empty((entries, len(params.codebooks)), np.uint8),
        copies=entries // count,
    )
    every = float('inf') if quiet else 5.0
    progress = Progress('encode', total=entries, unit='documents', every=every)
    for first in range(0, entries, count):
        for start in range(0, count, fan * size):
            rows = slice(start, min(start + fan * size, count))
            own = slice(first + rows.start, first + rows.stop)
            docs = _spread(corpus[rows], fan, size)
            if lists is None:
                part = _mapped('encode')(params, docs, None)
            else:
                part = _mapped('encode in lists')(params, docs, _spread(lists[own], fan, size))
            real = rows.stop - rows.start
            out.lists[own] = np.asarray(part.lists).reshape(-1)[:real]
            out.codes[own] = np.asarray(part.codes).reshape(fan * size, -1)[:real]
            progress.add(real)
    if not quiet:
        progress.done()
    if audience is not None:
        _choose_codes(params, corpus, out, audience, every=every)
    return out


def assign_corpus(params: IndexParams, corpus: np.ndarray) -> np.ndarray:
    """The nearest list of every document, see `quantizer.assign`.

    Args:
      params: the index.
      corpus: [N, D] float16 or float32, may be memory-mapped.

    Returns:
      [N] int32 on the host.
    """
    count, fan = len(corpus), jax.local_device_count()
    size = _block_size(count, fan)
    lists = np.empty(count, np.int32)
    progress = Progress('assign', total=count, unit='documents')
    for start in range(0, count, fan * size):
        rows = slice(start, min(start + fan * size, count))
        part = _mapped('assign')(params, _spread(corpus[rows], fan, size))
        lists[rows] = np.asarray(part).reshape(-1)[: rows.stop - start]
        progress.add(rows.stop - start)
    progress.done()
    return lists
