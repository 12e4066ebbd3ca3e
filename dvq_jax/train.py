"""The training loop: step, log, evaluate, save. What it starts from is in `start`."""

import collections
import contextlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np

from dvq_jax import checkpoint, evaluate, files, metrics, peers, placement, preemption, towers
from dvq_jax.batches import training_batches
from dvq_jax.encode import encode_corpus, prune_stores, store_of
from dvq_jax.errors import InputError
from dvq_jax.memory import encoder_floats, step_bytes
from dvq_jax.progress import Progress
from dvq_jax.run import Run, open_run, tower_of
from dvq_jax.start import Start, stages_of, starting_point
from dvq_jax.train_step import TrainState, index_params, make_train_step, put

_TRACED = 10  # steps in a profile


def _dev_metrics(run: Run, state: TrainState, lists: np.ndarray | None) -> dict[str, float]:
    index = jax.tree.map(np.asarray, index_params(state.params))
    config = run.config.to_dict()
    tower = tower_of(config, jax.tree.map(np.asarray, state.params['tower']))
    audience = evaluate.audience_of(run.demand, tower, config['codes'])
    store = store_of(run.workdir, int(state.step))
    encoding = encode_corpus(index, run.dataset.corpus, lists, audience=audience, store=store, quiet=True)
    transformed = towers.apply(tower, run.queries.embeddings, run.queries.texts)
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
        self._progress = Progress('train', total=run.steps, unit='steps', start=start)

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


class _Trace:
    """A profile of some steps, where the config asks for one; TensorBoard and Perfetto show it."""

    def __init__(self, run: Run):
        self._first, self._folder = run.config.train.profile, str(run.workdir / 'profile')
        self._on = False

    def before(self, step: int) -> None:
        if self._first is None:
            return
        if step == self._first:
            jax.profiler.start_trace(self._folder)
            self._on = True
        elif step == self._first + _TRACED:
            self.stop()

    def stop(self) -> None:
        if self._on:
            jax.profiler.stop_trace()
            self._on = False


def train(config: ml_collections.ConfigDict, workdir: str) -> dict[str, Any]:
    """Trains an index and its query tower, see the module's text for how a run begins.

    Args:
      config: as in `configs/default.py`.
      workdir: the run's folder: checkpoints, metrics, the frozen lists.

    Returns:
      'step', 'metric', 'first', 'last' and 'best' dev metrics, 'best_step' and 'seconds'; or 'preempted', the
      last step, where SIGTERM has ended the run early: the same call goes on from there.

    Raises:
      InputError: a config, dataset or workdir that cannot be used, or a loss that is not finite.
    """
    begin = time.monotonic()
    with peers.all_or_none():
        run = open_run(config, workdir)
    with preemption.watch() as preempted, contextlib.ExitStack() as stack:
        start = starting_point(run)
        checkpoints = checkpoint.Checkpoints(files.make_folder(run.workdir), metric=run.metric)
        stack.callback(checkpoints.close)
        try:
            history, step = _loop(run, start, checkpoints, preempted)
        except InputError as error:
            _write_done(run, {'error': str(error)})  # ends those who follow the run
            raise
    if step < run.steps:
        print(f'preempted: saved at step {step} of {run.steps}', file=sys.stderr, flush=True)
        return {'workdir': str(run.workdir), 'preempted': step}
    result = _summary(run, history, seconds=time.monotonic() - begin)
    if result['step'] and result['best_step'] == 0:
        print(f'best is step 0, the start: training has not improved {run.metric}', file=sys.stderr)
    _write_done(run, result)
    return result


def _place_corpus(run: Run, state: TrainState) -> placement.Placed | None:
    """Puts the corpus where the config wants it, and says what a step takes beside it."""
    index, floats = run.config.index, 0
    if towers.reads_text(run.config.tower.name):
        floats = encoder_floats(
            run.tower.shape,
            queries=run.config.data.batch_size // jax.device_count(),
            length=run.config.tower.transformer.max_length,
            remat=run.tower.remat,
        )
    size = step_bytes(
        batch_size=run.config.data.batch_size,
        candidates=run.mixture.size,
        dim=run.dataset.dim,
        lists=index.lists,
        codewords=index.codewords,
        devices=jax.device_count(),
        in_batch=run.mixture.in_batch,
        estimator=run.objective.estimator,
        dynamic=run.dynamic,
        tower_parameters=sum(x.size for x in jax.tree.leaves(state.params['tower'])),
        tower_floats=floats,
    )
    where = placement.choose(run.config.data.placement, run.dataset.corpus, step_bytes=size)
    corpus = 'stays on the host' if where == 'host' else f'is {where} on the devices'
    print(
        f'a step takes about {size / 2**30:.2f} GiB of each device; the corpus {corpus}',
        file=sys.stderr,
        flush=True,
    )
    return placement.place(where, run.dataset.corpus)


def _loop(
    run: Run, start: Start, checkpoints: checkpoint.Checkpoints, preempted: Callable[[int], bool]
) -> tuple[dict[str, dict[str, float]], int]:
    """Steps, logs, evaluates and saves; returns the dev metrics by step, and the last step."""
    config, state, first = run.config, put(start.state), int(start.state.step)
    placed = _place_corpus(run, state)
    tower = tower_of(config.to_dict())
    batches = training_batches(
        run.dataset,
        mixture=run.mixture,
        batch_size=config.data.batch_size,
        seed=config.seed,
        lists=start.lists,
        with_docs=placed is None,
        read=towers.reader(tower.name, tower.args),
        threads=config.data.threads,
    )
    if start.iterator is not None:
        batches.set_state(start.iterator)
    history = dict(start.history)
    writer = None
    if jax.process_index() == 0:
        writer = metrics.MetricsWriter(run.workdir, step=first if start.resumed else None)
    log = _Log(run, writer, first)
    step_fn = make_train_step(
        tower=run.tower, optimizer=run.optimizer, objective=run.objective, trained=run.trained
    )

    def save(step: int, *, measure: bool = True) -> None:
        log.flush()
        dev = _dev_metrics(run, state, start.lists) if measure else {}
        if measure:
            history[str(step)] = dev
        if measure and writer:
            writer.write(step, {f'dev/{name}': value for name, value in dev.items()})
        about = {**start.about, 'iterator': batches.get_state(), 'history': history}
        checkpoints.save(state, about=about, metrics=dev)
        if jax.process_index() == 0:
            prune_stores(run.workdir, checkpoint.available_steps(run.workdir))
        log.restart(step)

    step = first
    if not start.resumed:
        save(first)
    stages_of(run).remove()
    trace = _Trace(run)
    for step in range(first + 1, run.steps + 1):
        trace.before(step)
        fetch = time.perf_counter()
        host = next(batches)
        waited = time.perf_counter() - fetch
        batch = host.batch if placed is None else placed.bring(host.batch)
        state, values = step_fn(state, batch)
        log.add(step, values, host.query_ids, waited)
        if step % config.train.checkpoint_every == 0 or step == run.steps:
            save(step)
        if preempted(step):
            save(step, measure=False)  # there is no time for a pass over the corpus
            break
    trace.stop()
    log.done()
    if writer:
        writer.close()
    return history, step


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
