"""k-means and OPQ against faiss: seconds and distortion after the same iterations of the same documents.

Both distortions are computed by faiss. The fits are also those of `distortion.py`.
"""

from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
from speed_timing import in_turn

from dvq_jax import clustering

BITS = 8  # of a codeword's number


def coarse_distortion(sample: np.ndarray, centroids: np.ndarray) -> float:
    """Mean squared distance of [n, D] to the nearest of [L, D]."""
    flat = faiss.IndexFlatL2(sample.shape[1])
    flat.add(np.ascontiguousarray(centroids))
    return float(flat.search(sample, 1)[0].mean())


def pq_distortion(sample: np.ndarray, codebooks: np.ndarray) -> float:
    """Mean squared error of [n, D] by the nearest codewords of [M, 256, S]."""
    pq = faiss.ProductQuantizer(sample.shape[1], len(codebooks), BITS)
    faiss.copy_array_to_vector(np.ascontiguousarray(codebooks).ravel(), pq.centroids)
    return float(np.square(pq.decode(pq.compute_codes(sample)) - sample).sum(1).mean())


def faiss_kmeans(sample: np.ndarray, *, lists: int, iterations: int, seed: int) -> np.ndarray:
    """FAISS's k-means of [n, D] on every row; [L, D] float32."""
    trained = faiss.Kmeans(
        sample.shape[1], lists, niter=iterations, seed=seed, max_points_per_centroid=len(sample)
    )
    trained.train(sample)
    return trained.centroids


def faiss_pq(sample: np.ndarray, *, codebooks: int, iterations: int, seed: int) -> np.ndarray:
    """FAISS's PQ of [n, D] on every row; [M, 256, S] float32."""
    pq = faiss.ProductQuantizer(sample.shape[1], codebooks, BITS)
    pq.cp.niter, pq.cp.seed, pq.cp.max_points_per_centroid = iterations, seed, len(sample)
    pq.train(sample)
    return faiss.vector_to_array(pq.centroids).reshape(codebooks, 2**BITS, -1)


def faiss_opq(
    sample: np.ndarray,
    *,
    codebooks: int,
    iterations: int,
    first: int,
    inner: int,
    pq_iterations: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """FAISS's OPQ, and its PQ in the rotation found.

    Args:
      sample: [n, D] float32.
      codebooks: M.
      iterations: alternations of PQ and rotation.
      first: k-means iterations of the first alternation; FAISS itself takes 40.
      inner: of each later one; FAISS itself takes 4.
      pq_iterations: of k-means in the final rotation.
      seed: of that.

    Returns:
      Codebooks [M, 256, S] and the rotated sample [n, D], float32.
    """
    matrix = faiss.OPQMatrix(sample.shape[1], codebooks)
    matrix.niter, matrix.niter_pq_0, matrix.niter_pq = iterations, first, inner
    matrix.max_train_points = len(sample)
    pq = faiss.ProductQuantizer(sample.shape[1], codebooks, BITS)
    matrix.pq = pq  # a bare pointer: Python must not free it before training ends
    matrix.train(sample)
    rotated = matrix.apply(sample)
    return faiss_pq(rotated, codebooks=codebooks, iterations=pq_iterations, seed=seed), rotated


def our_opq(
    sample: np.ndarray, *, codebooks: int, iterations: int, pq_iterations: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """As `faiss_opq`, by `clustering.opq`, with one k-means iteration an alternation."""
    books, rotation = clustering.opq(
        sample,
        codebooks=codebooks,
        codewords=2**BITS,
        iterations=iterations,
        pq_iterations=pq_iterations,
        seed=seed,
    )
    return books, sample @ rotation


def residuals_of(sample: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """What the nearest centroids leave, [n, D] float32."""
    flat = faiss.IndexFlatL2(sample.shape[1])
    flat.add(np.ascontiguousarray(centroids))
    return sample - centroids[flat.search(sample, 1)[1][:, 0]]


def _compare(
    sides: dict[str, Callable[[], Any]], judge: Callable[[Any], float], repeats: int
) -> dict[str, Any]:
    fitted = {}

    def kept(name: str) -> Callable[[], None]:
        return lambda: fitted.update({name: sides[name]()})

    seconds = in_turn({name: kept(name) for name in sides}, repeats)
    distortion = {name: judge(found) for name, found in fitted.items()}
    return {
        'seconds': seconds,
        'faiss_over_ours': seconds['faiss'] / seconds['ours'],
        'distortion': distortion,
        'distortion_ratio': distortion['ours'] / distortion['faiss'],
    }


def measure(
    sample: np.ndarray, *, lists: int, codebooks: int, iterations: int, pq_iterations: int, repeats: int
) -> list[dict[str, Any]]:
    """Fits k-means to the sample and OPQ to what it leaves, by both.

    OPQ takes one k-means iteration an alternation on both sides.

    Args:
      sample: [n, D] float32.
      lists: L.
      codebooks: M, of 256 codewords.
      iterations: of k-means; alternations of OPQ.
      pq_iterations: of PQ in OPQ's final rotation.
      repeats: of each.

    Returns:
      A row a fit: the sizes, 'seconds' and 'distortion' of both, and their ratios.
    """
    about = {'documents': len(sample), 'dim': sample.shape[1], 'iterations': iterations}
    count = {'iterations': iterations}
    sides = {
        'ours': lambda: clustering.kmeans(sample, lists, **count)[0],
        'faiss': lambda: faiss_kmeans(sample, lists=lists, seed=1, **count),
    }
    rows = [{'fit': 'k-means', **about, 'lists': lists}]
    rows[0] |= _compare(sides, lambda centroids: coarse_distortion(sample, centroids), repeats)
    residuals = residuals_of(sample, sides['ours']())
    shape = {'codebooks': codebooks, 'pq_iterations': pq_iterations}
    sides = {
        'ours': lambda: our_opq(residuals, seed=0, **shape, **count),
        'faiss': lambda: faiss_opq(residuals, seed=1, first=1, inner=1, **shape, **count),
    }
    rows.append({'fit': 'OPQ', **about, **shape, 'codewords': 2**BITS})
    rows[1] |= _compare(sides, lambda fit: pq_distortion(np.ascontiguousarray(fit[1]), fit[0]), repeats)
    return rows
