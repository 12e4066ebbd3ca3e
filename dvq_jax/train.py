"""The training loop: step, log, look, evaluate, save. What it starts from is in `start`."""

import collections
import json
import sys
import time
from typing import Any

import grain
import jax
import ml_collections
import numpy as np

from dvq_jax import checkpoint, evaluate, files, metrics, plateau, towers
from dvq_jax.batches import training_batches
from dvq_jax.corpus import encode_corpus
from dvq_jax.dataset import Examples
from dvq_jax.errors import InputError
from dvq_jax.progress import Progress
from dvq_jax.run import Run, open_run, tower_args
from dvq_jax.start import Start, starting_point
from dvq_jax.train_step import LossFn, TrainState, TrainStep, index_params, make_loss, make_train_step


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
        self.progress = Progress('train', total=None, unit='steps', start=start)

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
        self.progress.add(steps, note=f'loss {record["loss"]:.4g}')
        self._pending.clear()
        self.restart(step)

    def restart(self, step: int) -> None:
        """Leaves out of the rates what has passed since the last line."""
        self._begin, self._waited, self._last = time.perf_counter(), 0.0, step

    def done(self) -> None:
        self.progress.done()


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
    start = starting_point(run)
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


def _loop(run: Run, start: Start, checkpoints: checkpoint.Checkpoints) -> dict[str, dict[str, float]]:
    """Steps, logs, evaluates and saves; returns the dev metrics by step."""
    config, state, first = run.config, start.state, int(start.state.step)
    batches = _batches(run, run.dataset.train, start.lists)
    if start.iterator is not None:
        batches.set_state(start.iterator)
    history, losses = dict(start.history), dict(start.losses)
    writer = None
    if jax.process_index() == 0:
        writer = metrics.MetricsWriter(run.workdir, step=first if start.resumed else None)
    log = _Log(run, writer, first)
    loss_fn = make_loss(tower=run.tower, objective=run.objective)

    def save(step: int) -> None:
        dev = history[str(step)] = _dev_metrics(run, state, start.lists)
        if writer:
            writer.write(step, {f'dev/{name}': value for name, value in dev.items()})
        about = {**start.about, 'iterator': batches.get_state(), 'history': history, 'losses': losses}
        checkpoints.save(state, about=about, metrics=dev)

    def look(step: int) -> None:
        losses[str(step)] = _dev_loss(run, loss_fn, state.params, start.lists)
        if writer:
            writer.write(step, {'dev/loss': losses[str(step)]})

    step, decay, step_fn = first, _decay(run, losses), None
    if not start.resumed:
        if decay is None and not losses:
            look(step)
        save(step)
    while decay is None or step < decay[1]:
        if step_fn is None:
            step_fn = _make_step(run, decay)
            log.progress.total = decay and decay[1]
        step += 1
        fetch = time.perf_counter()
        host = next(batches)
        waited = time.perf_counter() - fetch
        state, values = step_fn(state, host.batch)
        log.add(step, values, host.query_ids, waited)
        if decay is None and plateau.is_look(step):
            log.flush()
            look(step)
            decay = _decay(run, losses)
            step_fn = step_fn if decay is None else None
            log.restart(step)
        if step % config.train.checkpoint_every == 0 or (decay and step == decay[1]):
            log.flush()
            save(step)
            log.restart(step)
    log.done()
    if writer:
        writer.close()
    return history


def _batches(run: Run, examples: Examples, lists: np.ndarray | None) -> grain.DatasetIterator:
    return training_batches(
        examples,
        run.dataset.corpus,
        mixture=run.mixture,
        batch_size=run.config.data.batch_size,
        seed=run.config.seed,
        lists=lists,
        threads=run.config.data.threads,
    )


def _dev_loss(run: Run, loss_fn: LossFn, params: dict[str, Any], lists: np.ndarray | None) -> float:
    """The objective on the held-out queries; each time they bring the same candidates."""
    batches = _batches(run, run.dataset.dev, lists)
    count = max(len(run.dataset.dev) // run.config.data.batch_size, 1)
    return float(np.mean([loss_fn(params, next(batches).batch) for _ in range(count)]))


def _decay(run: Run, losses: dict[str, float]) -> tuple[int, int] | None:
    """When rates begin to fall and training ends, as far as it is known."""
    if (steps := run.config.train.steps) is not None:
        return 0, steps
    return plateau.decay({int(step): loss for step, loss in losses.items()})


def _make_step(run: Run, decay: tuple[int, int] | None) -> TrainStep:
    optimizer = run.make_optimizer(decay=decay)
    return make_train_step(tower=run.tower, optimizer=optimizer, objective=run.objective)


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
