"""The commands from a corpus to an index, run with some of the queries; and what each stage takes of all.

The functions are those of the commands, which are watched while they run. Whatever grows with the queries is
measured on some of them, what grows with the corpus on all of it. Choosing codes grows with both: there the
first documents are encoded, with as many queries a document as the whole has.
"""

import contextlib
import dataclasses
import json
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any

import floors
import jax
import ml_collections
import numpy as np
from stopwatch import Calls, Stage, Stopwatch

from dvq_jax import (
    checkpoint,
    data,
    dataset,
    demand,
    encode,
    evaluate,
    files,
    placement,
    prepare,
    routing,
    stages,
    teacher,
    train,
)

_HELD_OUT = 1000  # queries, by default of `prepare`
_LINES = 5  # of the log of training
_KEPT = {'centroids': 'k-means', 'index': 'OPQ', 'lists-0': 'first lists'}
_REST, _FEW = 'the rest of train', 'encoding for few'


@dataclasses.dataclass(frozen=True)
class Size:
    """The whole, and how much of it is measured.

    Attributes:
      documents, dim, queries, topk: N, D, Q, and C, all of which are candidates.
      some_queries: that are mined and trained with.
      some_documents: that codes are chosen of.
      steps: that are trained.
    """

    documents: int
    dim: int
    queries: int
    topk: int
    some_queries: int
    some_documents: int
    steps: int


def _queries_of(work: teacher.Mining, number: int, _progress: Any) -> int:
    return work.blocks[number].stop - work.blocks[number].start


def _kept_as(_stages: stages.Stages, name: str, _make: Callable) -> str:
    return _KEPT.get(name, 'sums by list')


_WATCHED = (  # owner, function, stage, and units where a call is not one
    (prepare, 'prepare', 'checks and copies'),
    (teacher.Mining, '__call__', 'mining', _queries_of),
    (dataset, 'write_dataset', 'dataset', lambda _, **given: len(given['queries'])),
    (train, 'train', _REST),
    (dataset.Examples, 'columns', 'queries read', len),
    (stages.Stages, '__call__', _kept_as),
    (routing, '_train', 'centroids by queries', lambda *_, **given: given['steps']),
    (routing, 'assign', 'lists by queries'),
    (placement, 'place', 'corpus to devices'),
    (train, '_dev_metrics', 'dev metrics'),
    (train, 'encode_corpus', _FEW),
    (checkpoint.Checkpoints, 'save', 'checkpoints'),
)


def measure(path: pathlib.Path, config: ml_collections.ConfigDict, size: Size) -> None:
    """Prepares `some` and trains `some_run` with some of the queries, beside the file that tells of it.

    Args:
      path: of JSON, written whenever a stage ends: what is measured, 'of', whether it is 'finished', the
        'device', its 'peaks', and 'calls' of each stage. Beside it are `docs.npy`, `queries.npy` and
        `some_queries.npy`.
      config: of the training, but for the dataset and the number of steps.
      size: of the whole, and of what is measured.
    """
    folder, every = path.parent, -(-size.steps // _LINES)
    found = {'of': identity(config, size), 'finished': False}
    found |= {'device': jax.devices()[0].device_kind, 'peaks': floors.peaks()}

    def keep() -> None:
        with files.atomic_file(path) as aside:
            aside.write_text(json.dumps(found | {'calls': watch.calls}), encoding='utf-8')

    watch = Stopwatch(keep)
    config = ml_collections.ConfigDict(config)
    config.data.dataset = str(folder / 'some')
    config.train.steps, config.train.log_every = size.steps, every
    with contextlib.ExitStack() as stack:
        for watched in _WATCHED:
            stack.enter_context(watch.watch(*watched))
        paths = {'corpus': folder / 'docs.npy', 'queries': folder / 'some_queries.npy'}
        prepare.prepare(**paths, topk=size.topk, out=folder / 'some')
        train.train(config, str(folder / 'some_run'))
    watch.calls['encoding'] = _encoding(folder, size)
    found['finished'] = True
    keep()


def identity(config: ml_collections.ConfigDict, size: Size) -> dict[str, Any]:
    """What a measurement is of, as JSON holds it."""
    return {'size': vars(size), 'config': json.loads(config.to_json_best_effort())}


def calls_of(
    kept: dict[str, Any], folder: pathlib.Path, config: ml_collections.ConfigDict, size: Size
) -> dict[str, Calls]:
    """The calls of each stage, with those steps that training has told of, and without what is not one.

    Args:
      kept: what `measure` wrote.
      folder: where.
      config, size: as it was given.

    Returns:
      The calls.
    """
    calls = {name: some for name, some in kept['calls'].items() if name != _FEW}  # that is done for many
    steps = _steps(folder / 'some_run', batch_size=config.data.batch_size, every=-(-size.steps // _LINES))
    if _REST in calls:
        ((_, rest),) = calls[_REST]
        calls[_REST] = [(1, rest - sum(seconds for _, seconds in steps))]
    return {**calls, **({'steps': steps} if steps else {})}


def _steps(workdir: pathlib.Path, *, batch_size: int, every: int) -> Calls:
    """(steps, seconds) between two lines of a run's log, if there is one."""
    log = workdir / 'metrics.jsonl'
    lines = log.read_text(encoding='utf-8').splitlines() if log.exists() else []
    rates = [line['examples_per_second'] for line in map(json.loads, lines) if 'examples_per_second' in line]
    return [(every, every * batch_size / rate) for rate in rates]


def _encoding(folder: pathlib.Path, size: Size) -> Calls:
    """(documents, seconds) of encoding the first ones for their share of the queries, and once more."""
    trained, count = checkpoint.load(folder / 'some_run'), size.some_documents
    corpus = data.open_embeddings(folder / 'docs.npy')[:count]
    share = round(size.queries * count / size.documents)
    queries = np.asarray(data.open_embeddings(folder / 'queries.npy')[:share], np.float32)
    wanted = demand.turn_round(queries, *teacher.mine(corpus, queries, size.topk), count)
    audience = evaluate.audience_of(wanted, trained.tower, trained.config['codes'])
    calls = []
    for _ in range(2):
        begin = time.perf_counter()
        encode.encode_corpus(trained.params, corpus, trained.lists[:count], audience=audience)
        calls.append((count, time.perf_counter() - begin))
    return calls


def project(calls: dict[str, Calls], config: ml_collections.ConfigDict, size: Size) -> list[Stage]:
    """What each stage takes of the whole.

    Args:
      calls: of each stage, from `measure`, and of 'export'.
      config: as `measure` takes it.
      size: of the whole, and of what was measured.

    Returns:
      The stages.
    """
    commands = {'mining': 'prepare', 'dataset': 'prepare', 'checks and copies': 'prepare', 'export': 'export'}
    totals, floor = _totals(config, size), _floors(config, size)
    trained = _trained(size.queries) / _trained(size.some_queries)
    found = []
    for name, measured in calls.items():
        done = sum(units for units, _ in measured)
        total = done * trained if name == 'centroids by queries' else totals.get(name, done)
        found.append(Stage(commands.get(name, 'train'), name, measured, total, floor.get(name)))
    return found


def _trained(queries: int) -> int:
    """How many `prepare` leaves to train with."""
    return int((~dataset.held_out(list(map(str, range(queries))), _HELD_OUT)).sum())


def _totals(config: ml_collections.ConfigDict, size: Size) -> dict[str, float]:
    """Units of the whole, of the stages that have another number of them than what was measured."""
    trained = _trained(size.queries)
    steps = math.ceil(config.train.passes * trained / config.data.batch_size)
    saves = 1 + math.ceil(steps / config.train.checkpoint_every)
    return {
        **dict.fromkeys(('mining', 'dataset'), size.queries),
        'queries read': trained,
        'steps': steps,
        **dict.fromkeys(('dev metrics', 'checkpoints'), saves),
        'encoding': saves * size.documents,
    }


def _floors(config: ml_collections.ConfigDict, size: Size) -> dict[str, floors.Floor]:
    """Of one unit of each stage that has a floor; vectors of the corpus have 2 bytes a number."""
    corpus = {'documents': size.documents, 'dim': size.dim}
    sample = {**corpus, 'documents': min(config.initialize.sample, size.documents)}
    lists, codewords, fit = config.index.lists, config.index.codewords, config.initialize
    assigned = floors.assignment(**corpus, lists=lists, width=2)
    # Of codes, what nearest ones take.
    shape = {'lists': 0, 'codebooks': config.index.codebooks, 'codewords': codewords}
    return {
        'mining': floors.mining(**corpus, queries=size.some_queries, topk=size.topk, width=2)
        * (1 / size.some_queries),
        'k-means': floors.kmeans(**sample, centers=lists, iterations=fit.coarse_iterations),
        'first lists': assigned,
        'lists by queries': assigned,
        'OPQ': floors.opq(
            **sample, codewords=codewords, iterations=fit.opq_iterations, pq_iterations=fit.pq_iterations
        ),
        'encoding': floors.encoding(**corpus, **shape, width=2) * (1 / size.documents),
        'steps': floors.step(
            batch_size=config.data.batch_size,
            candidates=size.topk,
            dim=size.dim,
            lists=lists,
            codewords=codewords,
            estimator=config.quantizer.estimator,
            tower_parameters=size.dim**2 if config.tower.name == 'linear' else 0,
        ),
    }
