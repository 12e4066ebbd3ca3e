"""Whether reading keeps up with training: batches a second of the input alone, of the step alone, of both.

And how many documents of a batch are brought more than once: that is what quantizing each once would save.
"""

from collections.abc import Iterator
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

_LOOKED_AT = 20  # batches
_ALL = 'top200+ib'


def _brought_again(dataset: Dataset, text: str, *, batch_size: int, seed: int) -> float:
    """The share of a batch's documents, by the mixture of that name, that another query has brought too."""
    settings = {'batch_size': batch_size, 'seed': seed, 'lists': None, 'with_docs': False}
    mixture = parse_mixture(text)
    batches = training_batches(dataset.corpus, dataset.train, mixture=mixture, **settings)
    ids = [next(batches).batch.doc_ids for _ in range(_LOOKED_AT)]
    return 1 - float(np.mean([np.sum(some >= 0) / (batch_size * mixture.size) for some in ids]))


def measure(config: ml_collections.ConfigDict, *, batches: int, repeats: int) -> dict[str, Any]:
    """Times the input pipeline, the training step, and a loop of both.

    What is trained is an index of random vectors: neither side's time depends on their values.

    Args:
      config: as `configs/default.py`, with a dataset.
      batches: taken at once; a few of them were read ahead.
      repeats: of each.

    Returns:
      The sizes, 'seconds' a batch of 'input', of 'ids', where documents are on the devices, of 'step' and
      'both', and 'brought_again', the share of documents
      that are in a batch already, by the config's candidates and, as far as the dataset reaches, by all of
      Top-200.
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

    sides = {'input': lambda: read(host), 'ids': lambda: read(ids)}
    sides |= {'step': lambda: train(reading=False), 'both': lambda: train(reading=True)}
    seconds = {name: value / batches for name, value in in_turn(sides, repeats).items()}
    sizes = {'documents': len(run.dataset.corpus), 'dim': dim, **about, 'candidates': run.mixture.size}
    sizes |= {'lists': index.lists, 'codebooks': index.codebooks, 'codewords': index.codewords}
    mixtures = [config.candidates, *([_ALL] if run.dataset.topk >= parse_mixture(_ALL).top_k else [])]
    settings = {'batch_size': config.data.batch_size, 'seed': config.seed}
    again = {text: _brought_again(run.dataset, text, **settings) for text in mixtures}
    return {**sizes, 'seconds': seconds, 'brought_again': again}
