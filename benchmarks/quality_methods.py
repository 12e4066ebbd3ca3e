"""The methods of `quality.py`: how each index is trained, tuned on held-out queries, and measured.

What peers are given. FAISS: all documents to train on. ScaNN: the best threshold of anisotropic quantization;
with SOAR a second copy of every document, whose bytes are stated. LibVQ: FAISS's OPQ start, its lists and
rotation frozen, ListNet, a hard negative and in-batch documents, the checkpoint that is best on held-out
queries; its centroids take AdamW instead of plain SGD. JPQ: the same start, labels, the best learning rates.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))  # configs/ is read from the checkout

import baselines
import ml_collections
import numpy as np
import quality_report

from configs import default
from dvq_jax import checkpoint, evaluate, files, train
from dvq_jax.data import gather
from dvq_jax.dataset import Dataset
from dvq_jax.demand import score_spread
from dvq_jax.quantizer import bytes_per_document
from dvq_jax.run import open_run
from dvq_jax.train_step import init_state
from dvq_jax.types import Encoding, IndexParams

# name -> what it changes in configs/default.py; `init_from` names another of these.
PLAIN = {
    'routing.rounds': 0,
    'codes.queries': 0,
    'tower.name': 'identity',
    'candidates': 'top200:8+ib',
}
OURS: dict[str, dict[str, Any]] = {
    'ours: OPQ start': {**PLAIN, 'train.steps': 0},
    'ours: + distillation': {**PLAIN, 'init_from': 'ours: OPQ start'},
    'ours: + codes for queries': {
        'routing.rounds': 0,
        'tower.name': 'identity',
        'train.steps': 0,
        'init_from': 'ours: + distillation',
    },
    'ours: + lists for queries': {'tower.name': 'identity'},
    'ours: + linear tower (default)': {},
    'ours: + a second list': {'index.copies': 2, 'eval.nprobe': 5},
    'ours: default with labels': {
        'candidates': 'gt+top100:16+ib',
        'loss.name': 'listnet+0.3*contrastive',
    },
}
# LibVQ's recipe in our config; its temperature and rates are absolute, ours relative: see `_libvq_changes`.
LIBVQ: dict[str, Any] = {
    'candidates': 'top200:1+ib',
    'loss.name': 'listnet',
    'routing.rounds': 0,
    'codes.queries': 0,
    'tower.name': 'identity',
    'train.steps': 1500,
    'train.checkpoint_every': 250,
}
LIBVQ_RATES = {'centroids': 1e-3, 'codebooks': 1e-4}
LIBVQ_TEMPERATURES = [{'temperature': value} for value in (0.02, 0.05, 0.1)]
SCANN_GRID = [{'threshold': value} for value in (None, 0.07, 0.1, 0.2, 0.3)]
SOAR_GRID = [{'soar_lambda': 1.5, 'threshold': value} for value in (None, 0.07, 0.1)]
JPQ_STEPS = 1500
JPQ_GRID = [
    {'codebook_rate': codebooks, 'query_rate': query, 'temperature': temperature}
    for codebooks in (1e-4, 3e-4)
    for query in (1e-4, 3e-4, 1e-3)
    for temperature in (0.02, 0.03, 0.05)
]
_ROW_NUMBER = 4  # bytes by which a second copy says whose it is


@dataclasses.dataclass(frozen=True)
class Bench:
    """What all rows share.

    Attributes:
      dataset: opened.
      queries: reported on.
      dev: held out of training, to tune on.
      nprobe: the numbers of lists to probe.
      lists: L.
      workdir: for trained indexes.
    """

    dataset: Dataset
    queries: evaluate.Queries
    dev: evaluate.Queries
    nprobe: tuple[int, ...]
    lists: int
    workdir: pathlib.Path

    @property
    def tuned_at(self) -> tuple[int, ...]:
        """The numbers of lists that a tuned setting is judged at."""
        return min(10, self.lists), self.lists

    @functools.cached_property
    def corpus(self) -> np.ndarray:
        """[N, D] float32."""
        return gather(self.dataset.corpus, np.arange(len(self.dataset.corpus)))

    @functools.cached_property
    def labelled(self) -> baselines.Labelled:
        """The training queries with labels."""
        return baselines.read_labelled(self.dataset)


@dataclasses.dataclass(frozen=True)
class Job:
    """A row: a method at a size.

    Attributes:
      method: its name.
      size: bytes of a document's codes, of one copy.
      codewords: K; 0 for dense vectors.
      seed: of everything drawn.
      chosen: the settings that an earlier row was tuned to; None tunes.
    """

    method: str
    size: int
    codewords: int
    seed: int
    chosen: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """The row's name."""
        return f'{self.method}, {self.size} bytes, K {self.codewords}, seed {self.seed}'

    @property
    def shape(self) -> dict[str, int]:
        """M and K."""
        return {'codebooks': self.size * 8 // (self.codewords - 1).bit_length(), 'codewords': self.codewords}

    def folder(self, bench: Bench, label: str, settings: Any = None) -> pathlib.Path:
        """Where an index of this size, of that label and settings, is kept."""
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
        plain = label.replace(': ', '-').replace(' ', '-')
        return bench.workdir / f'{self.size}-{self.codewords}-{self.seed}' / f'{plain}-{digest}'


def _dense(bench: Bench, _job: Job) -> dict[str, Any]:
    values = {name: 1.0 for name in evaluate.teacher_metrics(bench.queries)}
    values |= {**evaluate.dense_metrics(bench.queries), 'docs_scanned': float(len(bench.dataset.corpus))}
    return {'nprobe': {str(bench.lists): values}, 'train_seconds': 0.0}


def _faiss_start(
    bench: Bench, job: Job, *, opq: bool = False, inner_product_lists: bool = False
) -> tuple[IndexParams, Encoding, float]:
    """A FAISS index in our layout and the seconds that it took, kept for the recipes that start from it."""

    def train_index() -> dict[str, np.ndarray]:
        settings = {'rotation': rotation, 'inner_product_lists': inner_product_lists}
        index = baselines.train_ivfpq(bench.corpus, lists=bench.lists, seed=job.seed, **job.shape, **settings)
        params, encoding = baselines.convert(index)
        arrays = {name: getattr(params, name) for name in IndexParams.__annotations__}
        return {**arrays, 'lists': encoding.lists, 'codes': encoding.codes}

    rotation, before = None, 0.0
    if opq:  # the same for every seed
        path = bench.workdir / f'opq-{job.size}-{job.codewords}.npz'
        kept = _kept(path, lambda: {'rotation': baselines.train_opq(bench.corpus, **job.shape)})
        rotation, before = kept['rotation'], float(kept['seconds'])
    kind = {'opq': opq, 'inner_product_lists': inner_product_lists}
    kept = _kept(job.folder(bench, 'faiss', kind).with_suffix('.npz'), train_index)
    params = IndexParams(**{name: kept[name] for name in IndexParams.__annotations__})
    return params, Encoding(lists=kept['lists'], codes=kept['codes']), before + float(kept['seconds'])


def _kept(path: pathlib.Path, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """What `make` makes, and the 'seconds' that it took, made once and read from the file since."""
    if not path.exists():
        begin = time.monotonic()
        arrays = make()
        seconds = time.monotonic() - begin
        with files.atomic_file(path) as aside, open(aside, 'wb') as file:
            np.savez(file, seconds=seconds, **arrays)
    with np.load(path) as stored:
        return dict(stored)


def _faiss(bench: Bench, job: Job, **settings: bool) -> dict[str, Any]:
    params, encoding, seconds = _faiss_start(bench, job, **settings)
    results = evaluate.evaluate_index(
        params, encoding, bench.queries, transformed=bench.queries.embeddings, nprobe=bench.nprobe
    )
    return {'nprobe': results, 'train_seconds': seconds}


def _tune(
    job: Job, grid: list[dict], fit: Callable[..., Any], judge: Callable[[Any], float]
) -> tuple[Any, dict[str, Any]]:
    """The best of a grid's fits, or the one chosen already, and what its row says about the choice."""
    tried, best = [], None
    for settings in grid if job.chosen is None else [job.chosen]:
        begin = time.monotonic()
        fitted = fit(**settings)
        seconds = time.monotonic() - begin
        tried.append({**settings, 'dev': judge(fitted)})
        print(f'{job.name}: {tried[-1]}', file=sys.stderr, flush=True)
        if best is None or tried[-1]['dev'] > best[0]:
            best = tried[-1]['dev'], fitted, {'chosen': settings, 'train_seconds': seconds}
    return best[1], {**best[2], 'tried': tried}


def _scann(bench: Bench, job: Job, *, grid: list[dict]) -> dict[str, Any]:
    def judge(index: baselines.ScannIndex) -> float:
        return _mean(baselines.evaluate_scann(index, bench.dev, nprobe=bench.tuned_at), 'teacher@10')

    fit = functools.partial(
        baselines.train_scann, bench.corpus, lists=bench.lists, seed=job.seed, **job.shape
    )
    index, about = _tune(job, grid, fit, judge)
    results = baselines.evaluate_scann(index, bench.queries, nprobe=bench.nprobe)
    copies = int(index.sizes.sum() > len(index.rows)) + 1
    return {**about, 'nprobe': results, 'bytes_per_document': copies * job.size}


def _mean(results: dict[str, dict[str, float]], metric: str) -> float:
    return float(np.mean([values[metric] for values in results.values()]))


def _libvq_changes(bench: Bench, params: IndexParams, temperature: float) -> dict[str, Any]:
    """LibVQ's settings; a temperature is divided by the teacher's spread and a rate by what it moves."""
    spread = score_spread(bench.dataset.dev.columns().topk_scores)
    rates = {
        f'optimizer.rates.{name}': rate / float(np.sqrt(np.mean(np.square(getattr(params, name)))))
        for name, rate in LIBVQ_RATES.items()
    }
    return {**LIBVQ, **rates, 'loss.temperature': temperature / spread}


def _libvq(bench: Bench, job: Job, *, grid: list[dict]) -> dict[str, Any]:
    params, encoding, seconds = _faiss_start(bench, job, opq=True)
    start = job.folder(bench, 'LibVQ start')
    if not checkpoint.available_steps(start):
        _store(start, params, encoding.lists, _config(bench, job, LIBVQ))

    def fit(temperature: float) -> tuple[pathlib.Path, dict[str, Any]]:
        changes = {**_libvq_changes(bench, params, temperature), 'init_from': str(start)}
        workdir = job.folder(bench, 'LibVQ', temperature)
        return workdir, _train(_config(bench, job, changes), workdir)

    (workdir, run), about = _tune(job, grid, fit, lambda fitted: fitted[1]['best'][fitted[1]['metric']])
    return {**about, **_measure(bench, workdir), 'train_seconds': seconds + run['seconds']}


def _train(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """What training says at its end; a run that has ended is not begun again."""
    finished = workdir / evaluate.DONE
    done = json.loads(finished.read_text(encoding='utf-8')) if finished.exists() else {'error': None}
    return train.train(config, str(workdir)) if 'error' in done else done


def _store(folder: pathlib.Path, params: IndexParams, lists: np.ndarray, config: Any) -> None:
    """Writes an index as the checkpoint of a run that has not begun, for `init_from`."""
    run = open_run(config, str(folder))
    files.make_folder(folder)
    about = {
        'config': run.config.to_dict(),
        'dataset': str(run.dataset.folder.absolute()),
        'fingerprint': run.dataset.fingerprint,
        'examples': run.dataset.digest,
        'lists': checkpoint.write_lists(folder, lists),
        'metric': run.metric,
        'tower': 'identity',
        'tower_args': {},
    }
    checkpoints = checkpoint.Checkpoints(folder, metric=run.metric)
    state = init_state(params, {}, run.optimizer)
    checkpoints.save(state, about=about, metrics={run.metric: 0.0})
    checkpoints.close()


def _jpq(bench: Bench, job: Job) -> dict[str, Any]:
    start, encoding, seconds = _faiss_start(bench, job, opq=True)

    def measure(fitted: tuple[IndexParams, np.ndarray], queries: evaluate.Queries, nprobe) -> dict:
        params, query_map = fitted
        transformed = queries.embeddings @ query_map
        return evaluate.evaluate_index(params, encoding, queries, transformed=transformed, nprobe=nprobe)

    fit = functools.partial(
        baselines.train_jpq, start, encoding, bench.labelled, steps=JPQ_STEPS, seed=job.seed
    )
    fitted, about = _tune(
        job, JPQ_GRID, fit, lambda fitted: _mean(measure(fitted, bench.dev, bench.tuned_at), 'RR@10')
    )
    results = measure(fitted, bench.queries, bench.nprobe)
    return {**about, 'nprobe': results, 'train_seconds': seconds + about['train_seconds']}


def _config(bench: Bench, job: Job, changes: dict[str, Any]) -> ml_collections.ConfigDict:
    config = default.get_config()
    config.seed = job.seed
    config.data.dataset = str(bench.dataset.folder)
    config.index.lists = bench.lists
    config.index.update(job.shape)
    config.eval.nprobe = bench.tuned_at[0]
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    return config


def recipe(method: str) -> list[dict[str, Any]]:
    """The changes of one of OURS, after those of the row that it starts from."""
    changes = OURS[method]
    return [*(recipe(changes['init_from']) if 'init_from' in changes else []), changes]


def _train_ours(bench: Bench, job: Job, method: str) -> tuple[pathlib.Path, float]:
    """Trains a row, after the row that it starts from; returns its workdir and the seconds of both."""
    changes, before = dict(OURS[method]), 0.0
    if 'init_from' in changes:
        source, before = _train_ours(bench, job, changes['init_from'])
        changes['init_from'] = str(source)
    workdir = job.folder(bench, method, recipe(method))
    return workdir, before + _train(_config(bench, job, changes), workdir)['seconds']


def _ours(bench: Bench, job: Job) -> dict[str, Any]:
    workdir, seconds = _train_ours(bench, job, job.method)
    return {**_measure(bench, workdir), 'changes': recipe(job.method), 'train_seconds': seconds}


def _measure(bench: Bench, workdir: pathlib.Path) -> dict[str, Any]:
    trained, dataset = evaluate.open_trained(str(workdir), 'best')
    result = evaluate.evaluate_trained(trained, dataset, bench.queries, nprobe=bench.nprobe)
    return {name: result[name] for name in ('nprobe', 'bytes_per_document', 'step')}


METHODS: dict[str, Callable[[Bench, Job], dict[str, Any]]] = {
    quality_report.DENSE: _dense,
    'FAISS IVFPQ': _faiss,
    'FAISS IVFPQ (inner-product lists)': functools.partial(_faiss, inner_product_lists=True),
    'FAISS OPQ+IVFPQ': functools.partial(_faiss, opq=True),
    'ScaNN': functools.partial(_scann, grid=SCANN_GRID),
    'ScaNN with SOAR': functools.partial(_scann, grid=SOAR_GRID),
    'LibVQ recipe': functools.partial(_libvq, grid=[{'temperature': 1.0}]),
    'LibVQ recipe (best temperature)': functools.partial(_libvq, grid=LIBVQ_TEMPERATURES),
    'JPQ recipe': _jpq,
    **dict.fromkeys(OURS, _ours),
}


def run(bench: Bench, job: Job) -> dict[str, Any]:
    """Trains, tunes and measures one row.

    Args:
      bench: what all rows share.
      job: the row.

    Returns:
      'method', 'bytes', 'codewords', 'seed', 'documents', 'bytes_per_document' (codes of all copies),
      'extra_bytes' (what further copies cost, with a row number each), 'train_seconds', 'nprobe' (see
      `evaluate.evaluate_index`), and where the method has them 'chosen' and 'tried', 'changes', 'step'.
    """
    print(f'{job.name}: begins', file=sys.stderr, flush=True)
    row = {'method': job.method, 'bytes': job.size, 'codewords': job.codewords, 'seed': job.seed}
    plain = bytes_per_document(*job.shape.values()) if job.codewords else job.size
    row |= {'bytes_per_document': plain, 'documents': len(bench.dataset.corpus)}
    row |= METHODS[job.method](bench, job)
    copies = round(row['bytes_per_document'] / job.size)
    return row | {'extra_bytes': (copies - 1) * (job.size + _ROW_NUMBER)}
