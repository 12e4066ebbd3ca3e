"""Lists and codes on a host without accelerators.

Documents go in tiles, each through all that is done to it on one core, so that what is made of a tile stays
in the core's cache. Rotation is BLAS's: XLA's float32 products take half as long again there.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from dvq_jax import host
from dvq_jax.blocks import cut
from dvq_jax.data import gather
from dvq_jax.host_centers import ROWS, Centers
from dvq_jax.host_codes import Codebooks
from dvq_jax.types import Encoding, IndexParams


def _tiles(function: Callable[[slice], Any], count: int) -> list[Any]:
    return list(host.on_threads(function, cut(count, ROWS), spare=2))


def assign(params: IndexParams, docs: np.ndarray, taken: np.ndarray | None = None) -> np.ndarray:
    """As `quantizer.assign`.

    Args:
      params: the index.
      docs: [n, D] float, in the caller's space, may be memory-mapped.
      taken: [n] int32, the documents' first lists, where it is their second that is wanted.

    Returns:
      [n] int32.
    """
    centroids, rotation = Centers(np.asarray(params.centroids), len(docs)), np.asarray(params.rotation)

    def tile(rows: slice) -> np.ndarray:
        rotated = np.asarray(docs[rows], np.float32) @ rotation
        return centroids.nearest(rotated, None if taken is None else taken[rows])

    return np.concatenate(_tiles(tile, len(docs)))


def encode(
    params: IndexParams, corpus: np.ndarray, rows: np.ndarray, lists: np.ndarray | None = None
) -> Encoding:
    """As `quantizer.encode`.

    Args:
      params: the index.
      corpus: [N, D] float, in the caller's space, may be memory-mapped.
      rows: [n] int, the documents to encode.
      lists: [n] int32, their lists where they are already decided; else they are assigned.

    Returns:
      The encoding of the n documents.
    """
    coarse, rotation = np.asarray(params.centroids), np.asarray(params.rotation)
    centroids, codebooks = Centers(coarse, len(rows)), Codebooks(np.asarray(params.codebooks), len(rows))

    def tile(part: slice) -> tuple[np.ndarray, np.ndarray]:
        rotated = gather(corpus, rows[part], copy=False) @ rotation
        own = centroids.nearest(rotated) if lists is None else lists[part].astype(np.int32)
        return own, codebooks.nearest(rotated - coarse[own])

    return Encoding(*(np.concatenate(part) for part in zip(*_tiles(tile, len(rows)), strict=True)))
