"""How good an index is: encode the corpus, search the probed lists, measure against qrels and the teacher."""

import dataclasses
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dvq_jax import checkpoint, metrics, search, towers
from dvq_jax.data import check_finite, check_same_dim, open_embeddings, read_qrels, write_run
from dvq_jax.dataset import Dataset, open_dataset
from dvq_jax.demand import Demand, of_columns
from dvq_jax.encode import Audience, Encoder, collect
from dvq_jax.errors import InputError
from dvq_jax.ids import open_ids
from dvq_jax.quantizer import bytes_per_document
from dvq_jax.store import store_of
from dvq_jax.teacher import mine
from dvq_jax.texts import Texts
from dvq_jax.types import Encoding, IndexParams

DEPTH = 100
_TEACHER_DEPTHS = (10, 100)
DONE = 'done.json'


@dataclasses.dataclass(frozen=True)
class Queries:
    """Queries to evaluate on.

    Attributes:
      ids: Q query ids.
      embeddings: [Q, D] float32, the teacher's.
      positives: for each query, its relevant rows of the corpus, [any] int32; None without labels.
      teacher: [Q, ≤100] int32, the teacher's rows, best first.
      doc_ids: N ids of the corpus, in row order.
      texts: Q texts, where the tower reads them.
    """

    ids: Sequence[str]
    embeddings: np.ndarray
    positives: Sequence[np.ndarray] | None
    teacher: np.ndarray
    doc_ids: Sequence[str]
    texts: Sequence[str] | None = None


def teacher_metrics(queries: Queries) -> tuple[str, ...]:
    """'teacher@10' and 'teacher@100', as far as the teacher's lists of these queries reach."""
    return tuple(f'teacher@{k}' for k in _TEACHER_DEPTHS if k <= queries.teacher.shape[1])


def held_out_queries(dataset: Dataset, doc_ids: Sequence[str] | None = None) -> Queries:
    """The dev split of a training dataset.

    Args:
      dataset: from `open_dataset`.
      doc_ids: the corpus's ids; None takes row numbers.

    Returns:
      Its queries; positives are None where no query has any.

    Raises:
      InputError: the dataset holds none out.
    """
    if not len(dataset.dev):
        raise InputError(f'{dataset.folder}: holds no dev queries; prepare it with --dev_queries above 0.')
    examples = dataset.dev.columns()
    return Queries(
        ids=examples.query_ids,
        embeddings=examples.embeddings,
        positives=np.split(examples.positives, examples.offsets[1:-1]) if len(examples.positives) else None,
        teacher=examples.topk_ids[:, :DEPTH],
        doc_ids=open_ids(None, len(dataset.corpus)) if doc_ids is None else doc_ids,
        texts=examples.texts,
    )


def read_queries(
    path: str, *, query_ids: str | None, qrels: str | None, dataset: Dataset, texts: bool = False
) -> Queries:
    """Queries from files, and the teacher's Top-100 for them.

    Args:
      path: embeddings, [Q, D].
      query_ids: their ids; None numbers them.
      qrels: TREC qrels; None evaluates agreement with the teacher only.
      dataset: whose corpus is searched.
      texts: read them too, from the further columns of `query_ids`.

    Returns:
      The queries.

    Raises:
      InputError: a file that cannot be read, or dimensions that differ.
    """
    embeddings = open_embeddings(path)
    check_finite(embeddings, path)
    check_same_dim(dataset.corpus, embeddings, path)
    ids = open_ids(query_ids, len(embeddings))
    doc_ids = open_ids(dataset.doc_ids_path, len(dataset.corpus))
    positives = read_qrels(qrels, ids, doc_ids) if qrels else None
    teacher, _ = mine(dataset.corpus, embeddings, min(DEPTH, len(dataset.corpus)))
    return Queries(
        ids=ids,
        embeddings=np.asarray(embeddings, np.float32),
        positives=positives,
        teacher=teacher,
        doc_ids=doc_ids,
        texts=Texts(query_ids).all() if texts and query_ids else None,
    )


def evaluate_index(
    params: IndexParams,
    encoding: Encoding,
    queries: Queries,
    *,
    transformed: np.ndarray,
    nprobe: Sequence[int],
    run_prefix: str | None = None,
) -> dict[str, dict[str, float]]:
    """Searches the probed lists for every query, for each nprobe.

    Args:
      params: the index.
      encoding: the corpus.
      queries: what is judged.
      transformed: [Q, D] float32, the queries after the tower.
      nprobe: the numbers of lists to probe.
      run_prefix: write the run of each nprobe to `{run_prefix}{nprobe}.trec`.

    Returns:
      nprobe as text -> `metrics.NAMES` (with labels), 'teacher@10' and 'teacher@100' (the share of the
      teacher's Top-k found) and 'docs_scanned' (mean over queries).

    Raises:
      InputError: an nprobe that is not in [1, L].
    """
    inverted = search.invert(encoding, len(params.centroids))
    results = {}
    for lists in nprobe:
        scores, rows = search.search(params, inverted, transformed, k=DEPTH, nprobe=lists)
        found = [[queries.doc_ids[row] for row in query if row >= 0] for query in rows]
        if run_prefix is not None:
            kept = [values[: len(docs)] for values, docs in zip(scores, found, strict=True)]
            write_run(f'{run_prefix}{lists}.trec', query_ids=queries.ids, doc_ids=found, scores=kept)
        values = {} if queries.positives is None else _judge(queries, found, scores)
        scanned = search.documents_scanned(params, inverted, transformed, nprobe=lists)
        results[str(lists)] = {
            **values,
            **{
                name: metrics.teacher_agreement(rows, queries.teacher, metrics.depth(name))
                for name in teacher_metrics(queries)
            },
            'docs_scanned': float(np.mean(scanned)),
        }
    return results


def _judge(queries: Queries, found: Sequence[Sequence[str]], scores: np.ndarray) -> dict[str, float]:
    qrels = {
        query: {queries.doc_ids[row]: 1 for row in rows}
        for query, rows in zip(queries.ids, queries.positives, strict=True)
    }
    return metrics.measure(qrels, metrics.to_run(queries.ids, found, scores))


def open_trained(workdir: str, step: str | int) -> tuple[checkpoint.Trained, Dataset]:
    """A checkpoint, and the dataset that its run was trained on.

    Args:
      workdir: the run's folder.
      step: 'latest', 'best' or a number.

    Returns:
      Both.

    Raises:
      InputError: no such checkpoint, or its dataset is gone or has another corpus now.
    """
    trained = checkpoint.load(workdir, step)
    dataset = open_dataset(trained.dataset)
    if dataset.fingerprint != trained.fingerprint:
        raise InputError(f'{dataset.folder}: has another corpus than {workdir} was trained on; train again.')
    return trained, dataset


def audience_of(demand: Demand | None, tower: towers.Tower, settings: Mapping[str, Any]) -> Audience | None:
    """The queries that a run chooses its codes for.

    Args:
      demand: the training queries.
      tower: the query tower.
      settings: the config's group `codes`.

    Returns:
      The audience; None where documents take their nearest codewords.
    """
    if not settings['queries']:
        return None
    return Audience(demand=demand, tower=tower, **settings)


def encoder_of(trained: checkpoint.Trained, dataset: Dataset) -> Encoder:
    """What encodes the corpus as the checkpoint's run does: the same lists, codes for the same queries.

    Args:
      trained: from `open_trained`.
      dataset: its dataset.

    Returns:
      The encoder.
    """
    settings = trained.config['codes']
    demand = of_columns(dataset.train.columns(), len(dataset.corpus)) if settings['queries'] else None
    audience = audience_of(demand, trained.tower, settings)
    return Encoder(trained.params, dataset.corpus, trained.lists, audience)


def encode_trained(trained: checkpoint.Trained, dataset: Dataset) -> Encoding:
    """The corpus as the checkpoint's run encodes it, see `encoder_of`.

    The run keeps the encodings of its checkpoints; what is there already is not made again.

    Args:
      trained: from `open_trained`.
      dataset: its dataset.

    Returns:
      The encoding, on the host.
    """
    try:
        store = store_of(trained.workdir, trained.step)
    except InputError:  # somebody else's run, that may only be read
        store = None
    return collect(encoder_of(trained, dataset), store)


def dense_metrics(queries: Queries) -> dict[str, float]:
    """What the teacher itself reaches by exact search: the ceiling for its index.

    Args:
      queries: what is judged.

    Returns:
      `metrics.NAMES`; empty without labels.
    """
    if queries.positives is None:
        return {}
    found = [[queries.doc_ids[row] for row in rows] for rows in queries.teacher]
    ranks = np.tile(-np.arange(queries.teacher.shape[1], dtype=np.float32), (len(found), 1))
    return _judge(queries, found, ranks)


def evaluate_trained(
    trained: checkpoint.Trained,
    dataset: Dataset,
    queries: Queries,
    *,
    nprobe: Sequence[int],
    run_prefix: str | None = None,
) -> dict[str, Any]:
    """Encodes the corpus, searches and measures.

    Args:
      trained: from `open_trained`.
      dataset: its dataset.
      queries: what is judged.
      nprobe: the numbers of lists to probe.
      run_prefix: see `evaluate_index`.

    Returns:
      'nprobe' (see `evaluate_index`), 'dense' (see `dense_metrics`), 'step', 'bytes_per_document' (codes
      alone, of all copies) and 'documents'.

    Raises:
      InputError: an nprobe that is not in [1, L].
    """
    for lists in nprobe:
        search.check_nprobe(lists, len(trained.params.centroids))
    encoding = encode_trained(trained, dataset)
    results = evaluate_index(
        trained.params,
        encoding,
        queries,
        transformed=towers.apply(trained.tower, queries.embeddings, queries.texts),
        nprobe=nprobe,
        run_prefix=run_prefix,
    )
    return {
        'nprobe': results,
        'dense': dense_metrics(queries),
        'step': trained.step,
        'bytes_per_document': encoding.copies * bytes_per_document(*trained.params.codebooks.shape[:2]),
        'documents': len(dataset.corpus),
    }


def follow(workdir: str, *, poll: float = 2.0) -> Iterator[int]:
    """Yields each checkpoint of a running training as it appears, and ends with the training.

    A step that training has already replaced by a later one is skipped.

    Args:
      workdir: the run's folder; may not hold a checkpoint yet.
      poll: seconds between two looks.

    Yields:
      Steps, ascending.
    """
    last = -1
    print(f'waiting for checkpoints in {workdir}', file=sys.stderr, flush=True)
    while True:
        ended = (Path(workdir) / DONE).exists()
        fresh = [step for step in checkpoint.available_steps(Path(workdir)) if step > last]
        if fresh:
            last = fresh[0]
            yield last
        elif ended:
            return
        else:
            time.sleep(poll)
