"""The ScaNN index directory, written from learned parameters without ScaNN ever training.

`scann.scann_ops_pybind.load_searcher(folder)` opens it as one of its own. It scores ⟨ṽ, v̂ + û⟩, for queries
that went through the query transform (see `transform`), in the P lists of the largest ⟨ṽ, v̂⟩.

    scann_config.pb            ScannConfig
    serialized_partitioner.pb  centroids, a tree of one level
    ah_codebook.pb             codebooks
    datapoint_to_token.npy     int32 [N·copies], the lists, a document's together
    hashed_dataset.npy         uint8 [N, M], the codes, one a byte also where K is 16
    hashed_dataset_soar.npy    uint8 [N, M], those of documents' second copies, if any
    scann_assets.pbtxt         which of the files is what
    dataset.npy                float32 [N, D]: documents, rotated, for reordering; or
    bfloat16_dataset.npy       int16 [N, D], the bits of bfloat16; or
    int8_dataset.npy           int8 [N, D], with int8_multipliers.npy [D] and dp_norms.npy (empty)
"""

import dataclasses
import importlib.metadata
import os
import pathlib
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scann.scann_ops.py import scann_ops_pybind

from dvq_jax import files
from dvq_jax.errors import InputError
from dvq_jax.export import beside, manifest, protos, vectors
from dvq_jax.export.manifest import Manifest
from dvq_jax.export.protos import CODEBOOK, CONFIG, PARTITIONER, REORDER_FACTOR
from dvq_jax.export.verify import verify
from dvq_jax.towers import Tower
from dvq_jax.types import Encoding, IndexParams

if TYPE_CHECKING:
    from dvq_jax.huggingface import Encoder

Lookup = Literal['float', 'int8', 'lut16']
Reorder = Literal['none', 'float32', 'bfloat16', 'int8']

LISTS, CODES, ASSETS = 'datapoint_to_token.npy', 'hashed_dataset.npy', 'scann_assets.pbtxt'
SECOND_CODES, DOCIDS = 'hashed_dataset_soar.npy', 'scann_docids.pkl'
_BLOCK = 8192


@dataclasses.dataclass(frozen=True)
class Contents:
    """What is in the files that ScaNN opens.

    Attributes:
      parameters: centroids, codebooks and nprobe.
      arrays: by the name of their file, memory-mapped.
    """

    parameters: protos.Parameters
    arrays: Mapping[str, np.ndarray]


def write(
    out: str | os.PathLike,
    *,
    params: IndexParams,
    encoding: Encoding,
    doc_ids: Iterable[str],
    tower: Tower | None = None,
    encoder: 'Encoder | None' = None,
    corpus: np.ndarray | None = None,
    reorder: Reorder = 'none',
    lookup: Lookup | None = None,
    nprobe: int = 10,
    k: int = 100,
    step: int = 0,
    config: dict[str, Any] | None = None,
    docids_pickle: bool = False,
) -> Manifest:
    """Writes an index folder that ScaNN and `dvq_jax.open_index` open.

    It is written aside, opened, held against the reference search, and renamed. Its bytes depend on the
    arguments and the installed packages alone.

    Example:
      scann.write('INDEX', params=params, encoding=encoding, doc_ids=ids)

    Args:
      out: the folder to create.
      params: the index.
      encoding: N documents, in one list or two each.
      doc_ids: N ids, in row order; may be a generator.
      tower: the query tower; None is the identity.
      encoder: of query texts, to go with the index, so that it can be searched by text.
      corpus: [N, D] float, in the caller's space, may be memory-mapped; read where the index reorders.
      reorder: the vectors to keep for exact re-scoring of the best candidates.
      lookup: how codes are scored: 'float' (exact), 'int8' (tables rounded to 8 bits) or 'lut16' (the same
        for 16 codewords, the fastest). None takes 'lut16' where K is 16, else 'int8'.
      nprobe: P for a searcher that is not told.
      k: documents for a searcher that is not told.
      step: the training step, for the manifest.
      config: the training config, for the manifest, which keeps its hash.
      docids_pickle: also write `scann_docids.pkl`, so that ScaNN's own `load_searcher` answers with ids. A
        pickle can run code when it is loaded; this package never loads it.

    Returns:
      The manifest.

    Raises:
      InputError: arguments that do not fit each other, or `out` exists or cannot be written.
      MismatchError: ScaNN does not search what was written as the reference does.
    """
    params, encoding = beside.on_host(params, encoding)
    lookup = check_lookup(lookup, params.codebooks.shape[1])
    corpus = None if reorder == 'none' else corpus
    _check_arguments(params, encoding, reorder=reorder, corpus=corpus)
    nprobe = min(nprobe, len(params.centroids))
    beside.check_encoder(encoder, len(params.rotation))
    with files.atomic_folder(out) as folder:
        choices = {'lookup': lookup, 'reorder': reorder, 'copies': encoding.copies}
        protos.write(folder, params, nprobe=nprobe, k=k, **choices)
        for name, array in stored(encoding).items():
            np.save(folder / name, array)
        write_assets(folder, reorder, encoding.copies)
        rounding = None if corpus is None else vectors.write(folder, corpus, params.rotation, reorder)
        if docids_pickle:
            doc_ids = list(doc_ids)
            write_docids(folder, doc_ids)
        written = beside.write(
            folder,
            engine='scann',
            engine_version=importlib.metadata.version('scann'),
            params=params,
            encoding=encoding,
            doc_ids=doc_ids,
            tower=tower or Tower(),
            encoder=encoder,
            lookup=lookup,
            reorder=reorder,
            step=step,
            config=config,
        )
        verify(
            open_engine(folder, written, reorder_factor=1),
            params=params,
            encoding=encoding,
            lookup=lookup,
            documents=None if corpus is None else lambda rows: vectors.rotate(corpus[rows], params.rotation),
            rounding=rounding,
            nprobe=nprobe,
        )
    return written


def stored(encoding: Encoding) -> dict[str, np.ndarray]:
    """An encoding as its files have it.

    Args:
      encoding: N documents, numpy.

    Returns:
      By the name of their file, the lists [copies·N] int32, and the codes of each copy [N, M] uint8.
    """
    copies, count = encoding.copies, encoding.documents
    codes = encoding.codes.reshape(copies, count, -1)
    lists = encoding.lists.reshape(copies, count).T.reshape(-1)
    return {LISTS: lists, **dict(zip((CODES, SECOND_CODES)[:copies], codes, strict=True))}


def write_docids(folder: pathlib.Path, doc_ids: Sequence[str]) -> None:
    """Writes the ids where ScaNN's own `load_searcher` looks for them."""
    (folder / DOCIDS).write_bytes(pickle.dumps(doc_ids, protocol=4))


def check_lookup(lookup: str | None, codewords: int) -> Lookup:
    """The lookup to use; None takes 'lut16' where K is 16, else 'int8'.

    Args:
      lookup: 'float', 'int8', 'lut16' or None.
      codewords: K.

    Returns:
      The lookup.

    Raises:
      InputError: an unknown lookup, or one that does not go with K.
    """
    lookup = lookup or ('lut16' if codewords == 16 else 'int8')
    if lookup not in protos.LOOKUPS:
        raise InputError(f'lookup {lookup!r} is unknown; use one of {", ".join(protos.LOOKUPS)}.')
    if lookup == 'lut16' and codewords != 16:
        raise InputError(
            f"lookup 'lut16' takes 16 codewords a codebook and these have {codewords}; use 'int8'."
        )
    return lookup


def _check_arguments(params: IndexParams, encoding: Encoding, *, reorder: str, corpus) -> None:
    shape = (encoding.documents, params.rotation.shape[0])
    if reorder not in vectors.ASSETS:
        raise InputError(f'reorder {reorder!r} is unknown; use one of {", ".join(vectors.ASSETS)}.')
    if reorder != 'none' and (corpus is None or corpus.shape != shape):
        found = 'none is given' if corpus is None else f'this one is {corpus.shape}'
        raise InputError(f'reorder {reorder!r} takes the encoded corpus, of shape {shape}, and {found}.')


def _asset_kinds(reorder: str, copies: int) -> dict[str, str]:
    return {
        CODEBOOK: 'AH_CENTERS',
        PARTITIONER: 'PARTITIONER',
        LISTS: 'TOKENIZATION_NPY',
        CODES: 'AH_DATASET_NPY',
        **({SECOND_CODES: 'AH_DATASET_SOAR_NPY'} if copies > 1 else {}),
        **vectors.ASSETS[reorder],
    }


def write_assets(folder: pathlib.Path, reorder: str, copies: int) -> None:
    """Writes `scann_assets.pbtxt`, which says which of the files is what."""
    (folder / ASSETS).write_text(_assets(reorder, copies), encoding='utf-8')


def _assets(reorder: str, copies: int) -> str:
    entry = 'assets {{\n  asset_type: {kind}\n  asset_path: "{name}"\n}}\n'
    return ''.join(entry.format(kind=kind, name=name) for name, kind in _asset_kinds(reorder, copies).items())


def names(stated: Manifest) -> tuple[str, ...]:
    """The files that `open_engine` opens."""
    return (CONFIG, *_asset_kinds(stated.reorder, stated.copies))


def open_engine(
    folder: str | os.PathLike, stated: Manifest, *, reorder_factor: int = REORDER_FACTOR
) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Opens an index folder with ScaNN, after `manifest.check` of its files.

    Nothing in the folder is trusted: `scann_docids.pkl` is never read, ScaNN is told its files' names here
    and not by `scann_assets.pbtxt`, and it gets only a config, shapes and values that `write` could have
    written: on others it aborts the process, or reads where it should not.

    Args:
      folder: the index folder.
      stated: its manifest.
      reorder_factor: how many candidates are scored exactly for each document wanted, where it reorders.

    Returns:
      A function (rotated [q, D] float32, *, k, nprobe) -> (scores [q, k] float32, rows [q, k] int32), best
      first, padded with -inf and -1. q is at least 1. It takes one core; several threads may call it.

    Raises:
      InputError: the files are not such an index.
    """
    folder = pathlib.Path(folder)
    read(folder, stated)
    searcher = scann_ops_pybind.ScannSearcher(
        scann_ops_pybind.scann_pybind.ScannNumpy(str(folder), _assets(stated.reorder, stated.copies))
    )

    reorders = stated.reorder != 'none'

    def search(rotated: np.ndarray, *, k: int, nprobe: int) -> tuple[np.ndarray, np.ndarray]:
        found = min(k, stated.documents)
        rows, scores = searcher.search_batched(
            rotated,
            final_num_neighbors=found,
            pre_reorder_num_neighbors=min(reorder_factor * found, stated.documents) if reorders else None,
            leaves_to_search=min(nprobe, stated.lists),
        )
        rows = rows.astype(np.int32, copy=False)
        # Fewer documents in the probed lists than wanted: ScaNN pads, at the end, with row 0 and NaN.
        if np.isnan(scores[:, -1]).any():
            missing = np.isnan(scores)
            scores, rows = np.where(missing, -np.inf, scores), np.where(missing, -1, rows)
        if found < k:
            beyond = ((0, 0), (0, k - found))
            scores = np.pad(scores, beyond, constant_values=-np.inf)
            rows = np.pad(rows, beyond, constant_values=-1)
        return scores, rows

    return search


def read(folder: str | os.PathLike, stated: Manifest) -> Contents:
    """Reads what `write` wrote, and nothing else: ScaNN trusts sizes and list numbers in its files.

    Args:
      folder: the index folder.
      stated: its manifest.

    Returns:
      What is in it.

    Raises:
      InputError: `write` did not write these files, or for another manifest.
    """
    folder = pathlib.Path(folder)
    parameters = protos.read(folder, stated)
    count, dim = stated.documents, stated.dim
    arrays = {LISTS: _read_array(folder / LISTS, np.int32, (stated.copies * count,), below=stated.lists)}
    for name in (CODES, SECOND_CODES)[: stated.copies]:
        arrays[name] = _read_array(folder / name, np.uint8, (count, stated.books), below=stated.codewords)
    for name in vectors.ASSETS[stated.reorder]:
        kind = vectors.KINDS.get(name, np.float32)
        shape = {vectors.MULTIPLIERS: (dim,), vectors.NORMS: (0,)}.get(name, (count, dim))
        arrays[name] = _read_array(folder / name, kind, shape)
    return Contents(parameters, arrays)


def _read_array(
    path: pathlib.Path, kind: type, shape: tuple[int, ...], below: int | None = None
) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode='r' if 0 not in shape else None, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f'{path}: not a complete .npy file ({error}); export the index again.') from error
    manifest.require(path, array.dtype == kind and array.shape == shape and array.flags.c_contiguous)
    if below is not None:
        blocks = (array[start : start + _BLOCK] for start in range(0, len(array), _BLOCK))
        manifest.require(path, all(block.min() >= 0 and block.max() < below for block in blocks))
    return array
