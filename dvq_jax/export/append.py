"""Adds documents to a ScaNN index, by its own frozen parameters.

The index folder is all that is needed. Centroids, codebooks, the query transform and the old documents stay
as they are, byte by byte; a new document goes to its nearest list, or its two nearest where the index has
documents in two, and takes its nearest codewords. Training also asks the queries that want a document, and
none are known for the new ones: where very many are added, or they are of another kind, train again.
"""

import dataclasses
import importlib.metadata
import os
import pathlib
import shutil
from collections.abc import Sequence

import numpy as np

from dvq_jax import data, files
from dvq_jax.corpus import assign_corpus
from dvq_jax.encode import encode_corpus
from dvq_jax.errors import InputError
from dvq_jax.export import beside, ids, manifest, protos, scann, transform, vectors
from dvq_jax.export.manifest import Manifest
from dvq_jax.export.verify import verify
from dvq_jax.progress import Progress
from dvq_jax.types import Encoding, IndexParams

_BLOCK = 8192


@dataclasses.dataclass(frozen=True)
class Appended:
    """An index with documents added.

    Attributes:
      manifest: its manifest.
      added: how many documents are new.
      clipped: how many of their numbers lay beyond what an int8 vector for reordering can hold.
    """

    manifest: Manifest
    added: int
    clipped: int


@dataclasses.dataclass(frozen=True)
class _Old:
    """The index before; all of its files are checked."""

    folder: pathlib.Path
    stated: Manifest
    params: IndexParams
    nprobe: int
    arrays: dict[str, np.ndarray]

    @property
    def multipliers(self) -> np.ndarray | None:
        return self.arrays.get(vectors.MULTIPLIERS)


def append(
    out: str | os.PathLike,
    *,
    index: str | os.PathLike,
    corpus: np.ndarray,
    doc_ids: Sequence[str] | None = None,
    source: str = 'the new documents',
) -> Appended:
    """Writes an index of an index's documents and new ones, whose rows follow.

    It is written aside, opened, held against the reference search, and renamed. Vectors for reordering go
    through block by block; codes are held, as ScaNN holds them when the index is opened.

    Vectors in int8 keep the scale of each dimension, so that the old ones stay; a new number beyond it is
    clipped, and counted in the result.

    Example:
      append.append('NEW', index='INDEX', corpus=np.load('new.npy', mmap_mode='r'), doc_ids=ids)

    Args:
      out: the folder to create.
      index: the index folder, one that `scann.write` or this function wrote.
      corpus: [n, D] float16 or float32, in the caller's space, may be memory-mapped.
      doc_ids: n ids, none of them in the index; None takes the row numbers in the index.
      source: what messages call the corpus by, such as its path.

    Returns:
      What was written.

    Raises:
      InputError: `index` is not a whole index of ScaNN, documents or ids that do not fit it, or `out` exists
        or cannot be written.
      MismatchError: ScaNN does not search what was written as the reference does.
    """
    old = _open(pathlib.Path(index))
    _check_documents(old.stated, corpus, source)
    first = old.stated.documents
    doc_ids = [str(first + row) for row in range(len(corpus))] if doc_ids is None else doc_ids
    if len(doc_ids) != len(corpus):
        raise InputError(f'{source}: has {len(corpus)} rows and {len(doc_ids)} ids; give one for each.')
    _check_ids(old, doc_ids, source)
    with files.atomic_folder(out) as folder:
        encoding = _encode(old, corpus)
        for name in (*protos.NAMES, transform.NAME, *beside.encoder_files(old.stated)):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(old.folder / name, folder / name)
        fresh = scann.stored(encoding)
        for name, rows in fresh.items():
            grown = _grown(folder / name, old.arrays[name], len(rows))
            _copy(grown[len(old.arrays[name]) :], rows)
            grown.flush()
        scann.write_assets(folder, old.stated.reorder, encoding.copies)
        rounding, clipped = _write_vectors(folder, old, corpus)
        written = _write_beside(folder, old, doc_ids)
        verify(
            scann.open_engine(folder, written, reorder_factor=1),
            params=old.params,
            encoding=_joined(old, fresh),
            lookup=written.lookup,
            documents=None if rounding is None else lambda rows: _documents(old, corpus, rows),
            rounding=rounding,
            nprobe=old.nprobe,
            added=len(corpus),
        )
    return Appended(written, len(corpus), clipped)


def _open(folder: pathlib.Path) -> _Old:
    """Reads an index folder, after the checks of `open_index`."""
    stated = manifest.read(folder)
    if stated.engine != 'scann':
        raise InputError(
            f'{folder}: is an index of FAISS; add to it with faiss itself (index.add), or export the run for '
            'ScaNN and add to that.'
        )
    manifest.check(folder, stated, (*beside.NAMES, *beside.encoder_files(stated), *scann.names(stated)))
    contents = scann.read(folder, stated)
    rotation, _ = transform.read(
        folder / transform.NAME, name=stated.tower, args=stated.tower_args, dim=stated.dim
    )
    stored = contents.parameters
    params = IndexParams(stored.centroids, stored.codebooks, rotation)
    old = _Old(folder, stated, params, stored.nprobe, contents.arrays)
    if old.multipliers is not None:
        good = np.isfinite(old.multipliers) & (old.multipliers > 0)
        manifest.require(folder / vectors.MULTIPLIERS, bool(good.all()))
    return old


def _check_documents(stated: Manifest, corpus: np.ndarray, source: str) -> None:
    if corpus.ndim != 2 or not len(corpus) or corpus.shape[1] != stated.dim:
        raise InputError(
            f'{source}: is {list(corpus.shape)} and the index takes [documents, {stated.dim}]; encode with '
            'the model that encoded its documents.'
        )
    data.check_finite(corpus, source)


def _check_ids(old: _Old, doc_ids: Sequence[str], source: str) -> None:
    """Checks that no id stands twice, among the new ones or with the old ones."""
    rows = {name: row for row, name in enumerate(doc_ids)}
    if len(rows) != len(doc_ids):
        name = next(name for row, name in enumerate(doc_ids) if rows[name] != row)
        raise InputError(f'{source}: the id {name!r} stands twice; give each document an id of its own.')
    path = old.folder / ids.NAME
    for line, name in enumerate(ids.read(path, count=old.stated.documents), start=1):
        if name in rows:
            raise InputError(
                f'{source}: row {rows[name]} (from 0) has the id {name!r}, which line {line} of {path} has '
                'already; drop that document or give it another id.'
            )


def _encode(old: _Old, corpus: np.ndarray) -> Encoding:
    if old.stated.copies == 1:
        return encode_corpus(old.params, corpus)
    lists = assign_corpus(old.params, corpus)
    return encode_corpus(
        old.params, corpus, np.concatenate([lists, assign_corpus(old.params, corpus, lists)])
    )


def _grown(path: pathlib.Path, rows: np.ndarray, more: int) -> np.ndarray:
    """A new file of an old one's rows and `more` after them, still to be written."""
    shape = (len(rows) + more, *rows.shape[1:])
    grown = np.lib.format.open_memmap(path, mode='w+', dtype=rows.dtype, shape=shape)
    _copy(grown, rows)
    return grown


def _copy(target: np.ndarray, rows: np.ndarray) -> None:
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        target[start : start + len(block)] = block


def _write_vectors(folder: pathlib.Path, old: _Old, corpus: np.ndarray) -> tuple[np.ndarray | None, int]:
    """Writes the vectors for reordering; how far a new number may be off [D], and how many are clipped."""
    reorder, multipliers = old.stated.reorder, old.multipliers
    if reorder == 'none':
        return None, 0
    for name in vectors.ASSETS[reorder]:
        if name != vectors.name_of(reorder):
            shutil.copyfile(old.folder / name, folder / name)
    name, first = vectors.name_of(reorder), old.stated.documents
    grown = _grown(folder / name, old.arrays[name], len(corpus))
    progress = Progress('vectors for reordering', total=len(corpus), unit='documents')
    largest, clipped = np.zeros(old.stated.dim, np.float32), 0
    for rows, block in vectors.blocks(corpus, old.params.rotation, progress):
        np.maximum(largest, np.abs(block).max(axis=0), out=largest)
        if multipliers is not None:
            clipped += int((np.abs(np.rint(block * multipliers)) > 127).sum())
        grown[first + rows.start : first + rows.stop] = vectors.rounded(block, reorder, multipliers)
    grown.flush()
    progress.done()
    return vectors.rounding(reorder, largest=largest, multipliers=multipliers), clipped


def _write_beside(folder: pathlib.Path, old: _Old, doc_ids: Sequence[str]) -> Manifest:
    """Writes the ids and, last, the manifest; what it says of the index, but its size, stays."""
    stated, path = old.stated, old.folder / ids.NAME
    ids.write(folder / ids.NAME, doc_ids, count=len(doc_ids), after=path)
    if scann.DOCIDS in stated.files:
        # The old pickle is never read, whoever wrote it.
        scann.write_docids(folder, [*ids.read(path, count=stated.documents), *doc_ids])
    fields = {field.name: getattr(stated, field.name) for field in dataclasses.fields(stated)}
    del fields['files'], fields['packages']
    fields['documents'] += len(doc_ids)
    return manifest.write(folder, packages={'scann': importlib.metadata.version('scann')}, **fields)


def _joined(old: _Old, fresh: dict[str, np.ndarray]) -> Encoding:
    """The encoding of the old documents and the new ones."""
    copies = old.stated.copies
    lists = np.concatenate([old.arrays[scann.LISTS], fresh[scann.LISTS]])
    names = (scann.CODES, scann.SECOND_CODES)[:copies]
    codes = np.concatenate([rows[name] for name in names for rows in (old.arrays, fresh)])
    return Encoding(lists=lists.reshape(-1, copies).T.reshape(-1), codes=codes, copies=copies)


def _documents(old: _Old, corpus: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Documents by row, [..., D] float32, rotated: old ones as they are kept, new ones before rounding."""
    first, reorder = old.stated.documents, old.stated.reorder
    kept = old.arrays[vectors.name_of(reorder)][np.minimum(rows, first - 1)]
    new = vectors.rotate(corpus[np.maximum(rows - first, 0)], old.params.rotation)
    if old.multipliers is not None:
        new = np.clip(new, -127 / old.multipliers, 127 / old.multipliers)
    return np.where(rows[..., None] < first, vectors.restored(kept, reorder, old.multipliers), new)
