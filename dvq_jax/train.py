"""The training loop: step, log, evaluate, save. What it starts from is in `start`."""

import contextlib
import json
import sys
import time
from typing import Any

import grain
import jax
import ml_collections
import numpy as np

from dvq_jax import checkpoint, evaluate, files, metrics, peers, placement, preemption, towers
from dvq_jax.batches import training_batches
from dvq_jax.encode import encode_corpus
from dvq_jax.errors import InputError
from dvq_jax.memory import Step, encoder_floats, step_bytes
from dvq_jax.progress import Progress
from dvq_jax.run import Run, open_run, tower_of
from dvq_jax.start import Start, stages_of, starting_point
from dvq_jax.store import prune_stores, store_of
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
    """Writes metrics, those of steps one step late, for the loop must not wait for the step just begun."""

    def __init__(self, run: Run, start: Start):
        self._run, self._writer, first = run, None, int(start.state.step)
        if jax.process_index() == 0:
            self._writer = metrics.MetricsWriter(run.workdir, step=first if start.resumed else None)
        self._pending: list[tuple[int, dict[str, jax.Array], tuple[str, ...]]] = []
        self._progress = Progress('train', total=run.steps, unit='steps', start=first)
        self.restart(first)

    def add(self, step: int, values: dict[str, jax.Array], query_ids: tuple[str, ...], waited: float) -> None:
        """Takes what a step will have measured, its queries, and the seconds that it waited for them."""
        self._waited += waited
        if self._pending and self._pending[-1][0] % self._run.config.train.log_every == 0:
            self.flush()
        self._pending.append((step, values, query_ids))

    def flush(self) -> None:
        """Checks every pending loss, and writes the last one's metrics."""
        if not self._pending:
            return
        fetched = jax.device_get([values for _, values, _ in self._pending])
        for (step, _, query_ids), values in zip(self._pending, fetched, strict=True):
            for name, value in values.items():
                if not np.isfinite(value):
                    raise InputError(
                        f'{self._run.workdir}: {name} is {value} at step {step}, for queries '
                        f'{" ".join(query_ids)}; lower the learning rates or raise loss.temperature, and use '
                        'another --workdir.'
                    )
        seconds = max(time.perf_counter() - self._begin, 1e-9)
        steps = step - self._last
        record = {
            **{name: float(value) for name, value in values.items()},
            'examples_per_second': steps * self._run.config.data.batch_size / seconds,
            'data_wait': self._waited / seconds,
        }
        self.write(step, record)
        self._progress.add(steps, note=f'loss {record["loss"]:.4g}')
        self._pending.clear()
        self.restart(step)

    def write(self, step: int, record: dict[str, float]) -> None:
        """Writes a line, from process 0."""
        if self._writer:
            self._writer.write(step, record)

    def restart(self, step: int) -> None:
        """Leaves out of the rates what has passed since the last line."""
        self._begin, self._waited, self._last = time.perf_counter(), 0.0, step

    def close(self) -> None:
        """Ends the line of progress, and closes the files."""
        self._progress.done()
        if self._writer:
            self._writer.close()


class _Trace:
    """A profile of some steps, where the config asks for one; TensorBoard and Perfetto show it."""

    def __init__(self, run: Run):
        self._first, self._folder = run.config.train.profile, str(run.workdir / 'profile')
        self._last: dict[str, jax.Array] | None = None  # what the last traced step measures

    def before(self, step: int) -> None:
        """Begins with the first step that is asked for."""
        if step == self._first:
            jax.profiler.start_trace(self._folder)
            self._last = {}

    def after(self, step: int, values: dict[str, jax.Array]) -> None:
        """Ends with the last."""
        if self._last is not None:
            self._last = values
            if step == self._first + _TRACED - 1:
                self.close()

    def close(self) -> None:
        """Ends where the run does."""
        if self._last is not None:
            jax.block_until_ready(self._last)  # steps are only launched by then
            jax.profiler.stop_trace()
            self._last = None


def train(config: ml_collections.ConfigDict, workdir: str) -> dict[str, Any]:
    """Trains an index and its query tower, see the module's text for how a run begins.

    Args:
      config: as in `configs/default.py`.
      workdir: the run's folder: checkpoints, metrics, the frozen lists.

    Returns:
      'step', 'metric', 'first', 'last' and 'best' dev metrics, 'best_step' and 'seconds'; or 'preempted', the
      step of the latest checkpoint, where SIGTERM has ended the run early: the same call goes on from there.

    Raises:
      InputError: a config, dataset or workdir that cannot be used, or a loss that is not finite.
    """
    begin = time.monotonic()
    with peers.all_or_none():
        run = open_run(config, workdir)
    try:
        with preemption.watch():
            history = _begin_and_loop(run)
    except preemption.Preempted:
        step = max(checkpoint.available_steps(run.workdir), default=0)
        where = f'from step {step} of {run.steps}' if step else 'where its start was'
        print(f'preempted: the same command goes on {where}', file=sys.stderr, flush=True)
        return {'workdir': str(run.workdir), 'preempted': step}
    result = _summary(run, history, seconds=time.monotonic() - begin)
    if result['step'] and result['best_step'] == 0:
        print(f'best is step 0, the start: training has not improved {run.metric}', file=sys.stderr)
    _write_done(run, result)
    return result


def _begin_and_loop(run: Run) -> dict[str, dict[str, float]]:
    start = starting_point(run)
    checkpoints = checkpoint.Checkpoints(files.make_folder(run.workdir), metric=run.metric)
    with contextlib.closing(checkpoints):
        try:
            return _loop(run, start, checkpoints)
        except InputError as error:
            _write_done(run, {'error': str(error)})  # ends those who follow the run
            raise


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
    step = Step(
        batch_size=run.config.data.batch_size,
        candidates=run.mixture.size,
        dim=run.dataset.dim,
        lists=index.lists,
        codebooks=index.codebooks,
        codewords=index.codewords,
        terms=run.objective.terms,
        devices=jax.device_count(),
        in_batch=run.mixture.in_batch,
        estimator=run.objective.estimator,
        dynamic=run.dynamic,
        trained=run.trained,
        tower_parameters=sum(x.size for x in jax.tree.leaves(state.params['tower'])),
        tower_floats=floats,
    )
    size = step_bytes(step, platform=jax.default_backend())
    where = placement.choose(run.config.data.placement, run.dataset.corpus, step_bytes=size)
    corpus = 'stays on the host' if where == 'host' else f'is {where} on the devices'
    print(
        f'a step takes about {size / 2**30:.2f} GiB of each device; the corpus {corpus}',
        file=sys.stderr,
        flush=True,
    )
    return placement.place(where, run.dataset.corpus)


def _batches(run: Run, start: Start, *, with_docs: bool) -> grain.DatasetIterator:
    """The batches from the start on."""
    tower = tower_of(run.config.to_dict())
    batches = training_batches(
        run.dataset.corpus,
        run.examples,
        mixture=run.mixture,
        batch_size=run.config.data.batch_size,
        seed=run.config.seed,
        lists=start.lists,
        with_docs=with_docs,
        read=towers.reader(tower.name, tower.args),
        threads=run.config.data.threads,
    )
    if start.iterator is not None:
        batches.set_state(start.iterator)
    return batches


def _loop(run: Run, start: Start, checkpoints: checkpoint.Checkpoints) -> dict[str, dict[str, float]]:
    """Steps, logs, evaluates and saves; returns the dev metrics by step."""
    state, first = put(start.state), int(start.state.step)
    placed = _place_corpus(run, state)
    batches = _batches(run, start, with_docs=placed is None)
    history = dict(start.history)
    step_fn = make_train_step(
        tower=run.tower, optimizer=run.optimizer, objective=run.objective, trained=run.trained
    )
    log, trace = _Log(run, start), _Trace(run)

    def save(step: int, *, measure: bool = True) -> None:
        log.flush()
        dev = _dev_metrics(run, state, start.lists) if measure else {}
        if measure:
            history[str(step)] = dev
            log.write(step, {f'dev/{name}': value for name, value in dev.items()})
        about = {**start.about, 'iterator': batches.get_state(), 'history': history}
        checkpoints.save(state, about=about, metrics=dev)
        if jax.process_index() == 0:
            prune_stores(run.workdir, checkpoint.available_steps(run.workdir))
        log.restart(step)

    with contextlib.closing(log), contextlib.closing(trace):
        if not start.resumed:
            save(first)
        stages_of(run).remove()
        for step in range(first + 1, run.steps + 1):
            trace.before(step)
            fetch = time.perf_counter()
            host = next(batches)
            waited = time.perf_counter() - fetch
            batch = host.batch if placed is None else placed.bring(host.batch)
            state, values = step_fn(state, batch)
            trace.after(step, values)
            log.add(step, values, host.query_ids, waited)
            if step % run.config.train.checkpoint_every == 0 or step == run.steps:
                save(step)
            elif preemption.noticed():
                save(step, measure=False)  # there is no time for a pass over the corpus
                raise preemption.Preempted
    return history


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
