"""Where an index loses the answers that exact search finds.

An answer that dense search has in its top 10 is lost in one of two ways: none of its lists is probed, or its
codes score it too low.
"""

import dataclasses
import os
from collections.abc import Sequence

import numpy as np

from dvq_jax import evaluate, search
from dvq_jax.dataset import Dataset
from dvq_jax.quantizer import reconstruct, rotate
from dvq_jax.types import Encoding, IndexParams

CUT = 10  # an answer below this rank counts as lost
FOUND, LIST_MISSED, CODE_ERROR, DENSE_MISSED = range(4)
_BEYOND = np.iinfo(np.int32).max
_WORST = 20
_SCORES = 2**25  # held at once
_ROUNDING = 1e-6  # of a score, relative to the lengths of its vectors: what differs by less, ties


@dataclasses.dataclass(frozen=True)
class Index:
    """An index and its queries.

    Attributes:
      params: the index.
      encoding: the corpus, `copies` entries a document: entry e is document e mod N.
      transformed: [Q, D] float32, the queries after the tower.
      copies: lists that each document is in.
    """

    params: IndexParams
    encoding: Encoding
    transformed: np.ndarray
    copies: int


@dataclasses.dataclass(frozen=True)
class Targets:
    """The one document that each of q judged queries is to find.

    Attributes:
      queries: [q] int, rows of the queries.
      docs: [q] int32, rows of the corpus.
      dense_rank: [q] int32, from 1, by exact search; the largest int32 beyond the teacher's list.
    """

    queries: np.ndarray
    docs: np.ndarray
    dense_rank: np.ndarray


@dataclasses.dataclass(frozen=True)
class Lost:
    """A query whose answer dense search finds and the index does not.

    Attributes:
      query: its id.
      query_text: what its file of ids says after the id; may be empty.
      doc: the answer's id.
      doc_text: what the corpus's file of ids says after the id; may be empty.
      dense_rank: of the answer, by exact search.
      full_rank: of the answer, in this index with all lists probed.
      list_rank: of the answer's best list among all lists, for this query.
      reason: LIST_MISSED or CODE_ERROR.
    """

    query: str
    query_text: str
    doc: str
    doc_text: str
    dense_rank: int
    full_rank: int
    list_rank: int
    reason: int


@dataclasses.dataclass(frozen=True)
class Losses:
    """Where the answers of q judged queries are.

    Attributes:
      counts: nprobe -> [4] int, queries by reason; they add up to q.
      also_code_error: of those whose list is missed at `main`, how many rank below 10 with all lists probed.
      worst: the worst at `main`, first the answers that dense search ranks best.
    """

    counts: dict[int, np.ndarray]
    also_code_error: int
    worst: list[Lost]


def find_losses(
    index: Index,
    queries: evaluate.Queries,
    dataset: Dataset,
    *,
    nprobe: Sequence[int],
    main: int,
    query_ids_path: str | os.PathLike | None,
) -> Losses:
    """Follows the answer of every query through an index.

    Args:
      index: the index.
      queries: what is judged.
      dataset: whose corpus is searched.
      nprobe: the numbers of lists to probe.
      main: the one of them that the worst queries are listed for.
      query_ids_path: the queries' ids, for texts behind them; None shows ids alone.

    Returns:
      The losses.
    """
    target = targets(queries)
    ranks = list_ranks(index, target.queries, target.docs)
    reasons = {lists: loss_reasons(index, target, ranks, nprobe=lists) for lists in nprobe}
    lost = np.flatnonzero(np.isin(reasons[main], (LIST_MISSED, CODE_ERROR)))
    full = full_ranks(index, target.queries[lost], target.docs[lost])
    order = np.lexsort((-full, target.dense_rank[lost]))[:_WORST]
    chosen = lost[order]
    query_texts = _texts(query_ids_path, target.queries[chosen])
    doc_texts = _texts(dataset.doc_ids_path, target.docs[chosen])
    worst = [
        Lost(
            query=queries.ids[target.queries[one]],
            query_text=query_texts.get(int(target.queries[one]), ''),
            doc=queries.doc_ids[target.docs[one]],
            doc_text=doc_texts.get(int(target.docs[one]), ''),
            dense_rank=int(target.dense_rank[one]),
            full_rank=int(rank),
            list_rank=int(ranks[one]),
            reason=int(reasons[main][one]),
        )
        for one, rank in zip(chosen, full[order], strict=True)
    ]
    return Losses(
        counts={lists: np.bincount(chosen, minlength=4) for lists, chosen in reasons.items()},
        also_code_error=int(np.sum((reasons[main][lost] == LIST_MISSED) & (full > CUT))),
        worst=worst,
    )


def targets(queries: evaluate.Queries) -> Targets:
    """The relevant document that the teacher ranks best; without labels the teacher's first.

    Args:
      queries: what is judged; those that have no relevant document are left out.

    Returns:
      One document a query.
    """
    if queries.positives is None:
        count = len(queries.teacher)
        return Targets(np.arange(count), queries.teacher[:, 0], np.ones(count, np.int32))
    chosen = []
    for query, (relevant, teacher) in enumerate(zip(queries.positives, queries.teacher, strict=True)):
        hits = np.flatnonzero(np.isin(teacher, relevant))
        if len(hits):
            chosen.append((query, teacher[hits[0]], hits[0] + 1))
        elif len(relevant):
            chosen.append((query, relevant[0], _BEYOND))
    return Targets(*np.array(chosen, np.int32).reshape(-1, 3).T)


def list_ranks(index: Index, queries: np.ndarray, docs: np.ndarray) -> np.ndarray:
    """At which place a query probes the document's list, the earliest of its lists where it has several.

    Args:
      index: the index.
      queries: [q] int, rows of `index.transformed`.
      docs: [q] int, a document a query.

    Returns:
      [q] int, from 1: the document is scanned when nprobe is at least that.
    """
    lists = index.encoding.lists.reshape(index.copies, -1)[:, docs].T
    rotated = np.asarray(rotate(index.params, index.transformed[queries]))
    step = max(1, _SCORES // len(index.params.centroids))
    ranks = []
    for start in range(0, len(queries), step):
        scores = rotated[start : start + step] @ np.asarray(index.params.centroids).T
        own = np.take_along_axis(scores, lists[start : start + step], axis=1).max(axis=1)
        ranks.append(1 + np.sum(scores > own[:, None], axis=1))
    return np.concatenate(ranks) if ranks else np.zeros(0, int)


def full_ranks(index: Index, queries: np.ndarray, docs: np.ndarray) -> np.ndarray:
    """The rank of a document by its codes among all documents, as if every list were probed.

    Args:
      index: the index.
      queries: [q] int, rows of `index.transformed`.
      docs: [q] int, a document a query.

    Returns:
      [q] int, from 1; documents that tie share the best rank.
    """
    if not len(queries):
        return np.ones(0, int)
    lists = index.encoding.lists.reshape(index.copies, -1)
    codes = index.encoding.codes.reshape(*lists.shape, -1)
    rotated = np.asarray(rotate(index.params, index.transformed[queries]))
    vectors = [
        np.asarray(reconstruct(index.params, Encoding(lists=own[docs], codes=words[docs])))
        for own, words in zip(lists, codes, strict=True)
    ]
    own_scores = np.max([np.einsum('qd,qd->q', rotated, copy) for copy in vectors], axis=0)
    lengths = np.linalg.norm(rotated, axis=1) * np.linalg.norm(vectors, axis=2).max(axis=0)
    least = (own_scores + _ROUNDING * lengths)[:, None]
    ranks = np.ones(len(queries), int)
    count = lists.shape[1]
    step = min(count, max(1, _SCORES // max(len(queries), rotated.shape[1])))
    for start in range(0, count, step):
        rows = slice(start, min(start + step, count))
        blocks = [
            rotated @ np.asarray(reconstruct(index.params, Encoding(lists=own[rows], codes=words[rows]))).T
            for own, words in zip(lists, codes, strict=True)
        ]
        ranks += np.sum(np.max(blocks, axis=0) > least, axis=1)
    return ranks


def loss_reasons(index: Index, target: Targets, ranks: np.ndarray, *, nprobe: int) -> np.ndarray:
    """Why each answer is where it is.

    FOUND: in the index's top 10. Of the rest, DENSE_MISSED: exact search has it below 10 too; LIST_MISSED:
    none of its lists is probed; CODE_ERROR: it is scanned, and its codes score it below 10.

    Args:
      index: the index.
      target: the answers.
      ranks: [q] int, from `list_ranks`.
      nprobe: P.

    Returns:
      [q] int, a reason each.
    """
    queries = index.transformed[target.queries]
    _, rows = search.search(index.params, index.encoding, queries, k=CUT, nprobe=nprobe)
    return np.select(
        [(rows == target.docs[:, None]).any(axis=1), target.dense_rank > CUT, ranks > nprobe],
        [FOUND, DENSE_MISSED, LIST_MISSED],
        CODE_ERROR,
    )


def _texts(path: str | os.PathLike | None, rows: np.ndarray) -> dict[int, str]:
    """What stands behind the id in some lines of a .tsv that has been read before."""
    if path is None:
        return {}
    wanted = {int(row) for row in rows}
    with open(path, encoding='utf-8') as file:
        return {row: line.partition('\t')[2].strip() for row, line in enumerate(file) if row in wanted}
