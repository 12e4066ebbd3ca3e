"""The documents that a ScaNN index keeps for exact re-scoring of its best candidates, rotated."""

import pathlib
from collections.abc import Iterator

import ml_dtypes
import numpy as np

from dvq_jax.progress import Progress

# How they are kept -> the files, and what ScaNN calls them.
ASSETS = {
    'none': {},
    'float32': {'dataset.npy': 'DATASET_NPY'},
    'bfloat16': {'bfloat16_dataset.npy': 'BF16_DATASET_NPY'},
    'int8': {
        'int8_dataset.npy': 'INT8_DATASET_NPY',
        'int8_multipliers.npy': 'INT8_MULTIPLIERS_NPY',
        'dp_norms.npy': 'INT8_NORMS_NPY',
    },
}
KINDS = {'dataset.npy': np.float32, 'bfloat16_dataset.npy': np.int16, 'int8_dataset.npy': np.int8}
MULTIPLIERS, NORMS = 'int8_multipliers.npy', 'dp_norms.npy'
_BLOCK = 8192


def name_of(reorder: str) -> str:
    """The file that has the documents."""
    return next(iter(ASSETS[reorder]))


def rotate(docs: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """Documents as they are kept, before rounding: [..., D] float to [..., D] float32."""
    return np.asarray(docs, np.float32) @ rotation


def blocks(
    corpus: np.ndarray, rotation: np.ndarray, progress: Progress
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields documents, rotated, block by block.

    Args:
      corpus: [N, D] float, in the caller's space, may be memory-mapped.
      rotation: [D, D] float32.
      progress: counts them.

    Yields:
      The rows, and the block [at most 8192, D] float32.
    """
    for start in range(0, len(corpus), _BLOCK):
        rows = slice(start, min(start + _BLOCK, len(corpus)))
        yield rows, rotate(corpus[rows], rotation)
        progress.add(rows.stop - start)


def rounded(docs: np.ndarray, reorder: str, multipliers: np.ndarray | None) -> np.ndarray:
    """Rotated documents as their file has them.

    Args:
      docs: [..., D] float32.
      reorder: 'float32', 'bfloat16' or 'int8'.
      multipliers: [D] float32, of 'int8': numbers beyond ±127 of their inverses are clipped to that.

    Returns:
      [..., D] float32, int16 or int8.
    """
    if reorder == 'bfloat16':
        return docs.astype(ml_dtypes.bfloat16).view(np.int16)
    if reorder == 'int8':
        return np.clip(np.rint(docs * multipliers), -127, 127).astype(np.int8)
    return docs


def restored(numbers: np.ndarray, reorder: str, multipliers: np.ndarray | None) -> np.ndarray:
    """What `rounded` documents stand for, [..., D] float32."""
    if reorder == 'bfloat16':
        return numbers.view(ml_dtypes.bfloat16).astype(np.float32)
    return numbers / multipliers if reorder == 'int8' else numbers


def rounding(reorder: str, *, largest: np.ndarray, multipliers: np.ndarray | None) -> np.ndarray:
    """How far a number may be off in the file.

    Args:
      reorder: 'float32', 'bfloat16' or 'int8'.
      largest: [D] float32, of the absolute values.
      multipliers: [D] float32, of 'int8'.

    Returns:
      [D] float32.
    """
    if reorder == 'int8':
        return 0.5 / multipliers
    return {'float32': 0.0, 'bfloat16': np.float32(2**-8)}[reorder] * largest


def write(folder: pathlib.Path, corpus: np.ndarray, rotation: np.ndarray, reorder: str) -> np.ndarray:
    """Writes the documents, rotated, block by block.

    Args:
      folder: the index folder.
      corpus: [N, D] float, in the caller's space, may be memory-mapped.
      rotation: [D, D] float32.
      reorder: 'float32', 'bfloat16' or 'int8'.

    Returns:
      [D] float32, how far a stored number may be off.
    """
    passes = 2 if reorder == 'int8' else 1
    progress = Progress('vectors for reordering', total=passes * len(corpus), unit='documents')
    largest, multipliers = np.zeros(corpus.shape[1], np.float32), None
    if reorder == 'int8':
        for _, block in blocks(corpus, rotation, progress):
            np.maximum(largest, np.abs(block).max(axis=0), out=largest)
        multipliers = (127 / np.where(largest > 0, largest, 1)).astype(np.float32)
        np.save(folder / MULTIPLIERS, multipliers)
        np.save(folder / NORMS, np.empty(0, np.float32))
    name = name_of(reorder)
    kept = np.lib.format.open_memmap(folder / name, mode='w+', dtype=KINDS[name], shape=corpus.shape)
    for rows, block in blocks(corpus, rotation, progress):
        np.maximum(largest, np.abs(block).max(axis=0), out=largest)
        kept[rows] = rounded(block, reorder, multipliers)
    kept.flush()
    progress.done()
    return rounding(reorder, largest=largest, multipliers=multipliers)
