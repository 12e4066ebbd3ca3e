"""The starting index: k-means for the centroids, (O)PQ of what they leave; the fits are in `clustering`."""

from typing import Any, Literal

import jax
import numpy as np

from dvq_jax.clustering import kmeans, opq
from dvq_jax.data import gather
from dvq_jax.errors import InputError
from dvq_jax.quantizer import nearest
from dvq_jax.types import Array, IndexParams

_RESIDUAL_ROWS = 16_384


@jax.jit
def _residual_block(values: Array, centroids: Array) -> Array:
    chosen, _ = nearest(values[:, None], centroids[None])
    return values - centroids[chosen[:, 0]]


def sample_rows(count: int, sample: int, *, seed: int) -> np.ndarray:
    """The documents to learn from: drawn without replacement, ascending; all if there are fewer.

    Args:
      count: N.
      sample: how many.
      seed: of the draw.

    Returns:
      [min(sample, N)] int64.
    """
    return np.sort(np.random.default_rng(seed).choice(count, min(sample, count), replace=False))


def coarse(
    corpus: np.ndarray,
    *,
    lists: int,
    sample: int = 262_144,
    iterations: int = 20,
    seeding: Literal['sample', 'plusplus'] = 'sample',
    spherical: bool = False,
    seed: int = 0,
) -> np.ndarray:
    """Coarse centroids: k-means of a sample of the documents.

    Args:
      corpus: [N, D] float16 or float32, may be memory-mapped; only the sample is read.
      lists: L.
      sample: documents to learn from, see `sample_rows`.
      iterations: of Lloyd.
      seeding: 'sample' or 'plusplus'.
      spherical: centroids of unit norm.
      seed: of every draw.

    Returns:
      [L, D] float32, in the caller's space.

    Raises:
      InputError: more centroids than documents in the sample.
    """
    vectors = gather(corpus, sample_rows(len(corpus), sample, seed=seed))
    return kmeans(vectors, lists, iterations=iterations, seeding=seeding, spherical=spherical, seed=seed)[0]


def fine(
    corpus: np.ndarray,
    centroids: np.ndarray,
    *,
    codebooks: int,
    codewords: int,
    decided: np.ndarray | None = None,
    rotation: Literal['identity', 'opq'] = 'opq',
    sample: int = 262_144,
    opq_iterations: int = 20,
    pq_iterations: int = 10,
    seeding: Literal['sample', 'plusplus'] = 'sample',
    seed: int = 0,
) -> IndexParams:
    """The index of given centroids: (O)PQ of what they leave of a sample of the documents.

    Args:
      corpus: [N, D] float16 or float32, may be memory-mapped; only the sample is read.
      centroids: [L, D] float32, in the caller's space.
      codebooks: M; divides D.
      codewords: K, at most 256.
      decided: [at least N] int32, the documents' lists; None takes the nearest.
      rotation: 'opq' or 'identity'.
      sample: documents to learn from, see `sample_rows`.
      opq_iterations: alternations of OPQ; unused with 'identity'.
      pq_iterations: k-means iterations for the codebooks, in the final rotation.
      seeding: 'sample' or 'plusplus'.
      seed: of every draw.

    Returns:
      The index, arrays on the host; centroids and codebooks in the rotated space.

    Raises:
      InputError: D not divisible by M, K out of range, an unknown rotation, or more codewords than documents
        in the sample.
    """
    dim = corpus.shape[1]
    _check_quantizer(dim, codebooks=codebooks, codewords=codewords, rotation=rotation)
    rows = sample_rows(len(corpus), sample, seed=seed)
    residuals = gather(corpus, rows)
    for start in range(0, len(residuals), _RESIDUAL_ROWS):
        block = slice(start, start + _RESIDUAL_ROWS)
        if decided is None:
            residuals[block] = _residual_block(residuals[block], centroids)
        else:
            residuals[block] -= centroids[decided[rows[block]]]
    if rotation == 'identity':
        books = kmeans(
            residuals, codewords, iterations=pq_iterations, groups=codebooks, seeding=seeding, seed=seed
        )
        return IndexParams(centroids=centroids, codebooks=books, rotation=np.eye(dim, dtype=np.float32))
    books, matrix = opq(
        residuals,
        codebooks=codebooks,
        codewords=codewords,
        iterations=opq_iterations,
        pq_iterations=pq_iterations,
        seeding=seeding,
        seed=seed,
    )
    return IndexParams(centroids=centroids @ matrix, codebooks=books, rotation=matrix)


def _check_quantizer(dim: int, *, codebooks: int, codewords: int, rotation: str) -> None:
    if codebooks < 1 or dim % codebooks:
        raise InputError(
            f'codebooks is {codebooks}, which does not divide the dimension {dim}; use a divisor of {dim}.'
        )
    if not 2 <= codewords <= 256:
        raise InputError(f'codewords is {codewords}; a code is one byte: use 2 to 256 (ScaNN takes 16, 256).')
    if rotation not in ('identity', 'opq'):
        raise InputError(f"rotation is {rotation!r}; use 'identity' or 'opq'.")


def initialize(
    corpus: np.ndarray,
    *,
    lists: int,
    codebooks: int,
    codewords: int,
    coarse_iterations: int = 20,
    spherical: bool = False,
    sample: int = 262_144,
    seeding: Literal['sample', 'plusplus'] = 'sample',
    seed: int = 0,
    **settings: Any,
) -> IndexParams:
    """An IVF-(O)PQ index of the corpus, k-means by nearest lists: the baseline that training is held against.

    Args:
      corpus: [N, D] float16 or float32, may be memory-mapped; only the sample is read.
      lists: L.
      codebooks: M; divides D.
      codewords: K, at most 256.
      coarse_iterations: see `coarse`.
      spherical: see `coarse`.
      sample: see `sample_rows`.
      seeding: 'sample' or 'plusplus'.
      seed: of every draw.
      **settings: the others of `fine`.

    Returns:
      The index, arrays on the host.

    Raises:
      InputError: see `coarse` and `fine`.

    Example:
      index = initialize(np.load('docs.npy', mmap_mode='r'), lists=1024, codebooks=16, codewords=256)
    """
    draws = {'sample': sample, 'seeding': seeding, 'seed': seed}
    centroids = coarse(corpus, lists=lists, iterations=coarse_iterations, spherical=spherical, **draws)
    return fine(corpus, centroids, codebooks=codebooks, codewords=codewords, **draws, **settings)
