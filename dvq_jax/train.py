"""The training loop: resume, step, log, evaluate, save.

How a run begins, in this order:

1. The workdir holds a checkpoint: go on from its latest, with the optimizer's state and the data iterator.
   The config must be the one that the run began with; only its length and cadence may differ (a schedule that
   decays does so towards the new length).
2. `config.resume_from` names another run's workdir: go on from that run's latest in the same way.
3. `config.init_from` names another run's workdir: take its index and query tower, and begin at step 0.
4. Else the index is initialised from the corpus.

The frozen lists are written once, the first checkpoint is the index before training, and what is interrupted
in between is done again with the same result.
"""

import collections
import dataclasses
import json
import pathlib
import sys
import time
from typing import Any

import jax
import ml_collections
import numpy as np

from dvq_jax import checkpoint, evaluate, files, initialize, metrics, routing, towers
from dvq_jax.batches import training_batches
from dvq_jax.corpus import assign_corpus, encode_corpus
from dvq_jax.errors import InputError
from dvq_jax.progress import Progress
from dvq_jax.run import Run, blank_state, flatten, open_run, tower_args
from dvq_jax.train_step import TrainState, index_params, init_state, make_train_step
from dvq_jax.types import IndexParams

_MAY_DIFFER = (
    'data.dataset',
    'data.threads',
    'resume_from',
    'train.steps',
    'train.log_every',
    'train.checkpoint_every',
)


def _check_same_run(run: Run, saved: dict[str, Any], workdir: pathlib.Path) -> None:
    new, old = flatten(run.config.to_dict()), flatten(saved['config'])
    for key in sorted(set(new) | set(old)):
        if key not in _MAY_DIFFER and new.get(key) != old.get(key):
            raise InputError(
                f'{workdir}: was trained with {key}={old.get(key)!r}, the config says {new.get(key)!r}; '
                'use another --workdir, or the config that the run began with.'
            )
    if (saved['fingerprint'], saved['examples']) != (run.dataset.fingerprint, run.dataset.digest):
        raise InputError(
            f'{workdir}: was trained on another dataset than {run.dataset.folder} is now; use another '
            '--workdir, or that dataset.'
        )


def _check_same_shapes(index: IndexParams, blank: TrainState, source: str) -> None:
    for name, ours in blank.params.items():
        theirs = getattr(index, name, ours)
        if name != 'tower' and theirs.shape != ours.shape:
            raise InputError(
                f'init_from: {source} has {name} of shape {list(theirs.shape)}, the config wants '
                f'{list(ours.shape)}; use the same index settings, or start anew.'
            )


def _first_index(run: Run) -> tuple[IndexParams, np.ndarray | None]:
    """k-means, lists that queries reach, (O)PQ; and the lists, where queries decided them."""
    config, corpus = run.config, run.dataset.corpus
    settings, lists = config.initialize.to_dict(), None
    draws = {'seed': config.seed, 'sample': settings['sample'], 'seeding': settings['seeding']}
    centroids = initialize.coarse(
        corpus,
        lists=config.index.lists,
        iterations=settings['coarse_iterations'],
        spherical=settings['spherical'],
        **draws,
    )
    if run.routed:
        centroids, lists = routing.learn(
            centroids,
            corpus,
            run.demand,
            rounds=config.routing.rounds,
            steps=config.routing.steps,
            nprobe=config.eval.nprobe,
            copies=config.index.copies,
            seed=config.seed,
        )
    index = initialize.fine(
        corpus,
        centroids,
        decided=lists,
        codebooks=config.index.codebooks,
        codewords=config.index.codewords,
        rotation=config.index.rotation,
        opq_iterations=settings['opq_iterations'],
        pq_iterations=settings['pq_iterations'],
        **draws,
    )
    return index, lists


def _first_state(run: Run, example: checkpoint.Trained | None) -> tuple[TrainState, np.ndarray | None]:
    """Rules 3 and 4: the state at step 0, of another run's index or of a new one, and the frozen lists."""
    config, corpus = run.config, run.dataset.corpus
    tower_params, lists = towers.initial_params(run.tower, run.dataset.dim, seed=config.seed), None
    if example is None:
        index, lists = _first_index(run)
    else:
        index = example.params
        if example.fingerprint == run.dataset.fingerprint:
            lists = example.lists
        if (example.tower.name, example.tower.args) == (config.tower.name, tower_args(config)):
            tower_params = example.tower.params
    if run.dynamic:
        lists = None
    elif lists is None:
        lists = assign_corpus(index, corpus)
    if lists is not None and len(lists) != config.index.copies * len(corpus):
        raise InputError(
            f'init_from: {config.init_from} has no {config.index.copies} lists for each document of '
            f'{run.dataset.folder}; use its index.copies and corpus, or start anew.'
        )
    return init_state(index, tower_params, run.optimizer), lists


def _dev_metrics(run: Run, state: TrainState, lists: np.ndarray | None) -> dict[str, float]:
    index = jax.tree.map(np.asarray, index_params(state.params))
    config = run.config.to_dict()
    tower_params = jax.tree.map(np.asarray, state.params['tower'])
    tower = towers.Tower(config['tower']['name'], tower_args(config), tower_params)
    audience = evaluate.audience_of(run.demand, tower, config['codes'])
    encoding = encode_corpus(index, run.dataset.corpus, lists, audience=audience, quiet=True)
    transformed = towers.apply(tower, run.queries.embeddings)
    nprobe = run.config.eval.nprobe
    results = evaluate.evaluate_index(index, encoding, run.queries, transformed=transformed, nprobe=[nprobe])
    sizes = np.bincount(encoding.lists, minlength=len(index.centroids)).astype(np.float64)
    used = [len(np.unique(column)) for column in encoding.codes.T]
    return {
        **results[str(nprobe)],
        # Over the whole corpus; the step's metrics of the same names are over its batch.
        'corpus_codewords_used': float(np.mean(used)) / index.codebooks.shape[1],
        'corpus_list_imbalance': float(np.sum(sizes**2) * len(sizes) / np.sum(sizes) ** 2),
    }


class _Log:
    """Fetches step metrics late, so that the loop never waits for the device but at a log line."""

    def __init__(self, run: Run, writer: metrics.MetricsWriter | None, start: int):
        self._run, self._writer = run, writer
        self._pending = collections.deque()
        self._begin, self._waited, self._last = time.perf_counter(), 0.0, start
        steps = run.config.train.steps
        self._progress = Progress('train', total=steps, unit='steps', start=start)

    def add(self, step: int, values: dict[str, jax.Array], query_ids: tuple[str, ...], waited: float) -> None:
        self._pending.append((step, values, query_ids))
        self._waited += waited
        if step % self._run.config.train.log_every == 0:
            self.flush()

    def flush(self) -> None:
        """Checks every pending loss, and writes the last one's metrics."""
        if not self._pending:
            return
        for step, values, query_ids in self._pending:
            for name, value in values.items():
                if not np.isfinite(value := float(value)):
                    raise InputError(
                        f'{self._run.workdir}: {name} is {value} at step {step}, for queries '
                        f'{" ".join(query_ids)}; lower the learning rates or raise loss.temperature, and use '
                        'another --workdir.'
                    )
        step, values, _ = self._pending[-1]
        seconds = max(time.perf_counter() - self._begin, 1e-9)
        steps = step - self._last
        record = {
            **{name: float(value) for name, value in values.items()},
            'examples_per_second': steps * self._run.config.data.batch_size / seconds,
            'data_wait': self._waited / seconds,
        }
        if self._writer:
            self._writer.write(step, record)
        self._progress.add(steps, note=f'loss {record["loss"]:.4g}')
        self._pending.clear()
        self.restart(step)

    def restart(self, step: int) -> None:
        """Leaves out of the rates what has passed since the last line."""
        self._begin, self._waited, self._last = time.perf_counter(), 0.0, step

    def done(self) -> None:
        self._progress.done()


def train(config: ml_collections.ConfigDict, workdir: str) -> dict[str, Any]:
    """Trains an index and its query tower, see the module's text for how a run begins.

    Args:
      config: as in `configs/default.py`.
      workdir: the run's folder: checkpoints, metrics, the frozen lists.

    Returns:
      'step', 'metric', 'first', 'last' and 'best' dev metrics, 'best_step' and 'seconds'.

    Raises:
      InputError: a config, dataset or workdir that cannot be used, or a loss that is not finite.
    """
    begin = time.monotonic()
    run = open_run(config, workdir)
    start = _begin(run)
    checkpoints = checkpoint.Checkpoints(files.make_folder(run.workdir), metric=run.metric)
    try:
        history = _loop(run, start, checkpoints)
    except InputError as error:
        _write_done(run, {'error': str(error)})  # ends those who follow the run
        raise
    finally:
        checkpoints.close()
    result = _summary(run, history, seconds=time.monotonic() - begin)
    if result['step'] and result['best_step'] == 0:
        print(f'best is step 0, the start: training has not improved {run.metric}', file=sys.stderr)
    _write_done(run, result)
    return result


@dataclasses.dataclass(frozen=True)
class _Start:
    """What a run begins with.

    Attributes:
      state: arrays on the host.
      lists: [N] int32, the frozen lists; None where they are re-assigned.
      about: what every checkpoint says about the run.
      iterator: the data iterator's state; None at the beginning.
      history: the dev metrics of earlier steps of this workdir.
      resumed: whether this workdir holds a checkpoint of that step.
    """

    state: TrainState
    lists: np.ndarray | None
    about: dict[str, Any]
    iterator: dict[str, Any] | None = None
    history: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    resumed: bool = False


def _loop(run: Run, start: _Start, checkpoints: checkpoint.Checkpoints) -> dict[str, dict[str, float]]:
    """Steps, logs, evaluates and saves; returns the dev metrics by step."""
    config, state, first = run.config, start.state, int(start.state.step)
    batches = training_batches(
        run.dataset,
        mixture=run.mixture,
        batch_size=config.data.batch_size,
        seed=config.seed,
        lists=start.lists,
        threads=config.data.threads,
    )
    if start.iterator is not None:
        batches.set_state(start.iterator)
    history = dict(start.history)
    writer = None
    if jax.process_index() == 0:
        writer = metrics.MetricsWriter(run.workdir, step=first if start.resumed else None)
    log = _Log(run, writer, first)
    step_fn = make_train_step(tower=run.tower, optimizer=run.optimizer, objective=run.objective)

    def save(step: int) -> None:
        dev = history[str(step)] = _dev_metrics(run, state, start.lists)
        if writer:
            writer.write(step, {f'dev/{name}': value for name, value in dev.items()})
        about = {**start.about, 'iterator': batches.get_state(), 'history': history}
        checkpoints.save(state, about=about, metrics=dev)

    if not start.resumed:
        save(first)
    for step in range(first + 1, config.train.steps + 1):
        fetch = time.perf_counter()
        host = next(batches)
        waited = time.perf_counter() - fetch
        state, values = step_fn(state, host.batch)
        log.add(step, values, host.query_ids, waited)
        if step % config.train.checkpoint_every == 0 or step == config.train.steps:
            log.flush()
            save(step)
            log.restart(step)
    log.done()
    if writer:
        writer.close()
    return history


def _about(run: Run, lists_digest: str | None) -> dict[str, Any]:
    config = run.config.to_dict()
    return {
        'config': config,
        'dataset': str(run.dataset.folder.absolute()),
        'fingerprint': run.dataset.fingerprint,
        'examples': run.dataset.digest,
        'lists': lists_digest,
        'metric': run.metric,
        'tower': config['tower']['name'],
        'tower_args': tower_args(config),
    }


def _begin(run: Run) -> _Start:
    """The four rules."""
    blank, source = blank_state(run), run.workdir
    steps = checkpoint.available_steps(source)
    resumed = bool(steps)
    if not steps and run.config.resume_from:
        source = pathlib.Path(run.config.resume_from).absolute()
        steps = checkpoint.available_steps(source)
        if not steps:
            raise InputError(f'resume_from: {source} holds no checkpoint; give the workdir of a run.')
    saved = example = None
    if steps:
        saved = checkpoint.read_about(source, steps[-1])
        _check_same_run(run, saved, source)
    elif run.config.init_from:
        example = checkpoint.load(run.config.init_from)
        _check_same_shapes(example.params, blank, run.config.init_from)
    # Nothing is touched before this: a refused config must not harm the run that is there.
    files.make_folder(run.workdir)
    (run.workdir / evaluate.DONE).unlink(missing_ok=True)
    if saved is None:
        state, lists = _first_state(run, example)
        digest = None if lists is None else checkpoint.write_lists(run.workdir, lists)
        return _Start(state=state, lists=lists, about=_about(run, digest))
    print(f'going on from step {steps[-1]} of {source}', file=sys.stderr, flush=True)
    lists = checkpoint.read_lists(source, saved['lists']) if saved['lists'] else None
    if not resumed and lists is not None:
        checkpoint.write_lists(run.workdir, lists)
    return _Start(
        state=checkpoint.read_state(source, steps[-1], blank),
        lists=lists,
        about=_about(run, saved['lists']),
        iterator=saved['iterator'],
        history=saved['history'] if resumed else {},
        resumed=resumed,
    )


def _summary(run: Run, history: dict[str, dict[str, float]], *, seconds: float) -> dict[str, Any]:
    steps = sorted(history, key=int)
    best = max(steps, key=lambda step: (history[step][run.metric], int(step)))
    return {
        'workdir': str(run.workdir),
        'step': int(steps[-1]),
        'metric': run.metric,
        'first': history[steps[0]],
        'last': history[steps[-1]],
        'best': history[best],
        'best_step': int(best),
        'seconds': round(seconds, 1),
    }


def _write_done(run: Run, result: dict[str, Any]) -> None:
    if jax.process_index() == 0:
        with files.atomic_file(run.workdir / evaluate.DONE) as aside:
            aside.write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')
