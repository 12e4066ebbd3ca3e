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

import importlib.metadata
import math
import os
import pathlib
import pickle
from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np
from google.protobuf.message import DecodeError, Message
from scann.partitioning import partitioner_pb2
from scann.proto import centers_pb2, hash_pb2, scann_pb2
from scann.scann_ops.py import scann_ops_pybind

from dvq_jax import files
from dvq_jax.errors import InputError
from dvq_jax.export import beside, manifest, vectors
from dvq_jax.export.manifest import Manifest
from dvq_jax.export.verify import verify
from dvq_jax.towers import Tower
from dvq_jax.types import Encoding, IndexParams

Lookup = Literal['float', 'int8', 'lut16']
Reorder = Literal['none', 'float32', 'bfloat16', 'int8']

CONFIG, PARTITIONER, CODEBOOK = 'scann_config.pb', 'serialized_partitioner.pb', 'ah_codebook.pb'
LISTS, CODES, ASSETS = 'datapoint_to_token.npy', 'hashed_dataset.npy', 'scann_assets.pbtxt'
SECOND_CODES = 'hashed_dataset_soar.npy'
LOOKUPS = {'float': 'FLOAT', 'int8': 'INT8', 'lut16': 'INT8_LUT16'}
# How many candidates, for each document wanted, are scored exactly where the index reorders.
_REORDER_FACTOR = 10
_BLOCK = 8192


def write(
    out: str | os.PathLike,
    *,
    params: IndexParams,
    encoding: Encoding,
    doc_ids: Iterable[str],
    tower: Tower | None = None,
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
    with files.atomic_folder(out) as folder:
        shapes = (params.centroids.shape, params.codebooks.shape)
        copies, count = encoding.copies, encoding.documents
        choices = {'lookup': lookup, 'reorder': reorder, 'copies': copies, 'nprobe': nprobe, 'k': k}
        _write_proto(folder / CONFIG, _config(*shapes, **choices))
        _write_proto(folder / PARTITIONER, _partitioner(params.centroids))
        _write_proto(folder / CODEBOOK, _codebook(params.codebooks))
        np.save(folder / LISTS, encoding.lists.reshape(copies, count).T.reshape(-1))
        np.save(folder / CODES, encoding.codes[:count])
        if copies > 1:
            np.save(folder / SECOND_CODES, encoding.codes[count:])
        (folder / ASSETS).write_text(_assets(reorder, copies), encoding='utf-8')
        rounding = None if corpus is None else vectors.write(folder, corpus, params.rotation, reorder)
        if docids_pickle:
            doc_ids = list(doc_ids)
            (folder / 'scann_docids.pkl').write_bytes(pickle.dumps(doc_ids, protocol=4))
        written = beside.write(
            folder,
            engine='scann',
            engine_version=importlib.metadata.version('scann'),
            params=params,
            encoding=encoding,
            doc_ids=doc_ids,
            tower=tower or Tower(),
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
            corpus=corpus,
            rounding=rounding,
            nprobe=nprobe,
        )
    return written


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
    if lookup not in LOOKUPS:
        raise InputError(f'lookup {lookup!r} is unknown; use one of {", ".join(LOOKUPS)}.')
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


def _config(
    centroids: tuple[int, int],
    codebooks: tuple[int, int, int],
    *,
    lookup: str,
    reorder: str,
    copies: int,
    nprobe: int,
    k: int,
) -> scann_pb2.ScannConfig:
    (lists, dim), (books, codewords, width) = centroids, codebooks
    config = scann_pb2.ScannConfig(num_neighbors=k)
    config.distance_measure.distance_measure = 'DotProductDistance'
    tree = config.partitioning
    tree.num_children = lists
    tree.partitioning_distance.distance_measure = 'SquaredL2Distance'
    if copies > 1:
        spilling = tree.database_spilling
        spilling.spilling_type = spilling.TWO_CENTER_ORTHOGONALITY_AMPLIFIED
        # ScaNN wants the amplification of its own training, which is not run; a document that is met twice
        # takes two places among the candidates.
        spilling.orthogonality_amplification_lambda = 1.0
        spilling.overretrieve_factor = copies
    tree.query_spilling.spilling_type = tree.query_spilling.FIXED_NUMBER_OF_CENTERS
    tree.query_spilling.max_spill_centers = nprobe
    tree.query_tokenization_distance_override.distance_measure = 'DotProductDistance'
    tree.query_tokenization_type = tree.FLOAT
    hasher = config.hash.asymmetric_hash
    hasher.projection.projection_type = hasher.projection.CHUNK
    hasher.projection.input_dim = dim
    hasher.projection.num_blocks = books
    hasher.projection.num_dims_per_block = width
    hasher.num_clusters_per_block = codewords
    hasher.quantization_distance.distance_measure = 'SquaredL2Distance'
    hasher.lookup_type = hash_pb2.AsymmetricHasherConfig.LookupType.Value(LOOKUPS[lookup])
    hasher.use_residual_quantization = True
    rounding = hasher.fixed_point_lut_conversion_options
    rounding.float_to_int_conversion_method = rounding.ROUND
    # One top-k over all probed lists sums 8-bit entries in 16 bits, which hold 256 of them.
    hasher.use_global_topn = lookup == 'lut16' and books <= 256
    if reorder != 'none':
        config.exact_reordering.approx_num_neighbors = _REORDER_FACTOR * k
    if reorder == 'int8':
        config.exact_reordering.fixed_point.enabled = True
    if reorder == 'bfloat16':
        config.exact_reordering.bfloat16.enabled = True
    return config


def _partitioner(centroids: np.ndarray) -> partitioner_pb2.SerializedPartitioner:
    tree = partitioner_pb2.SerializedPartitioner(n_tokens=len(centroids))
    root = tree.kmeans.kmeans_tree.root
    root.leaf_id = -1
    for leaf, centroid in enumerate(centroids):
        root.centers.add().dimension.extend(centroid.tolist())
        root.children.add().leaf_id = leaf
    return tree


def _codebook(codebooks: np.ndarray) -> centers_pb2.CentersForAllSubspaces:
    centers = centers_pb2.CentersForAllSubspaces()
    for book in codebooks:
        subspace = centers.subspace_centers.add()
        for codeword in book:
            center = subspace.center.add()
            center.feature_type = center.FLOAT
            center.feature_value_float.extend(codeword.tolist())
    return centers


def _write_proto(path: pathlib.Path, message: Message) -> None:
    path.write_bytes(message.SerializeToString(deterministic=True))


def _asset_kinds(reorder: str, copies: int) -> dict[str, str]:
    return {
        CODEBOOK: 'AH_CENTERS',
        PARTITIONER: 'PARTITIONER',
        LISTS: 'TOKENIZATION_NPY',
        CODES: 'AH_DATASET_NPY',
        **({SECOND_CODES: 'AH_DATASET_SOAR_NPY'} if copies > 1 else {}),
        **vectors.ASSETS[reorder],
    }


def _assets(reorder: str, copies: int) -> str:
    entry = 'assets {{\n  asset_type: {kind}\n  asset_path: "{name}"\n}}\n'
    return ''.join(entry.format(kind=kind, name=name) for name, kind in _asset_kinds(reorder, copies).items())


def names(stated: Manifest) -> tuple[str, ...]:
    """The files that `open_engine` opens."""
    return (CONFIG, *_asset_kinds(stated.reorder, stated.copies))


def open_engine(
    folder: str | os.PathLike, stated: Manifest, *, reorder_factor: int = _REORDER_FACTOR
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
      first, padded with -inf and -1. q is at least 1.

    Raises:
      InputError: the files are not such an index.
    """
    folder = pathlib.Path(folder)
    _check_files(folder, stated)
    searcher = scann_ops_pybind.ScannSearcher(
        scann_ops_pybind.scann_pybind.ScannNumpy(str(folder), _assets(stated.reorder, stated.copies))
    )

    reorders = stated.reorder != 'none'

    def search(rotated: np.ndarray, *, k: int, nprobe: int) -> tuple[np.ndarray, np.ndarray]:
        found = min(k, stated.documents)
        many = searcher.search_batched_parallel if len(rotated) > 1 else searcher.search_batched
        scores = np.full((len(rotated), k), -np.inf, np.float32)
        rows = np.full((len(rotated), k), -1, np.int32)
        best, values = many(
            rotated,
            final_num_neighbors=found,
            pre_reorder_num_neighbors=min(reorder_factor * found, stated.documents) if reorders else None,
            leaves_to_search=min(nprobe, stated.lists),
        )
        # Fewer documents in the probed lists than wanted: ScaNN pads with row 0 and NaN.
        real = ~np.isnan(values)
        scores[:, :found][real], rows[:, :found][real] = values[real], best[real]
        return scores, rows

    return search


def _check_files(folder: pathlib.Path, stated: Manifest) -> None:
    """Checks that ScaNN gets what `write` writes: it trusts sizes and list numbers in its files."""
    lists, books, codewords, dim = stated.lists, stated.books, stated.codewords, stated.dim
    width = dim // books
    config = _parse(folder / CONFIG, scann_pb2.ScannConfig())
    nprobe, k = config.partitioning.query_spilling.max_spill_centers, config.num_neighbors
    choices = {'lookup': stated.lookup, 'reorder': stated.reorder, 'copies': stated.copies}
    choices |= {'nprobe': nprobe, 'k': k}
    _require(folder / CONFIG, config == _config((lists, dim), (books, codewords, width), **choices))
    tree = _parse(folder / PARTITIONER, partitioner_pb2.SerializedPartitioner())
    centroids = [center.dimension for center in tree.kmeans.kmeans_tree.root.centers]
    _check_numbers(folder / PARTITIONER, tree, centroids, _partitioner(np.empty((lists, 0))), width=dim)
    codebook = _parse(folder / CODEBOOK, centers_pb2.CentersForAllSubspaces())
    words = [center.feature_value_float for book in codebook.subspace_centers for center in book.center]
    _check_numbers(
        folder / CODEBOOK, codebook, words, _codebook(np.empty((books, codewords, 0))), width=width
    )
    _check_array(folder / LISTS, np.int32, (stated.copies * stated.documents,), below=lists)
    for name in (CODES, SECOND_CODES)[: stated.copies]:
        _check_array(folder / name, np.uint8, (stated.documents, books), below=codewords)
    for name in vectors.ASSETS[stated.reorder]:
        kind = {'int8_dataset.npy': np.int8, 'bfloat16_dataset.npy': np.int16}.get(name, np.float32)
        shape = {'int8_multipliers.npy': (dim,), 'dp_norms.npy': (0,)}.get(name, (stated.documents, dim))
        _check_array(folder / name, kind, shape)


def _require(path: pathlib.Path, good: bool) -> None:
    if not good:
        raise InputError(f'{path}: is not what {manifest.NAME} describes; export the index again.')


def _parse(path: pathlib.Path, message: Message) -> Message:
    try:
        message.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise InputError(f'{path}: not a ScaNN protocol buffer ({error}); export the index again.') from error
    return message


def _check_numbers(
    path: pathlib.Path, message: Message, vectors: list, empty: Message, *, width: int
) -> None:
    """Takes the vectors out of a message; each must be `width` finite numbers, the rest `empty`."""
    good = all(len(vector) == width and math.isfinite(sum(vector)) for vector in vectors)
    for vector in vectors:
        del vector[:]
    _require(path, good and message == empty)


def _check_array(path: pathlib.Path, kind: type, shape: tuple[int, ...], below: int | None = None) -> None:
    try:
        array = np.load(path, mmap_mode='r' if 0 not in shape else None, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f'{path}: not a complete .npy file ({error}); export the index again.') from error
    _require(path, array.dtype == kind and array.shape == shape and array.flags.c_contiguous)
    if below is not None:
        blocks = (array[start : start + _BLOCK] for start in range(0, len(array), _BLOCK))
        _require(path, all(block.min() >= 0 and block.max() < below for block in blocks))
