"""What a report says about a run: how good its index is, how lists and codes are used, what gets lost where.

`report_page` writes it for people to read.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from dvq_jax import checkpoint, evaluate, search, towers
from dvq_jax.dataset import Dataset
from dvq_jax.errors import InputError
from dvq_jax.quantizer import bytes_per_document
from dvq_jax.report_losses import CUT, Index, Losses, find_losses

ByProbe = dict[str, dict[str, float]]  # nprobe as text -> metrics, see `evaluate.evaluate_index`


@dataclasses.dataclass(frozen=True)
class Quality:
    """What is found.

    Attributes:
      index: by the checkpoint.
      start: by step 0; None where the run has none, or that is what is reported.
      dense: by exact search.
      baselines: name -> what other indexes of the same bytes a document find.
    """

    index: ByProbe
    start: ByProbe | None
    dense: dict[str, float]
    baselines: dict[str, ByProbe]


@dataclasses.dataclass(frozen=True)
class Contents:
    """How lists and codewords are used.

    Attributes:
      list_sizes: [L] int, entries in each list.
      codewords: K.
      used: [M] float, the share of each codebook's codewords that some document uses.
      entropy: [M] float, of each codebook's codewords, in bits; at most log₂ K.
    """

    list_sizes: np.ndarray
    codewords: int
    used: np.ndarray
    entropy: np.ndarray


@dataclasses.dataclass(frozen=True)
class Report:
    """All that the page shows.

    Attributes:
      workdir: the run's folder.
      step: of the checkpoint.
      metric: the dev metric that the run chooses its best checkpoint by.
      history: the lines of metrics.jsonl, ascending by step.
      source: where the queries come from, for people.
      labels: whether the queries have any.
      documents: N.
      copies: lists that each document is in.
      bytes_per_document: codes of all copies.
      dense_bytes: of one embedding.
      main: the nprobe that sentences and the table of lost queries speak of.
      quality: what is found.
      contents: how lists and codewords are used.
      losses: where the rest is lost.
    """

    workdir: pathlib.Path
    step: int
    metric: str
    history: list[dict[str, float]]
    source: str
    labels: bool
    documents: int
    copies: int
    bytes_per_document: float
    dense_bytes: int
    main: int
    quality: Quality
    contents: Contents
    losses: Losses

    @property
    def queries(self) -> int:
        """How many queries are judged."""
        return int(self.losses.counts[self.main].sum())


def measure(
    workdir: str | os.PathLike,
    trained: checkpoint.Trained,
    dataset: Dataset,
    queries: evaluate.Queries,
    *,
    nprobe: Sequence[int],
    source: str,
    query_ids_path: str | os.PathLike | None = None,
    baselines: str | os.PathLike | None = None,
) -> Report:
    """Measures a checkpoint against its own start and against exact search.

    Args:
      workdir: the run's folder.
      trained: its checkpoint, from `evaluate.open_trained`.
      dataset: its dataset.
      queries: what is judged.
      nprobe: the numbers of lists to probe.
      source: where the queries come from, for people.
      query_ids_path: the queries' ids, for texts behind them; None shows ids alone.
      baselines: results of other indexes, JSON: name -> {'nprobe': {P: metrics}, 'bytes_per_document'}.

    Returns:
      The report.

    Raises:
      InputError: an nprobe that is not in [1, L], or a file that cannot be read.
    """
    workdir = pathlib.Path(workdir).absolute()
    for lists in nprobe:
        search.check_nprobe(lists, len(trained.params.centroids))
    history = read_history(workdir)
    others = {} if baselines is None else read_baselines(baselines)
    index = _open_index(trained, dataset, queries)
    size = index.copies * bytes_per_document(*trained.params.codebooks.shape[:2])
    main = min(nprobe, key=lambda lists: abs(lists - CUT))
    return Report(
        workdir=workdir,
        step=trained.step,
        metric=checkpoint.read_about(workdir, trained.step)['metric'],
        history=history,
        source=source,
        labels=queries.positives is not None,
        documents=len(dataset.corpus),
        copies=index.copies,
        bytes_per_document=size,
        dense_bytes=dataset.dim * dataset.corpus.dtype.itemsize,
        main=main,
        quality=Quality(
            index=_find(index, queries, nprobe),
            start=_find_at_start(workdir, trained, dataset, queries, nprobe),
            dense=evaluate.dense_metrics(queries) | dict.fromkeys(evaluate.teacher_metrics(queries), 1.0),
            baselines=_comparable(others, size=size, documents=len(dataset.corpus)),
        ),
        contents=_contents(index),
        losses=find_losses(index, queries, dataset, nprobe=nprobe, main=main, query_ids_path=query_ids_path),
    )


def _open_index(trained: checkpoint.Trained, dataset: Dataset, queries: evaluate.Queries) -> Index:
    encoding = evaluate.encode_trained(trained, dataset)
    return Index(
        params=trained.params,
        encoding=encoding,
        transformed=towers.apply(trained.tower, queries.embeddings, queries.texts),
        copies=len(encoding.lists) // len(dataset.corpus),
    )


def _find(index: Index, queries: evaluate.Queries, nprobe: Sequence[int]) -> ByProbe:
    return evaluate.evaluate_index(
        index.params, index.encoding, queries, transformed=index.transformed, nprobe=nprobe
    )


def _find_at_start(
    workdir: pathlib.Path,
    trained: checkpoint.Trained,
    dataset: Dataset,
    queries: evaluate.Queries,
    nprobe: Sequence[int],
) -> ByProbe | None:
    if not trained.step or 0 not in checkpoint.available_steps(workdir):
        return None
    return _find(_open_index(checkpoint.load(workdir, 0), dataset, queries), queries, nprobe)


def _comparable(rows: dict[str, dict[str, Any]], *, size: float, documents: int) -> dict[str, ByProbe]:
    return {
        name: row['nprobe']
        for name, row in rows.items()
        if row['bytes_per_document'] == size and row.get('documents', documents) == documents
    }


def read_history(workdir: pathlib.Path) -> list[dict[str, float]]:
    """The complete lines of a run's metrics.jsonl; raises InputError where it cannot be read."""
    path = workdir / 'metrics.jsonl'
    try:
        lines = path.read_text(encoding='utf-8').splitlines(keepends=True)
        # A run that goes on may be writing its last line now.
        return [json.loads(line) for line in lines if line.endswith('\n')]
    except (OSError, ValueError) as error:
        raise InputError(f'{path}: cannot be read ({error}); give the --workdir that train wrote.') from error


def read_baselines(path: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """Results of other indexes, see `measure`; entries that state no quality are left out.

    Raises:
      InputError: the file cannot be read, or is not of this form.
    """
    try:
        rows = json.loads(pathlib.Path(path).read_text(encoding='utf-8'))
        rows = {name: row for name, row in rows.items() if 'nprobe' in row and 'bytes_per_document' in row}
        for row in rows.values():
            _ = [values['docs_scanned'] for values in row['nprobe'].values()]
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise InputError(
            f"{path}: not results to compare with ({error}); give JSON of name -> 'nprobe' and "
            "'bytes_per_document'."
        ) from error
    return rows


def _contents(index: Index) -> Contents:
    words = index.params.codebooks.shape[1]
    counts = np.stack([np.bincount(column, minlength=words) for column in index.encoding.codes.T])
    shares = counts / counts.sum(axis=1, keepdims=True)
    return Contents(
        list_sizes=np.bincount(index.encoding.lists, minlength=len(index.params.centroids)),
        codewords=words,
        used=np.mean(counts > 0, axis=1),
        entropy=-np.sum(shares * np.log2(np.where(shares > 0, shares, 1)), axis=1),
    )
