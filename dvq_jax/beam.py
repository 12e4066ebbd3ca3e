"""Mining and encoding by the workers of an Apache Beam pipeline: Dataflow, Flink, Spark, or this machine.

A pipeline does the blocks (`blocks.Work`) that are not finished yet, with the code and into the folders of
the usual commands, which find them done. So all workers must see the same files under the same paths.
"""

import contextlib
import functools
import io
import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from dvq_jax import blocks, data, encode, evaluate, prepare, teacher
from dvq_jax.errors import InputError
from dvq_jax.progress import Progress
from dvq_jax.store import store_of

try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.utils.shared import Shared
except ModuleNotFoundError as error:
    raise InputError('a pipeline needs the apache-beam package; pip install "dvq_jax[beam]".') from error

_SHARE = 'give paths on storage that all workers see.'

# What a worker has opened: the work, and where its blocks go.
Opened = tuple[blocks.Work, blocks.Parts]


def mine_pipeline(
    *, corpus: prepare.Path, queries: prepare.Path, topk: int, out: prepare.Path, options: Sequence[str] = ()
) -> dict[str, Any]:
    """Mines the teacher's Top-K for `prepare.prepare`, which, called for the same, goes on from there.

    Args:
      corpus, queries, topk, out: as `prepare.prepare` takes them.
      options: Beam's pipeline options, such as '--runner=FlinkRunner'.

    Returns:
      `folder` of the finished blocks, `blocks`, how many there are, `done`, how many of them by this call,
      and `seconds`.

    Raises:
      InputError: a file cannot be used, `out` exists or cannot be created, the options name no runner, or
        the workers see other files than this machine.

    Example:
      mine_pipeline(corpus='docs.npy', queries='queries.npy', topk=200, out='DATASET')
    """
    begin = time.monotonic()
    pipeline = _pipeline(options)
    out = prepare.new_dataset(out)
    inputs = prepare.read_inputs(corpus=corpus, queries=queries, topk=topk)
    work = teacher.Mining(inputs.corpus, inputs.queries, topk)
    cache = prepare.mining_folder(out)
    parts = work.parts(cache)
    open_work = functools.partial(
        _open_mining,
        corpus=str(pathlib.Path(corpus).absolute()),
        queries=str(pathlib.Path(queries).absolute()),
        topk=topk,
        cache=str(cache),
        identity=work.identity(),
    )
    done = _run(pipeline, work, parts, open_work)
    return {'mining': str(cache), 'blocks': len(work.blocks), 'done': done, 'seconds': _since(begin)}


def encode_pipeline(
    *, workdir: str | os.PathLike, step: str | int, options: Sequence[str] = ()
) -> dict[str, Any]:
    """Encodes the corpus as a checkpoint does, for `evaluate.encode_trained`, which reads it from then on.

    Args:
      workdir: the run's folder.
      step: 'latest', 'best' or a number.
      options: Beam's pipeline options, such as '--runner=FlinkRunner'.

    Returns:
      `workdir`, `step`, `blocks`, how many regions there are, `done`, how many of them by this call, and
      `seconds`.

    Raises:
      InputError: no such checkpoint, its dataset is gone or has another corpus now, the run's folder cannot
        be written to, the options name no runner, or the workers see other files than this machine.

    Example:
      encode_pipeline(workdir='W', step='best')
    """
    begin = time.monotonic()
    pipeline = _pipeline(options)
    trained, dataset = evaluate.open_trained(workdir, step)
    work = evaluate.encoder_of(trained, dataset)
    store = store_of(trained.workdir, trained.step)
    store.begin(work.identity())
    done = 0
    if store.read(work.shapes) is None:
        open_work = functools.partial(_open_encoding, workdir=str(trained.workdir), step=trained.step)
        done = _run(pipeline, work, store.parts, open_work)
        encode.collect(work, store)
    return {
        'workdir': str(trained.workdir),
        'step': trained.step,
        'blocks': len(work.blocks),
        'done': done,
        'seconds': _since(begin),
    }


def _since(begin: float) -> float:
    return round(time.monotonic() - begin, 1)


def _pipeline(options: Sequence[str]) -> beam.Pipeline:
    """An empty pipeline, made before anything is written."""
    given, said = ' '.join(options), io.StringIO()
    try:
        with contextlib.redirect_stderr(said):  # argparse's, that of a value it says something and exits
            parsed = PipelineOptions(list(options))
            own, passed = (parsed.get_all_options(retain_unknown_options=keep) for keep in (False, True))
            pipeline = beam.Pipeline(options=parsed)
    except (SystemExit, ValueError, ImportError, AttributeError) as error:
        reason = said.getvalue().strip().rpartition('error: ')[2] or str(error).rstrip('.')
        raise InputError(f'{given}: Beam does not take these pipeline options ({reason}).') from error
    for name in sorted(passed.keys() - own.keys()):
        print(f"--{name} is none of Beam's own pipeline options; left to the runner", file=sys.stderr)
    return pipeline


def _open_mining(*, corpus: str, queries: str, topk: int, cache: str, identity: str) -> Opened:
    work = teacher.Mining(data.open_embeddings(corpus), data.open_embeddings(queries), topk)
    if work.identity() != identity or not pathlib.Path(cache).is_dir():
        raise InputError(f'a worker sees other files as {corpus}, {queries} or {cache}; {_SHARE}')
    return work, work.parts(cache)


def _open_encoding(*, workdir: str, step: int) -> Opened:
    work = evaluate.encoder_of(*evaluate.open_trained(workdir, step))
    store = store_of(pathlib.Path(workdir), step)
    if not store.holds(work.identity()):
        raise InputError(f'a worker sees other files in {workdir}, or in its dataset; {_SHARE}')
    return work, store.parts


class _Worker:
    """What a process of a worker does: one block at a time, for a block takes all cores or accelerators."""

    def __init__(self, work: blocks.Work, parts: blocks.Parts):
        self._work, self._parts, self._turn = work, parts, threading.Lock()

    def do(self, number: int) -> None:
        """Does a block, if nobody has; the runner may give it more than once."""
        with self._turn:
            if number in self._parts:
                return
            label = f'{self._work.label}, block {number + 1} of {len(self._work.blocks)}'
            progress = Progress(label, total=self._work.size(number), unit=self._work.unit)
            self._parts[number] = self._work(number, progress)
            progress.done()


class _DoBlocks(beam.DoFn):
    """Does blocks by number; the inputs are opened once for all threads of a process."""

    def __init__(self, open_work: Callable[[], Opened]):
        self._open_work, self._shared = open_work, Shared()

    def setup(self) -> None:
        self._worker = self._shared.acquire(lambda: _Worker(*self._open_work()))

    def process(self, number: int) -> None:
        self._worker.do(number)


def _run(
    pipeline: beam.Pipeline, work: blocks.Work, parts: blocks.Parts, open_work: Callable[[], Opened]
) -> int:
    """Does the missing blocks; counts them."""
    todo = blocks.missing(work, parts)
    if todo:
        # Reshuffle: otherwise a runner may fuse the steps, and one worker would do all.
        _ = pipeline | beam.Create(todo) | beam.Reshuffle() | work.label >> beam.ParDo(_DoBlocks(open_work))
        pipeline.run().wait_until_finish()
        lost = len(blocks.missing(work, parts))
        if lost:
            raise InputError(f'{lost} of {len(todo)} blocks are not where the workers put them; {_SHARE}')
    return len(todo)
