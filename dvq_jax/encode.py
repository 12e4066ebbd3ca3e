"""Encodes the corpus: the list and the codes of every document, region by region, resumable.

A region of consecutive documents is finished, and where there is a store written, together. In it documents
that about as many queries want go through the devices together, to pad few; those that no query wants take
their nearest codewords and cost next to nothing. A device takes 8192 documents at once, or 1024 of the last
ones, so that there are two compiled shapes for each of a few widths.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
import shutil
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dvq_jax import codes, files
from dvq_jax.corpus import BLOCK, ROWS, by_rows, gathered, spread
from dvq_jax.data import fingerprint, gather
from dvq_jax.demand import Demand
from dvq_jax.errors import InputError
from dvq_jax.progress import Progress
from dvq_jax.quantizer import encode, rotate
from dvq_jax.types import Array, Encoding, IndexParams

_FOLDER = 'encodings'  # of a run's folder
_REGION = 2**18
# Where codes are chosen each row brings its queries along: few of them fit a core's cache, an accelerator's
# launches want many.
_CHOSEN_ROWS = {'cpu': 64}
_CHOSEN_ROWS_ELSEWHERE = 512
_KINDS = {'lists': np.int32, 'codes': np.uint8}
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


class Store:
    """An encoding on disk, memory-mapped and written as it is made.

    A folder of `lists.npy`, `codes.npy` and `state.json`, which says what they are an encoding of and which
    regions are finished.

    Args:
      folder: created where it is missing.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder = files.make_folder(folder)
        self._state = {'of': '', 'done': []}

    def open(self, identity: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
        """The arrays, as an earlier call left them if it was for the same identity; `done` says how far.

        Args:
          identity: of all that the encoding depends on.
          shapes: of 'lists', int32, and 'codes', uint8.

        Returns:
          The arrays by name.
        """
        try:
            self._state = json.loads(self._path('state.json').read_text(encoding='utf-8'))
            if self._state['of'] == identity:
                return {name: np.load(self._path(f'{name}.npy'), mmap_mode='r+') for name in shapes}
        except (OSError, ValueError, KeyError):
            pass  # there is none, or it was cut short: it is made anew
        self._state = {'of': identity, 'done': []}
        self._path('state.json').unlink(missing_ok=True)
        return {
            name: np.lib.format.open_memmap(self._path(f'{name}.npy'), 'w+', _KINDS[name], shape)
            for name, shape in shapes.items()
        }

    @property
    def done(self) -> frozenset[int]:
        """The regions that are finished."""
        return frozenset(self._state['done'])

    def finish(self, region: int, arrays: dict[str, np.ndarray]) -> None:
        """Writes a region for good."""
        for array in arrays.values():
            array.flush()
        self._state['done'].append(region)
        with files.atomic_file(self._path('state.json')) as aside:
            aside.write_text(json.dumps(self._state), encoding='utf-8')

    def _path(self, name: str) -> pathlib.Path:
        return self._folder / name


def store_of(workdir: pathlib.Path, step: int) -> Store | None:
    """Where a run keeps the encoding of a checkpoint; None where its folder cannot be written to."""
    try:
        return Store(workdir / _FOLDER / str(step))
    except InputError:
        return None


def prune_stores(workdir: pathlib.Path, kept: Sequence[int]) -> None:
    """Removes the encodings of a run's checkpoints that are not kept."""
    folder = workdir / _FOLDER
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name not in map(str, kept):
            shutil.rmtree(path)


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
    def some(docs, queries, weights, scores, lists=None):
        start = encode(params, docs, lists)
        coarse = params.centroids[start.lists]
        students = table[:, queries]
        own = codes.by_codebook(params, coarse)
        reached = jnp.einsum('mnbs,mns->nb', students, own, precision=jax.lax.Precision.HIGHEST)
        chosen = codes.choose(
            params,
            products,
            codes.by_codebook(params, rotate(params, docs) - coarse),
            start.codes.astype(jnp.int32),
            students,
            scores - reached,
            weights,
            ridge=ridge,
            sweeps=sweeps,
        )
        return start.replace(codes=chosen.astype(jnp.uint8))

    parts = (docs.astype(jnp.float32), *wanted, *(() if lists is None else (lists,)))
    few = _CHOSEN_ROWS.get(jax.default_backend(), _CHOSEN_ROWS_ELSEWHERE)
    return by_rows(some, *parts, rows=few)


@functools.cache
def _on_devices(name: str):
    functions = {
        'encode': (_encode_block, (None, 0, 0)),
        'choose': (_choose_block, (None, 0, 0, None, None, 0, 0, 0)),
        'put': (lambda x: x, (0,)),
    }
    function, in_axes = functions[name]
    return jax.pmap(function, in_axes=in_axes, devices=jax.local_devices())


def _on_every_device(array: np.ndarray) -> Array:
    return _on_devices('put')(np.broadcast_to(array, (jax.local_device_count(), *array.shape)))


class _Encoder:
    """Encodes blocks of documents; what all of them need is put on the devices once."""

    def __init__(self, params: IndexParams, audience: Audience | None):
        self._params, self._audience = params, audience
        if audience is not None:
            rotated = np.asarray(rotate(params, jnp.asarray(audience.transformed)))
            padded = np.concatenate([rotated, np.zeros_like(rotated[:1])])  # the last row pads
            table = np.ascontiguousarray(codes.by_codebook(params, padded))
            products = np.asarray(codes.codeword_products(jnp.asarray(params.codebooks)))
            self._shared = (_on_every_device(products), _on_every_device(table))

    def __call__(
        self, rows: np.ndarray, docs: np.ndarray, lists: np.ndarray | None, *, width: int
    ) -> Encoding:
        """The encoding of n documents, rows [n] of the corpus, with at most `width` queries each."""
        size = BLOCK if len(rows) > jax.local_device_count() * ROWS else ROWS
        docs, lists = spread((docs, lists), size)
        if width:
            audience = self._audience
            wanted = spread(audience.demand.of(rows, width), size)
            weights = (audience.ridge, audience.sweeps)
            part = _on_devices('choose')(self._params, *self._shared, *weights, docs, lists, wanted)
        else:
            part = _on_devices('encode')(self._params, docs, lists)
        return Encoding(lists=gathered(part.lists, len(rows)), codes=gathered(part.codes, len(rows)))


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


def _pieces(rows: np.ndarray) -> Iterator[np.ndarray]:
    """As many rows as the devices take at once: whole blocks, then the rest in small ones."""
    fan, start = jax.local_device_count(), 0
    while start < len(rows):
        size = fan * (BLOCK if len(rows) - start >= fan * BLOCK else ROWS)
        yield rows[start : start + size]
        start += size


def _identity(
    params: IndexParams, corpus: np.ndarray, lists: np.ndarray | None, audience: Audience | None
) -> str:
    """A digest of all that an encoding depends on."""
    arrays = [params.centroids, params.codebooks, params.rotation, lists]
    settings = [fingerprint(corpus)]
    if audience is not None:
        arrays += [audience.transformed, audience.demand.rows, audience.demand.ranks]
        arrays += [audience.demand.offsets, audience.demand.topk_scores]
        settings += [audience.queries, audience.prior, audience.sweeps]
    digest = hashlib.sha256(repr(settings).encode())
    for array in arrays:
        digest.update(b'-' if array is None else np.ascontiguousarray(array).data)
    return digest.hexdigest()


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
        finished is not done again, and the arrays are memory-mapped. None holds them in memory.
      quiet: print no progress.

    Returns:
      The encoding of A·N entries on the host.

    Example:
      encoding = encode_corpus(params, np.load('docs.npy', mmap_mode='r'))
    """
    count, entries = len(corpus), len(corpus) if lists is None else len(lists)
    shapes = {'codes': (entries, len(params.codebooks))}
    if lists is None:
        shapes['lists'] = (entries,)
    if store is None:
        arrays, done = {name: np.empty(shape, _KINDS[name]) for name, shape in shapes.items()}, frozenset()
    else:
        arrays = store.open(_identity(params, corpus, lists, audience), shapes)
        done = store.done
    regions = [slice(start, min(start + _REGION, count)) for start in range(0, count, _REGION)]
    finished = sum(regions[number].stop - regions[number].start for number in done)
    every = float('inf') if quiet else 5.0
    start = finished * (entries // count)
    progress = Progress('encode', total=entries, unit='documents', start=start, every=every)
    encoder = None if len(done) == len(regions) else _Encoder(params, audience)
    for number, region in enumerate(regions):
        if number in done:
            continue
        for width, rows in _groups(region, audience):
            for some in _pieces(rows):
                docs = gather(corpus, some)
                for first in range(0, entries, count):
                    own = None if lists is None else lists[first + some]
                    part = encoder(some, docs, own, width=width)
                    arrays['codes'][first + some] = part.codes
                    if lists is None:
                        arrays['lists'][some] = part.lists
                    progress.add(len(some))
        if store is not None:
            store.finish(number, arrays)
    if not quiet:
        progress.done()
    return Encoding(
        lists=arrays['lists'] if lists is None else lists, codes=arrays['codes'], copies=entries // count
    )
