"""What every index folder carries beside the engine's own files: ids, query transform, manifest."""

import pathlib
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from dvq_jax.errors import InputError
from dvq_jax.export import ids, manifest, transform
from dvq_jax.export.manifest import Manifest
from dvq_jax.towers import Tower
from dvq_jax.types import Encoding, IndexParams

if TYPE_CHECKING:
    from dvq_jax.huggingface import Encoder

NAMES = (ids.NAME, transform.NAME)
ENCODER = 'encoder'  # the folder of a text encoder, if the index has one
# Names that `huggingface.write` gives, and none that leaves the folder.
_ENCODER_FILE = re.compile(rf'{ENCODER}/(1_Pooling/)?\w+\.\w+')


def encoder_files(stated: Manifest) -> tuple[str, ...]:
    """The files of an index's text encoder; none where it has no encoder."""
    return tuple(name for name in stated.files if _ENCODER_FILE.fullmatch(name))


def check_encoder_files(folder: pathlib.Path, stated: Manifest) -> None:
    """Raises InputError where the encoder's folder has a file that the manifest does not list."""
    for path in sorted((folder / ENCODER).rglob('*')):
        name = path.relative_to(folder).as_posix()
        manifest.require(path, path.is_dir() or name in encoder_files(stated))


def check_encoder(encoder: 'Encoder | None', dim: int) -> None:
    """Raises InputError where an encoder's vectors are not of D dimensions."""
    if encoder is not None and encoder.module.shape.dim != dim:
        raise InputError(
            f'{encoder.folder}: makes vectors of {encoder.module.shape.dim} dimensions, the index has {dim}; '
            'give the encoder of its embeddings.'
        )


def on_host(params: IndexParams, encoding: Encoding) -> tuple[IndexParams, Encoding]:
    """Parameters and encoded documents as numpy arrays of the types that are stored."""
    arrays = (params.centroids, params.codebooks, params.rotation)
    lists, codes = np.asarray(encoding.lists, np.int32), np.asarray(encoding.codes, np.uint8)
    return IndexParams(*(np.asarray(x, np.float32) for x in arrays)), encoding.replace(
        lists=lists, codes=codes
    )


def write(
    folder: pathlib.Path,
    *,
    engine: str,
    engine_version: str,
    params: IndexParams,
    encoding: Encoding,
    doc_ids: Iterable[str],
    tower: Tower,
    encoder: 'Encoder | None',
    lookup: str,
    reorder: str,
    step: int,
    config: dict[str, Any] | None,
) -> Manifest:
    """Completes an index folder; the manifest, written last, lists all that is in it.

    Args:
      folder: the folder, with the engine's files in it.
      engine: 'scann' or 'faiss'.
      engine_version: of its package.
      params: the index.
      encoding: N documents.
      doc_ids: N ids, in row order; may be a generator.
      tower: the query tower.
      encoder: of query texts, to go with the index.
      lookup: how the engine scores codes.
      reorder: the vectors kept for exact re-scoring.
      step: the training step.
      config: the training config, to be hashed.

    Returns:
      The manifest.

    Raises:
      InputError: an id with a line break, not N ids, or an encoder of another dimension.
    """
    ids.write(folder / ids.NAME, doc_ids, count=encoding.documents)
    transform.write(folder / transform.NAME, rotation=params.rotation, tower=tower)
    if encoder is not None:
        from dvq_jax import huggingface

        (folder / ENCODER).mkdir()
        huggingface.write(folder / ENCODER, encoder)
    (lists, dim), (books, codewords, _) = params.centroids.shape, params.codebooks.shape
    return manifest.write(
        folder,
        packages={engine: engine_version},
        engine=engine,
        documents=encoding.documents,
        copies=encoding.copies,
        dim=dim,
        lists=lists,
        books=books,
        codewords=codewords,
        lookup=lookup,
        reorder=reorder,
        tower=tower.name,
        tower_args=dict(tower.args),
        step=step,
        config_sha256=manifest.config_hash(config or {}),
    )
