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

import numpy as np
import speed_clustering as fits
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
    residuals = fits.residuals_of(sample, centroids)
    books = {'codebooks': _CODEBOOKS.value}
    pairs = {
        'k-means': (
            lambda seed: clustering.kmeans(sample, _LISTS.value, seed=seed, **count)[0],
            lambda seed: fits.faiss_kmeans(sample, lists=_LISTS.value, seed=seed, **count),
            lambda fitted: fits.coarse_distortion(sample, fitted),
        ),
        'PQ of residuals': (
            lambda seed: clustering.kmeans(
                residuals, 2**fits.BITS, groups=_CODEBOOKS.value, seed=seed, **count
            ),
            lambda seed: fits.faiss_pq(residuals, seed=seed, **books, **count),
            lambda fitted: fits.pq_distortion(residuals, fitted),
        ),
        'OPQ of residuals': (
            lambda seed: fits.our_opq(residuals, pq_iterations=10, seed=seed, **books, **count),
            lambda seed: fits.faiss_opq(
                residuals, first=40, inner=4, pq_iterations=10, seed=seed, **books, **count
            ),
            lambda fitted: fits.pq_distortion(np.ascontiguousarray(fitted[1]), fitted[0]),
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
