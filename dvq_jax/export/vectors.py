"""The documents that a ScaNN index keeps for exact re-scoring of its best candidates, rotated."""

import pathlib

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
_BLOCK = 8192


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
    largest = np.zeros(corpus.shape[1], np.float32)

    def rotated_blocks():
        for start in range(0, len(corpus), _BLOCK):
            block = np.asarray(corpus[start : start + _BLOCK], np.float32) @ rotation
            np.maximum(largest, np.abs(block).max(axis=0), out=largest)
            progress.add(len(block))
            yield start, block

    if reorder == 'int8':
        for _ in rotated_blocks():
            pass
    multipliers = (127 / np.where(largest > 0, largest, 1)).astype(np.float32)
    kind = {'float32': np.float32, 'bfloat16': np.int16, 'int8': np.int8}[reorder]
    name = next(iter(ASSETS[reorder]))
    stored = np.lib.format.open_memmap(folder / name, mode='w+', dtype=kind, shape=corpus.shape)
    for start, block in rotated_blocks():
        if reorder == 'bfloat16':
            block = block.astype(ml_dtypes.bfloat16).view(np.int16)
        elif reorder == 'int8':
            block = np.rint(block * multipliers)
        stored[start : start + _BLOCK] = block
    stored.flush()
    progress.done()
    if reorder == 'int8':
        np.save(folder / 'int8_multipliers.npy', multipliers)
        np.save(folder / 'dp_norms.npy', np.empty(0, np.float32))
    return {'float32': 0 * largest, 'bfloat16': largest * 2**-8, 'int8': 0.5 / multipliers}[reorder]
