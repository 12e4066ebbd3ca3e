"""The training loop: resume, step, log, evaluate, save.

How a run begins, in this order:

1. The workdir holds a checkpoint: go on from its latest, with the optimizer's state and the data iterator.
   The config must be the one that the run began with; only its length and cadence may differ.
2. `config.resume_from` names another run's workdir: go on from that run's latest in the same way.
3. `config.init_from` names another run's workdir: take its index and query tower, and begin at step 0.
4. Else the index is initialised from the corpus.

The frozen lists are written once, the first checkpoint is the index before training, and what is interrupted
in between is done again with the same result.
"""

import collections
import json
import pathlib
import time
from typing import Any

import jax
import ml_collections
import numpy as np

from dvq_jax import checkpoint, evaluate, files, metrics, towers
from dvq_jax.batches import training_batches
from dvq_jax.corpus import assign_corpus, encode_corpus
from dvq_jax.errors import InputError
from dvq_jax.initialize import initialize
from dvq_jax.progress import Progress
from dvq_jax.run import Run, blank_state, open_run
from dvq_jax.train_step import TrainState, index_params, init_state, make_train_step
from dvq_jax.types import IndexParams

_MAY_DIFFER = ('data.dataset', 'data.threads', 'train.steps', 'train.log_every', 'train.checkpoint_every')


def _flatten(tree: dict[str, Any], prefix: str = '') -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        flat |= _flatten(value, f'{prefix}{key}.') if isinstance(value, dict) else {prefix + key: value}
    return flat


def _check_same_config(here: dict[str, Any], there: dict[str, Any], workdir: pathlib.Path) -> None:
    new, old = _flatten(here), _flatten(there)
    for key in sorted(set(new) | set(old)):
        if key not in _MAY_DIFFER and new.get(key) != old.get(key):
            raise InputError(
                f'{workdir}: was trained with {key}={old.get(key)!r}, the config says {new.get(key)!r}; '
                'use another --workdir, or the config that the run began with.'
            )


def _check_same_shapes(index: IndexParams, blank: TrainState, source: str) -> None:
    for name, ours in blank.params.items():
        theirs = getattr(index, name, ours)
        if name != 'tower' and theirs.shape != ours.shape:
            raise InputError(
                f'init_from: {source} has {name} of shape {list(theirs.shape)}, the config wants '
                f'{list(ours.shape)}; use the same index settings, or start anew.'
            )


def _first_state(run: Run, blank: TrainState) -> tuple[TrainState, np.ndarray | None]:
    """Rules 3 and 4: the state at step 0, and the frozen lists."""
    config, corpus = run.config, run.dataset.corpus
    tower_params = towers.initial_params(run.tower, run.dataset.dim, seed=config.seed)
    lists = None
    if config.init_from:
        source = checkpoint.load(config.init_from)
        index = source.params
        if source.fingerprint == run.dataset.fingerprint:
            lists = source.lists
        _check_same_shapes(index, blank, config.init_from)
        if (source.tower.name, source.tower.args) == (config.tower.name, config.tower.args.to_dict()):
            tower_params = source.tower.params
    else:
        index = initialize(corpus, seed=config.seed, **config.index.to_dict(), **config.initialize.to_dict())
    if run.dynamic:
        lists = None
    elif lists is None:
        lists = assign_corpus(index, corpus)
    return init_state(index, tower_params, run.optimizer), lists


def _dev_metrics(run: Run, state: TrainState, lists: np.ndarray | None) -> dict[str, float]:
    index = jax.tree.map(np.asarray, index_params(state.params))
    encoding = encode_corpus(index, run.dataset.corpus, lists, quiet=True)
    tower_params = jax.tree.map(np.asarray, state.params['tower'])
    transformed = np.asarray(run.tower.apply({'params': tower_params}, run.queries.embeddings))
    nprobe = min(run.config.eval.nprobe, len(index.centroids))
    results = evaluate.evaluate_index(index, encoding, run.queries, transformed=transformed, nprobe=[nprobe])
    sizes = np.bincount(encoding.lists, minlength=len(index.centroids)).astype(np.float64)
    used = [len(np.unique(column)) for column in encoding.codes.T]
    return {
        **{name: value for name, value in results[str(nprobe)].items() if name != 'ms_per_query'},
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
            if not np.isfinite(float(values['loss'])):
                raise InputError(
                    f'{self._run.workdir}: the loss is {float(values["loss"])} at step {step}, for queries '
                    f'{" ".join(query_ids)}; lower the learning rates or raise loss.temperature.'
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
    blank = blank_state(run)
    checkpoints = checkpoint.Checkpoints(files.make_folder(run.workdir), metric=run.metric)
    state, lists, about = _begin(run, blank, checkpoints)
    batches = training_batches(
        run.dataset,
        mixture=run.mixture,
        batch_size=config.data.batch_size,
        seed=config.seed,
        lists=lists,
        threads=config.data.threads,
    )
    if about.get('iterator'):
        batches.set_state(about['iterator'])
    history = dict(about.get('history', {}))
    start = int(state.step)
    writer = metrics.MetricsWriter(run.workdir, step=start) if jax.process_index() == 0 else None
    log = _Log(run, writer, start)
    step_fn = make_train_step(tower=run.tower, optimizer=run.optimizer, objective=run.objective)

    def save(step: int) -> None:
        dev = _dev_metrics(run, state, lists)
        history[str(step)] = dev
        if writer:
            writer.write(step, {f'dev/{name}': value for name, value in dev.items()})
        checkpoints.save(
            state,
            about={**about, 'iterator': batches.get_state(), 'history': history},
            metrics=dev,
        )

    if checkpoints.latest() is None:
        save(start)
    for step in range(start + 1, config.train.steps + 1):
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
    checkpoints.close()
    return _finish(run, history, seconds=time.monotonic() - begin)


def _begin(
    run: Run, blank: TrainState, checkpoints: checkpoint.Checkpoints
) -> tuple[TrainState, np.ndarray | None, dict[str, Any]]:
    """The four rules: the state to go on from, the frozen lists, and what checkpoints say about the run."""
    (run.workdir / evaluate.DONE).unlink(missing_ok=True)
    config = run.config.to_dict()
    source, reader = run.workdir, checkpoints
    if checkpoints.latest() is None and run.config.resume_from:
        source = pathlib.Path(run.config.resume_from).absolute()
        if not checkpoint.available_steps(source):
            raise InputError(f'resume_from: {source} holds no checkpoint; give the workdir of a run.')
        reader = checkpoint.Checkpoints(source, metric=run.metric)
    step = reader.latest()
    if step is not None:
        saved = reader.about(step)
        _check_same_config({**config, 'resume_from': None}, {**saved['config'], 'resume_from': None}, source)
        if saved['fingerprint'] != run.dataset.fingerprint:
            raise InputError(f'{source}: was trained on another corpus than {run.dataset.folder} has.')
        state = reader.restore(blank, step)
        lists = checkpoint.read_lists(source, saved['lists']) if saved['lists'] else None
        if source != run.workdir and lists is not None:
            checkpoint.write_lists(run.workdir, lists)
        dataset = str(run.dataset.folder.absolute())
        return state, lists, {**saved, 'config': config, 'dataset': dataset}
    state, lists = _first_state(run, blank)
    about = {
        'config': config,
        'dataset': str(run.dataset.folder.absolute()),
        'fingerprint': run.dataset.fingerprint,
        'lists': None if lists is None else checkpoint.write_lists(run.workdir, lists),
        'metric': run.metric,
    }
    return state, lists, about


def _finish(run: Run, history: dict[str, dict[str, float]], *, seconds: float) -> dict[str, Any]:
    steps = sorted(history, key=int)
    best = max(steps, key=lambda step: (history[step][run.metric], int(step)))
    result = {
        'workdir': str(run.workdir),
        'step': int(steps[-1]),
        'metric': run.metric,
        'first': history[steps[0]],
        'last': history[steps[-1]],
        'best': history[best],
        'best_step': int(best),
        'seconds': round(seconds, 1),
    }
    if jax.process_index() == 0:
        with files.atomic_file(run.workdir / evaluate.DONE) as aside:
            aside.write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')
    return result
