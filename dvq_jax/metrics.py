"""What is measured: retrieval metrics, agreement with the teacher; and where metrics are written."""

import json
import pathlib
import time
from collections.abc import Mapping, Sequence

import numpy as np

from dvq_jax import files

NAMES = ('RR@10', 'R@10', 'R@50', 'R@100', 'nDCG@10')

Qrels = Mapping[str, Mapping[str, int]]
Run = Mapping[str, Mapping[str, float]]


def depth(name: str) -> int:
    """How many documents a metric looks at: 10 for 'RR@10'."""
    return int(name.partition('@')[2])


def to_run(query_ids: Sequence[str], doc_ids: Sequence[Sequence[str]], scores: np.ndarray) -> Run:
    """A run as ir_measures reads it: query id -> document id -> score.

    Args:
      query_ids: Q ids.
      doc_ids: for each query, the documents found, best first; may be fewer than scores.
      scores: [Q, k] float.

    Returns:
      The run.
    """
    return {
        query: dict(zip(docs, map(float, values), strict=False))
        for query, docs, values in zip(query_ids, doc_ids, scores, strict=True)
    }


def measure(qrels: Qrels, run: Run) -> dict[str, float]:
    """MRR@10, recall at 10, 50 and 100 and nDCG@10.

    Args:
      qrels: query id -> document id -> relevance; queries with no relevant document do not count.
      run: query id -> document id -> score.

    Returns:
      Name -> mean over the queries of the qrels.
    """
    judged = {query: docs for query, docs in qrels.items() if any(grade > 0 for grade in docs.values())}
    return calculate(NAMES, judged, run)


def calculate(names: Sequence[str], qrels: Qrels, run: Run) -> dict[str, float]:
    """Metrics by ir_measures and under its names.

    Args:
      names: 'RR@10', 'Success@5' and so on.
      qrels: query id -> document id -> relevance.
      run: query id -> document id -> score.

    Returns:
      Name -> mean over all queries of the qrels.
    """
    import ir_measures

    measures = [ir_measures.parse_measure(name) for name in names]
    values = ir_measures.calc_aggregate(measures, qrels, {query: run.get(query, {}) for query in qrels})
    return {name: float(values[measure]) for name, measure in zip(names, measures, strict=True)}


def teacher_agreement(found: np.ndarray, teacher: np.ndarray, k: int) -> float:
    """The share of the teacher's Top-k that is among the index's first k, averaged over queries.

    Args:
      found: [Q, ≥k] int, rows that the index returned, best first; -1 pads.
      teacher: [Q, ≥k] int, the teacher's rows, best first.
      k: how many of each.

    Returns:
      A share in [0, 1].
    """
    pairs = zip(found[:, :k], teacher[:, :k], strict=True)
    shared = [len(np.intersect1d(row, wanted)) for row, wanted in pairs]
    return float(np.mean(shared)) / min(k, teacher.shape[1])


class MetricsWriter:
    """Writes metrics as JSON lines and TensorBoard events.

    A resumed run drops the lines of steps that it does again, so the file reads as if nothing had happened.

    Args:
      workdir: the run's folder; gets metrics.jsonl and tensorboard/.
      step: the checkpoint's step that the run goes on from; None begins anew.
    """

    def __init__(self, workdir: pathlib.Path, *, step: int | None):
        from tensorboardX import SummaryWriter

        self._path = workdir / 'metrics.jsonl'
        kept = []
        if step is not None and self._path.exists():
            for line in self._path.read_text(encoding='utf-8').splitlines(keepends=True):
                # A line that a killed process left half-written has no end.
                if line.endswith('\n') and json.loads(line)['step'] <= step:
                    kept.append(line)
        with files.atomic_file(self._path) as aside:
            aside.write_text(''.join(kept), encoding='utf-8')
        purge = None if step is None else step + 1
        self._events = SummaryWriter(str(workdir / 'tensorboard'), purge_step=purge)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line and one event a value, and flushes both."""
        with open(self._path, 'a', encoding='utf-8') as file:
            file.write(json.dumps({'step': step, 'time': round(time.time(), 3), **values}) + '\n')
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        self._events.flush()

    def close(self) -> None:
        """Closes the event file."""
        self._events.close()
