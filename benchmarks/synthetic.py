"""Corpora of any size, made up."""

import pathlib

import numpy as np

from dvq_jax import blocks, files, host

_CLUSTERS = 20_000
_BLOCK = 8192  # rows that a core makes at once: larger arrays are new memory each time


def write_vectors(path: pathlib.Path, *, rows: int, dim: int, seed: int) -> None:
    """Writes unit-norm float16 vectors around centers that all seeds share, on all cores.

    Args:
      path: a `.npy` to create.
      rows, dim: of the file.
      seed: of the draw.
    """
    centers = np.random.default_rng(0).standard_normal((_CLUSTERS, dim), np.float32)

    def write(some: slice) -> None:
        rng = np.random.default_rng((1, seed, some.start))
        block = centers[rng.integers(0, _CLUSTERS, some.stop - some.start)]
        block += rng.standard_normal(block.shape, np.float32)
        block /= np.linalg.norm(block, axis=1, keepdims=True)
        vectors[some] = block

    with files.atomic_file(path) as aside:
        vectors = np.lib.format.open_memmap(aside, 'w+', np.float16, (rows, dim))
        host.each(write, blocks.cut(rows, _BLOCK))
        vectors.flush()
