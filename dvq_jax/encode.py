"""Encodes the corpus: the list and the codes of every document, region by region, resumable.

A region of consecutive documents is finished, and where there is a store written, together, see `blocks`. In
it documents that about as many queries want go through the devices together, to pad few; those that no query
wants take their nearest codewords and cost next to nothing. A device takes 8192 documents at once, or 1024 of
the last ones, so that there are two compiled shapes for each of a few widths; a host's core takes 256.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dvq_jax import blocks, codes, host, host_encode, towers
from dvq_jax.corpus import BLOCK, ROWS, by_rows, gathered, one_behind, replicated, rows_at_once, spread
from dvq_jax.data import fingerprint, gather
from dvq_jax.demand import Demand
from dvq_jax.progress import Progress
from dvq_jax.quantizer import encode, rotate
from dvq_jax.store import Store
from dvq_jax.types import Array, Encoding, IndexParams

_REGION = 2**18
# Where codes are chosen each row brings its queries along: few of them fit a core's cache, an accelerator's
# launches want as many as its memory holds, here so many numbers of queries. A core of a host takes a few of
# those at a call.
_CHOSEN_ROWS_ON_HOST, _CHOSEN_TILE_ON_HOST, _CHOSEN_NUMBERS = 32, 256, 2**27
_FEWEST = 8  # queries, to which documents with fewer are padded
_TILE = 8  # rows of a float32 array that lie together in a TPU's memory


@dataclasses.dataclass(frozen=True)
class Audience:
    """The queries that documents' codes are chosen for, see `codes`.

    Attributes:
      demand: the training queries.
      tower: the query tower that searches go through.
      queries: how many a document gets at most.
      prior: how many more it is taken to have, from everywhere.
      sweeps: of the coordinate descent.
    """

    demand: Demand
    tower: towers.Tower
    queries: int
    prior: float
    sweeps: int

    @functools.cached_property
    def ridge(self) -> float:
        """ρ = prior·E‖v_q‖²/D."""
        return self.prior * float(np.mean(np.square(self.demand.queries, dtype=np.float64)))


def _encode_block(params: IndexParams, docs: Array, lists: Array | None) -> Encoding:
    docs = docs.astype(jnp.float32)
    if lists is None:
        return by_rows(lambda rows: encode(params, rows), docs)
    return by_rows(lambda rows, own: encode(params, rows, own), docs, lists)


def _choose_block(
    params: IndexParams,
    products: Array,
    table: Array,
    ridge: Array,
    sweeps: Array,
    docs: Array,
    lists: Array | None,
    wanted: tuple[Array, Array, Array],
) -> Encoding:
    def some(docs: Array, rows: Array, weights: Array, scores: Array, *own: Array) -> Encoding:
        settings = {'ridge': ridge, 'sweeps': sweeps}
        return codes.encode_for(params, products, docs, table[rows], weights, scores, *own, **settings)

    parts = (docs.astype(jnp.float32), *wanted, *(() if lists is None else (lists,)))
    each = wanted[0].shape[1] * docs.shape[1]
    most = 1 << (max(1, _CHOSEN_NUMBERS // each).bit_length() - 1)
    few = _CHOSEN_ROWS_ON_HOST if host.is_all_there_is() else min(len(docs), most)
    return by_rows(some, *parts, rows=few)


@functools.cache
def _compiled(name: str):
    functions = {
        'encode': (_encode_block, (0, 0, 0)),
        'choose': (_choose_block, (0, 0, 0, None, None, 0, 0, 0)),
    }
    function, in_axes = functions[name]
    return jax.pmap(function, in_axes=in_axes, devices=jax.local_devices())


# Threads call it side by side.
_choose_on_core = jax.jit(_choose_block, compiler_options={'xla_cpu_multi_thread_eigen': False})


class Encoder:
    """The encoding of a corpus, cut into regions; a `blocks.Work`.

    A region is 'codes' [copies, n, M] uint8 and, where lists are not decided, 'lists' [1, n] int32.

    Args:
      params, corpus, lists, audience: as `encode_corpus` takes them.

    Attributes:
      lists: as given.
      copies: A.
      shapes: of the whole encoding's arrays, by name.
    """

    label, unit = 'encode', 'documents'

    def __init__(
        self, params: IndexParams, corpus: np.ndarray, lists: np.ndarray | None, audience: Audience | None
    ):
        count = len(corpus)
        self._params, self._corpus, self._audience = params, corpus, audience
        self.lists, self.copies = lists, 1 if lists is None else len(lists) // count
        self.blocks = blocks.cut(count, _REGION)
        self.shapes = {'codes': (self.copies * count, len(params.codebooks))}
        if lists is None:
            self.shapes['lists'] = (count,)

    def identity(self) -> str:
        """A digest of all that the encoding depends on; nothing computed, which differs with the platform."""
        params, audience = self._params, self._audience
        arrays = [params.centroids, params.codebooks, params.rotation, self.lists]
        settings = [fingerprint(self._corpus)]
        if audience is not None:
            demand, tower = audience.demand, audience.tower
            arrays += [demand.queries, demand.rows, demand.ranks, demand.offsets, demand.topk_scores]
            arrays += jax.tree.leaves(tower.params)
            settings += [audience.queries, audience.prior, audience.sweeps]
            settings += [tower.name, towers.settings(tower.args), demand.texts]
        digest = hashlib.sha256(repr(settings).encode())
        for array in arrays:
            digest.update(b'-' if array is None else np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def size(self, number: int) -> int:
        """How many documents a region has, counting copies."""
        region = self.blocks[number]
        return self.copies * (region.stop - region.start)

    @functools.cached_property
    def _shared(self) -> tuple[Array, Array]:
        """What all regions need, on the devices."""
        demand = self._audience.demand
        transformed = towers.apply(self._audience.tower, demand.queries, demand.texts)
        rotated = np.asarray(rotate(self._params, jnp.asarray(transformed)))
        # Row Q pads documents' queries. A TPU takes whole tiles of rows as they are, others it would copy.
        table = np.pad(rotated, ((0, _TILE - len(rotated) % _TILE), (0, 0)))
        products = np.asarray(codes.codeword_products(jnp.asarray(self._params.codebooks)))
        return _placed((products, table))

    @functools.cached_property
    def _index(self) -> IndexParams:
        """The index on the devices."""
        return _placed(self._params)

    def __call__(self, number: int, progress: Progress) -> dict[str, np.ndarray]:
        """Encodes a region."""
        region = self.blocks[number]
        lists = None if self.lists is None else self.lists.reshape(self.copies, -1)
        copies = [None] if lists is None else lists
        size, books = region.stop - region.start, len(self._params.codebooks)
        made = {'codes': np.empty((len(copies), size, books), np.uint8)}
        if lists is None:
            made['lists'] = np.empty((1, size), np.int32)
        for copy, some, part in one_behind(self._launched(region, copies)):
            for name, array in made.items():
                array[copy, some - region.start] = gathered(getattr(part, name), len(some))
            progress.add(len(some))
        return made

    def _launched(
        self, region: slice, copies: Sequence[np.ndarray | None]
    ) -> Iterator[tuple[int, np.ndarray, Encoding]]:
        """(copy, rows, their encoding [devices, n, ...], which devices may still be at)."""
        if not host.is_all_there_is():
            for copy, some, launch in one_behind(self._sent(region, copies)):
                yield copy, some, launch()
            return
        for width, rows in _groups(region, self._audience):
            for some in _pieces(rows, whole=not width):
                for copy, own in enumerate(copies):
                    part = self._on_host(some, None if own is None else own[some], width=width)
                    yield copy, some, jax.tree.map(lambda x: x[None], part)

    def _on_host(self, rows: np.ndarray, lists: np.ndarray | None, *, width: int) -> Encoding:
        """The encoding [n, ...] of documents that at most `width` queries want."""
        if not width:
            return host_encode.encode(self._params, self._corpus, rows, lists)
        audience = self._audience
        shared = (self._index, *self._shared, audience.ridge, audience.sweeps)

        def tile(part: slice) -> Encoding:
            count = part.stop - part.start
            places = np.pad(np.arange(part.start, part.stop), (0, _CHOSEN_TILE_ON_HOST - count), 'edge')
            some, own = rows[places], None if lists is None else lists[places]
            wanted = audience.demand.of(some, width)
            found = _choose_on_core(*shared, gather(self._corpus, some), own, wanted)
            return jax.tree.map(lambda x: np.asarray(x)[:count], found)

        tiles = host.on_threads(tile, blocks.cut(len(rows), _CHOSEN_TILE_ON_HOST))
        return jax.tree.map(lambda *parts: np.concatenate(parts), *tiles)

    def _sent(
        self, region: slice, copies: Sequence[np.ndarray | None]
    ) -> Iterator[tuple[int, np.ndarray, Callable[[], Encoding]]]:
        """(copy, rows, what launches their encoding), once all that it needs is on its way to the devices."""
        for width, rows in _groups(region, self._audience):
            for some in _pieces(rows, whole=False):
                size = rows_at_once(len(some))
                docs = spread(gather(self._corpus, some, copy=False, kind=self._corpus.dtype), size)
                wanted = spread(self._audience.demand.of(some, width), size) if width else None
                for copy, own in enumerate(copies):
                    lists = None if own is None else spread(own[some], size)
                    yield copy, some, functools.partial(self._launch, docs, lists, wanted)

    def _launch(self, docs: Array, lists: Array | None, wanted: tuple[Array, ...] | None) -> Encoding:
        """The encoding [devices, n, ...]; codes are chosen where it is told who wants the documents."""
        if wanted is None:
            return _compiled('encode')(self._index, docs, lists)
        settings = (self._audience.ridge, self._audience.sweeps)
        return _compiled('choose')(self._index, *self._shared, *settings, docs, lists, wanted)


def _placed(tree: Any) -> Any:
    """What all documents need: a copy on each local accelerator, or one for the threads of a host."""
    return jax.device_put(tree) if host.is_all_there_is() else replicated(tree)


def _groups(region: slice, audience: Audience | None) -> Iterator[tuple[int, np.ndarray]]:
    """(width, rows) of the documents of a region that go together; `width` 0 takes nearest codewords."""
    rows = np.arange(region.start, region.stop)
    if audience is None:
        yield 0, rows
        return
    offsets = audience.demand.offsets[region.start : region.stop + 1]
    wanted = np.minimum(np.diff(offsets), audience.queries)
    width = audience.queries
    while width:
        at_least = width // 2 if width > _FEWEST else 0
        yield width, rows[(wanted > at_least) & (wanted <= width)]
        width = at_least
    yield 0, rows[wanted == 0]


def _pieces(rows: np.ndarray, *, whole: bool) -> Iterator[np.ndarray]:
    """All rows at once; or as many as the devices take, whole blocks and then the rest in small ones."""
    if whole and len(rows):
        yield rows
        return
    fan, start = jax.local_device_count(), 0
    while start < len(rows):
        size = fan * (BLOCK if len(rows) - start >= fan * BLOCK else ROWS)
        yield rows[start : start + size]
        start += size


def encode_corpus(
    params: IndexParams,
    corpus: np.ndarray,
    lists: np.ndarray | None = None,
    *,
    audience: Audience | None = None,
    store: Store | None = None,
    quiet: bool = False,
) -> Encoding:
    """Encodes every document, see `quantizer.encode`.

    Args:
      params: the index.
      corpus: [N, D] float16 or float32, may be memory-mapped.
      lists: [A·N] int32, the documents' lists where they are decided, entry e that of document e mod N; None
        assigns the nearest.
      audience: the queries to choose codes for; None takes the nearest codewords.
      store: where to keep the encoding: what an interrupted or earlier call for the same arguments has
        finished is not done again, several processes share the work, and the arrays are memory-mapped. None
        holds them in memory.
      quiet: print no progress of what is done in a few seconds.

    Returns:
      The encoding of A·N entries on the host.

    Example:
      encoding = encode_corpus(params, np.load('docs.npy', mmap_mode='r'))
    """
    return collect(Encoder(params, corpus, lists, audience), store, quiet=quiet)


def collect(encoder: Encoder, store: Store | None = None, *, quiet: bool = False) -> Encoding:
    """Encodes the regions that are not finished, and makes one encoding of all.

    Args:
      encoder: of the corpus.
      store: see `encode_corpus`.
      quiet: print no progress of what is done in a few seconds.

    Returns:
      The encoding of A·N entries on the host.
    """
    arrays = None
    if store is not None:
        store.begin(encoder.identity())
        arrays = store.read(encoder.shapes)
    if arrays is None:
        parts = blocks.finish(encoder, None if store is None else store.parts, quiet=quiet)
        if store is None:
            found = [parts[number] for number in range(len(encoder.blocks))]
            arrays = {
                name: np.concatenate([part[name] for part in found], axis=1).reshape(shape)
                for name, shape in encoder.shapes.items()
            }
        else:
            store.join(encoder.blocks, encoder.shapes)
            arrays = store.read(encoder.shapes)
    lists = arrays['lists'] if encoder.lists is None else encoder.lists
    return Encoding(lists=lists, codes=arrays['codes'], copies=encoder.copies)
