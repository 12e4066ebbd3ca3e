"""Initialisation against faiss: distortion and time of k-means, PQ and OPQ at equal iterations, side by side.

python benchmarks/distortion.py --corpus=docs.npy --out=docs/results/distortion.json

Both sides see the same documents and residuals; both distortions are computed by faiss. k-means depends on
its seeds, so each figure is the mean over --seeds.
"""

import json
import pathlib
import sys
import time
from collections.abc import Callable

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import faiss
import numpy as np
from absl import app, flags

from dvq_jax import clustering, files
from dvq_jax.data import gather, open_embeddings

_CORPUS = flags.DEFINE_string('corpus', None, 'Document embeddings.', required=True)
_OUT = flags.DEFINE_string('out', None, 'The numbers, JSON.', required=True)
_SAMPLE = flags.DEFINE_integer('sample', 65_536, 'Documents used.')
_LISTS = flags.DEFINE_integer('lists', 1024, 'L.')
_CODEBOOKS = flags.DEFINE_integer('codebooks', 16, 'M.')
_ITERATIONS = flags.DEFINE_integer('iterations', 20, 'Of k-means and PQ; alternations of OPQ.')
_SEEDS = flags.DEFINE_integer('seeds', 3, 'Seeds averaged over.')

BITS = 8


def _coarse_distortion(sample: np.ndarray, centroids: np.ndarray) -> float:
    flat = faiss.IndexFlatL2(sample.shape[1])
    flat.add(np.ascontiguousarray(centroids))
    return float(flat.search(sample, 1)[0].mean())


def _pq_distortion(sample: np.ndarray, codebooks: np.ndarray) -> float:
    pq = faiss.ProductQuantizer(sample.shape[1], len(codebooks), BITS)
    faiss.copy_array_to_vector(np.ascontiguousarray(codebooks).ravel(), pq.centroids)
    return float(np.square(pq.decode(pq.compute_codes(sample)) - sample).sum(1).mean())


def _faiss_pq(sample: np.ndarray, iterations: int, seed: int) -> np.ndarray:
    pq = faiss.ProductQuantizer(sample.shape[1], _CODEBOOKS.value, BITS)
    pq.cp.niter, pq.cp.seed, pq.cp.max_points_per_centroid = iterations, seed, len(sample)
    pq.train(sample)
    return faiss.vector_to_array(pq.centroids).reshape(_CODEBOOKS.value, 2**BITS, -1)


def _faiss_kmeans(sample: np.ndarray, seed: int) -> float:
    trained = faiss.Kmeans(
        sample.shape[1], _LISTS.value, niter=_ITERATIONS.value, seed=seed, max_points_per_centroid=len(sample)
    )
    trained.train(sample)
    return trained.centroids


def _faiss_opq(sample: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    matrix = faiss.OPQMatrix(sample.shape[1], _CODEBOOKS.value)
    matrix.niter, matrix.max_train_points = _ITERATIONS.value, len(sample)
    matrix.pq = faiss.ProductQuantizer(sample.shape[1], _CODEBOOKS.value, BITS)
    matrix.train(sample)
    rotated = matrix.apply(sample)
    return _faiss_pq(rotated, 10, seed), rotated


def _ours_opq(sample: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    books, rotation = clustering.opq(
        sample,
        codebooks=_CODEBOOKS.value,
        codewords=2**BITS,
        iterations=_ITERATIONS.value,
        pq_iterations=10,
        seed=seed,
    )
    return books, sample @ rotation


def _mean(fit: Callable, judge: Callable) -> dict[str, float]:
    distortions, seconds = [], []
    for seed in range(1, _SEEDS.value + 1):
        begin = time.perf_counter()
        fitted = fit(seed)
        seconds.append(time.perf_counter() - begin)
        distortions.append(judge(fitted))
    return {'distortion': float(np.mean(distortions)), 'seconds': float(np.median(seconds))}


def main(_argv: list[str]) -> None:
    """Fits both sides in turn and prints the ratios."""
    corpus = open_embeddings(_CORPUS.value)
    rows = np.random.default_rng(0).choice(len(corpus), min(_SAMPLE.value, len(corpus)), replace=False)
    sample = gather(corpus, np.sort(rows))
    count = {'iterations': _ITERATIONS.value}
    centroids = clustering.kmeans(sample, _LISTS.value, **count)[0]
    flat = faiss.IndexFlatL2(sample.shape[1])
    flat.add(np.ascontiguousarray(centroids))
    residuals = sample - centroids[flat.search(sample, 1)[1][:, 0]]
    pq = {'groups': _CODEBOOKS.value, **count}
    pairs = {
        'k-means': (
            lambda seed: clustering.kmeans(sample, _LISTS.value, seed=seed, **count)[0],
            lambda seed: _faiss_kmeans(sample, seed),
            lambda fitted: _coarse_distortion(sample, fitted),
        ),
        'PQ of residuals': (
            lambda seed: clustering.kmeans(residuals, 2**BITS, seed=seed, **pq),
            lambda seed: _faiss_pq(residuals, _ITERATIONS.value, seed),
            lambda fitted: _pq_distortion(residuals, fitted),
        ),
        'OPQ of residuals': (
            lambda seed: _ours_opq(residuals, seed),
            lambda seed: _faiss_opq(residuals, seed),
            lambda fitted: _pq_distortion(np.ascontiguousarray(fitted[1]), fitted[0]),
        ),
    }
    result = {}
    print('| | ours | faiss | distortion ratio | time ratio |\n|---|---:|---:|---:|---:|')
    for name, (ours, theirs, judge) in pairs.items():
        result[name] = {'ours': _mean(ours, judge), 'faiss': _mean(theirs, judge)}
        values = [result[name][side][key] for key in ('distortion', 'seconds') for side in ('ours', 'faiss')]
        result[name]['distortion_ratio'] = values[0] / values[1]
        result[name]['time_ratio'] = values[2] / values[3]
        cells = (
            f'{values[0]:.4f} | {values[1]:.4f} | {values[0] / values[1]:.4f} | {values[2] / values[3]:.2f}'
        )
        print(f'| {name} | {cells} |', flush=True)
    settings = {'sample': len(sample), 'dim': sample.shape[1], 'lists': _LISTS.value}
    settings |= {'codebooks': _CODEBOOKS.value, 'seeds': _SEEDS.value, **count}
    with files.atomic_file(_OUT.value) as aside:
        aside.write_text(json.dumps({'settings': settings, **result}, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__':
    app.run(main)
