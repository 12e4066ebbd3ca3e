"""Whether reading keeps up with training, and what it brings that a document of a batch is quantized once.

What is trained are indexes of random vectors: no side's time depends on their values.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
from speed_step import make_index
from speed_timing import in_turn

from dvq_jax import run as runs
from dvq_jax import towers
from dvq_jax.batches import HostBatch, training_batches
from dvq_jax.candidates import parse_mixture
from dvq_jax.train_step import init_state, make_train_step
from dvq_jax.types import Batch

_SOME = 10  # batches that are looked at, or steps that are timed together


def _opened(config: ml_collections.ConfigDict) -> tuple[runs.Run, np.ndarray, dict[str, Any]]:
    """The run of a config, lists of its documents, and the sizes."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.codes.queries = config.routing.rounds = 0  # who wants which documents is not asked
    run = runs.open_run(config, 'unused')
    index, documents = run.config.index, len(run.dataset.corpus)
    lists = np.random.default_rng(0).integers(0, index.lists, documents, np.int32)
    sizes = {'documents': documents, 'dim': run.dataset.dim, 'batch_size': config.data.batch_size}
    sizes |= {'lists': index.lists, 'codebooks': index.codebooks, 'codewords': index.codewords}
    return run, lists, sizes


def _step_of(run: runs.Run) -> Callable[[Batch], dict[str, jax.Array]]:
    """The run's step, which keeps its state."""
    dim, index = run.dataset.dim, run.config.index
    step = make_train_step(
        tower=run.tower, optimizer=run.optimizer, objective=run.objective, trained=run.trained
    )
    start = make_index(dim=dim, lists=index.lists, codebooks=index.codebooks, codewords=index.codewords)
    state = init_state(start, towers.initial_params(run.tower, dim, seed=run.config.seed), run.optimizer)

    def take(batch: Batch) -> dict[str, jax.Array]:
        nonlocal state
        state, values = step(state, batch)
        return values

    return take


def measure(config: ml_collections.ConfigDict, *, batches: int, repeats: int) -> dict[str, Any]:
    """Times the input pipeline, the training step, and a loop of both.

    Args:
      config: as `configs/default.py`, with a dataset.
      batches: taken at once; a few of them were read ahead.
      repeats: of each.

    Returns:
      The sizes, and 'seconds' a batch of 'input', of 'ids', where documents are on the devices, of 'step' and
      'both'.
    """
    run, lists, sizes = _opened(config)
    sizes |= {'threads': config.data.threads, 'candidates': run.mixture.size}
    settings = {'mixture': run.mixture, 'seed': config.seed, 'lists': lists, 'threads': config.data.threads}
    settings |= {'batch_size': config.data.batch_size}
    examples, step = run.dataset.train.columns(), _step_of(run)
    host, ids = (
        training_batches(run.dataset.corpus, examples, with_docs=docs, **settings) for docs in (True, False)
    )
    held = next(host).batch

    def read(some: Iterator[HostBatch]) -> None:
        for _ in range(batches):
            next(some)

    def train(*, reading: bool) -> None:
        for _ in range(batches):
            values = step(next(host).batch if reading else held)
        jax.block_until_ready(values)

    sides = {'input': lambda: read(host), 'ids': lambda: read(ids)}
    sides |= {'step': lambda: train(reading=False), 'both': lambda: train(reading=True)}
    seconds = {name: value / batches for name, value in in_turn(sides, repeats).items()}
    return {**sizes, 'seconds': seconds}


def measure_once(config: ml_collections.ConfigDict, text: str, *, repeats: int) -> dict[str, Any]:
    """Times a step that takes each document of a batch once, and one that does each time that it is brought.

    Args:
      config: as `configs/default.py`, with a dataset.
      text: the queries' candidates, with in-batch ones; their Top-K is no longer than the dataset's.
      repeats: of each.

    Returns:
      The sizes, 'mixture', 'brought_again', the share of what queries bring that another one has brought too,
      and 'seconds' of a step with each document 'once' or 'each_time'. All of it is for one device.
    """
    run, lists, sizes = _opened(config)
    mixture, step = parse_mixture(text), _step_of(run)
    brought = config.data.batch_size * mixture.size
    settings = {'batch_size': config.data.batch_size, 'seed': config.seed, 'lists': lists}
    batches = training_batches(run.dataset.corpus, run.dataset.train, mixture=mixture, **settings)
    some = [next(batches).batch for _ in range(_SOME)]
    share = float(np.mean([np.sum(batch.doc_ids >= 0) for batch in some])) / brought

    def again(rows: np.ndarray) -> np.ndarray:
        return np.resize(rows, (1, brought, *rows.shape[2:]))

    def steps(batch: Batch) -> None:
        for _ in range(_SOME):
            values = step(batch)
        jax.block_until_ready(values)

    once = some[0]
    each = once.replace(doc_ids=again(once.doc_ids), docs=again(once.docs), lists=again(once.lists))
    once, each = jax.pmap(lambda x: x)(once), jax.pmap(lambda x: x)(each)
    seconds = in_turn({'once': lambda: steps(once), 'each_time': lambda: steps(each)}, repeats)
    seconds = {name: value / _SOME for name, value in seconds.items()}
    return {**sizes, 'mixture': text, 'brought_again': 1 - share, 'seconds': seconds}
