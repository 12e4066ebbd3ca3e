"""Whether reading keeps up with training: batches a second of the input alone, of the step alone, of both.

And what it brings that a document which several queries bring is quantized once.
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
from dvq_jax.dataset import Dataset
from dvq_jax.train_step import init_state, make_train_step
from dvq_jax.types import Batch

_SOME = 10  # batches that are looked at, or steps that are timed together
_ALL = 'top200+ib'


def _once(
    dataset: Dataset, text: str, steps: Callable[[Batch], None], *, repeats: int, **settings: Any
) -> dict[str, Any]:
    """What an in-batch mixture brings more than once, on one device, and what it saves to quantize it once.

    Returns:
      'brought_again', the share of what queries bring that another one has brought too, and 'seconds' of a
      step that takes each document 'once', or 'each_time' that it is brought.
    """
    mixture = parse_mixture(text)
    batches = training_batches(dataset.corpus, dataset.train, mixture=mixture, **settings)
    some = [next(batches).batch for _ in range(_SOME)]
    brought = settings['batch_size'] * mixture.size
    shares = [np.sum(batch.doc_ids >= 0) / brought for batch in some]

    def again(rows: np.ndarray) -> np.ndarray:
        return np.resize(rows, (1, brought, *rows.shape[2:]))

    once = some[0]
    each = once.replace(doc_ids=again(once.doc_ids), docs=again(once.docs), lists=again(once.lists))
    once, each = jax.pmap(lambda x: x)(once), jax.pmap(lambda x: x)(each)
    sides = {'once': lambda: steps(once), 'each_time': lambda: steps(each)}
    seconds = {name: value / _SOME for name, value in in_turn(sides, repeats).items()}
    return {'brought_again': 1 - float(np.mean(shares)), 'seconds': seconds}


def measure(config: ml_collections.ConfigDict, *, batches: int, repeats: int) -> dict[str, Any]:
    """Times the input pipeline, the training step, and a loop of both.

    What is trained is an index of random vectors: neither side's time depends on their values.

    Args:
      config: as `configs/default.py`, with a dataset.
      batches: taken at once; a few of them were read ahead.
      repeats: of each.

    Returns:
      The sizes, 'seconds' a batch of 'input', of 'ids', where documents are on the devices, of 'step' and
      'both', and 'mixtures', what `_once` says of the config's candidates and, as far as the dataset reaches,
      of all of Top-200.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.codes.queries = config.routing.rounds = 0  # who wants which documents is not asked
    run = runs.open_run(config, 'unused')
    dim, index = run.dataset.dim, run.config.index
    lists = np.random.default_rng(0).integers(0, index.lists, len(run.dataset.corpus), np.int32)
    about = {'threads': config.data.threads, 'batch_size': config.data.batch_size}
    examples, settings = run.dataset.train.columns(), {'mixture': run.mixture, 'seed': config.seed, **about}
    host, ids = (
        training_batches(run.dataset.corpus, examples, lists=lists, with_docs=docs, **settings)
        for docs in (True, False)
    )
    step = make_train_step(
        tower=run.tower, optimizer=run.optimizer, objective=run.objective, trained=run.trained
    )
    start = make_index(dim=dim, lists=index.lists, codebooks=index.codebooks, codewords=index.codewords)
    state = init_state(start, towers.initial_params(run.tower, dim, seed=config.seed), run.optimizer)
    held = next(host).batch

    def read(some: Iterator[HostBatch]) -> None:
        for _ in range(batches):
            next(some)

    def train(*, reading: bool) -> None:
        nonlocal state
        for _ in range(batches):
            state, values = step(state, next(host).batch if reading else held)
        jax.block_until_ready(values)

    def steps(batch: Batch) -> None:
        nonlocal state
        for _ in range(_SOME):
            state, values = step(state, batch)
        jax.block_until_ready(values)

    sides = {'input': lambda: read(host), 'ids': lambda: read(ids)}
    sides |= {'step': lambda: train(reading=False), 'both': lambda: train(reading=True)}
    seconds = {name: value / batches for name, value in in_turn(sides, repeats).items()}
    sizes = {'documents': len(run.dataset.corpus), 'dim': dim, **about, 'candidates': run.mixture.size}
    sizes |= {'lists': index.lists, 'codebooks': index.codebooks, 'codewords': index.codewords}
    mixtures = [config.candidates, *([_ALL] if run.dataset.topk >= parse_mixture(_ALL).top_k else [])]
    settings = {'batch_size': config.data.batch_size, 'seed': config.seed, 'lists': lists, 'repeats': repeats}
    once = {text: _once(run.dataset, text, steps, **settings) for text in mixtures}
    return {**sizes, 'seconds': seconds, 'mixtures': once}
