"""The protocol buffers of a ScaNN index: its config, centroids and codebooks, written and read back."""

import dataclasses
import itertools
import pathlib
from collections.abc import Sequence

import numpy as np
from google.protobuf.message import DecodeError, Message
from scann.partitioning import partitioner_pb2
from scann.proto import centers_pb2, hash_pb2, scann_pb2

from dvq_jax.errors import InputError
from dvq_jax.export import manifest
from dvq_jax.export.manifest import Manifest
from dvq_jax.types import IndexParams

CONFIG, PARTITIONER, CODEBOOK = 'scann_config.pb', 'serialized_partitioner.pb', 'ah_codebook.pb'
NAMES = (CONFIG, PARTITIONER, CODEBOOK)
LOOKUPS = {'float': 'FLOAT', 'int8': 'INT8', 'lut16': 'INT8_LUT16'}
# How many candidates, for each document wanted, are scored exactly where the index reorders.
REORDER_FACTOR = 10


@dataclasses.dataclass(frozen=True)
class Parameters:
    """What the protocol buffers of an index say beyond its manifest.

    Attributes:
      centroids: [L, D] float32, in the rotated space.
      codebooks: [M, K, S] float32, in the rotated space.
      nprobe: P for a searcher that is not told.
    """

    centroids: np.ndarray
    codebooks: np.ndarray
    nprobe: int


def write(
    folder: pathlib.Path,
    params: IndexParams,
    *,
    lookup: str,
    reorder: str,
    copies: int,
    nprobe: int,
    k: int,
) -> None:
    """Writes the three files.

    Args:
      folder: the index folder.
      params: the index, numpy.
      lookup: how codes are scored.
      reorder: the vectors kept for exact re-scoring.
      copies: lists that a document is in.
      nprobe: P for a searcher that is not told.
      k: documents for a searcher that is not told.
    """
    shapes = (params.centroids.shape, params.codebooks.shape)
    messages = (
        _config(*shapes, lookup=lookup, reorder=reorder, copies=copies, nprobe=nprobe, k=k),
        _partitioner(params.centroids),
        _codebook(params.codebooks),
    )
    for name, message in zip(NAMES, messages, strict=True):
        (folder / name).write_bytes(message.SerializeToString(deterministic=True))


def read(folder: pathlib.Path, stated: Manifest) -> Parameters:
    """Reads what `write` wrote, and nothing else.

    Args:
      folder: the index folder.
      stated: its manifest.

    Returns:
      The parameters, all of them finite.

    Raises:
      InputError: `write` did not write these files, or for another manifest.
    """
    lists, books, codewords, dim = stated.lists, stated.books, stated.codewords, stated.dim
    width = dim // books
    config = _parse(folder / CONFIG, scann_pb2.ScannConfig())
    nprobe, k = config.partitioning.query_spilling.max_spill_centers, config.num_neighbors
    choices = {'lookup': stated.lookup, 'reorder': stated.reorder, 'copies': stated.copies}
    choices |= {'nprobe': nprobe, 'k': k}
    manifest.require(folder / CONFIG, config == _config((lists, dim), (books, codewords, width), **choices))
    tree = _parse(folder / PARTITIONER, partitioner_pb2.SerializedPartitioner())
    vectors = [center.dimension for center in tree.kmeans.kmeans_tree.root.centers]
    empty = _partitioner(np.empty((lists, 0)))
    centroids = _take(folder / PARTITIONER, tree, vectors, empty, width=dim)
    codebook = _parse(folder / CODEBOOK, centers_pb2.CentersForAllSubspaces())
    vectors = [center.feature_value_float for book in codebook.subspace_centers for center in book.center]
    empty = _codebook(np.empty((books, codewords, 0)))
    codewords_ms = _take(folder / CODEBOOK, codebook, vectors, empty, width=width)
    return Parameters(centroids, codewords_ms.reshape(books, codewords, width), nprobe)


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
        config.exact_reordering.approx_num_neighbors = REORDER_FACTOR * k
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


def _parse(path: pathlib.Path, message: Message) -> Message:
    try:
        message.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise InputError(f'{path}: not a ScaNN protocol buffer ({error}); export the index again.') from error
    return message


def _take(
    path: pathlib.Path, message: Message, vectors: Sequence, empty: Message, *, width: int
) -> np.ndarray:
    """Takes the vectors, [n, width] float32, out of a message; they must be finite, and leave `empty`."""
    manifest.require(path, all(len(vector) == width for vector in vectors))
    numbers = np.fromiter(itertools.chain.from_iterable(vectors), np.float32, count=width * len(vectors))
    for vector in vectors:
        del vector[:]
    manifest.require(path, bool(np.isfinite(numbers).all()) and message == empty)
    return numbers.reshape(len(vectors), width)
