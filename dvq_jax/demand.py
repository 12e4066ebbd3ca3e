"""Demand: the training queries, and turned round, which of them want a document.

A document's queries are those whose teacher's Top-K holds it. What is stored of a document may be chosen for
them: its lists (`routing`) and its codes (`codes`).
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from dvq_jax.columns import Columns

# A query that ranks the document r-th (from 0) weighs 1/(1 + r/_HALF): half at rank 30.
_HALF = 30.0


@dataclasses.dataclass(frozen=True)
class Demand:
    """Training queries with the teacher's Top-K, and the same by document.

    Attributes:
      queries: [Q, D] float32, the teacher's embeddings.
      topk_ids: [Q, K] int32, rows of the corpus, best first.
      topk_scores: [Q, K] float32.
      offsets: [N + 1] int64; document d is wanted by rows[offsets[d]:offsets[d + 1]].
      rows: [Q·K] int32, queries of each document, those that rank it best first.
      ranks: [Q·K] int32, where they rank it, from 0.
      texts: Q texts of the queries, where the dataset has them.
    """

    queries: np.ndarray
    topk_ids: np.ndarray
    topk_scores: np.ndarray
    offsets: np.ndarray
    rows: np.ndarray
    ranks: np.ndarray
    texts: Sequence[str] | None = None

    @functools.cached_property
    def spread(self) -> float:
        """The teacher's scale: the standard deviation of a query's Top-K scores, averaged over queries."""
        return score_spread(self.topk_scores)

    def of(self, documents: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The queries that want each document most.

        Args:
          documents: [n] int, rows of the corpus.
          count: how many queries a document gets at most.

        Returns:
          [n, count] int32, rows of `queries`, Q where there are fewer; [n, count] float32, their weights, 0
          there; and [n, count] float32, the teacher's scores.
        """
        first = self.offsets[documents]
        counts = np.minimum(self.offsets[np.asarray(documents) + 1] - first, count)
        real = np.arange(count) < counts[:, None]
        # Most documents have few: only those are looked up.
        places = np.repeat(first - np.cumsum(counts) + counts, counts) + np.arange(np.sum(counts))
        found, ranks = self.rows[places], self.ranks[places]
        shape = (len(counts), count)
        rows, weights = np.full(shape, len(self.queries), np.int32), np.zeros(shape, np.float32)
        scores = np.zeros(shape, np.float32)
        rows[real], weights[real] = found, 1.0 / (1.0 + ranks / _HALF)
        scores[real] = self.topk_scores[found, ranks]
        return rows, weights, scores


def score_spread(topk_scores: np.ndarray) -> float:
    """The teacher's scale: the standard deviation of a query's Top-K scores, averaged over queries.

    Args:
      topk_scores: [Q, K] float32.

    Returns:
      A positive number, in units of the score.
    """
    return max(float(np.mean(np.std(topk_scores, axis=1, dtype=np.float64))), 1e-12)


def turn_round(queries: np.ndarray, topk_ids: np.ndarray, topk_scores: np.ndarray, documents: int) -> Demand:
    """From queries' documents to documents' queries.

    Args:
      queries: [Q, D] float32.
      topk_ids: [Q, K] int32, rows of the corpus, best first.
      topk_scores: [Q, K] float32.
      documents: N.

    Returns:
      The demand.
    """
    count = len(topk_ids)
    # Rank by rank and stably by document: within a document, ranks ascend, and queries within a rank.
    order = np.argsort(topk_ids.T.reshape(-1), kind='stable')
    offsets = np.zeros(documents + 1, np.int64)
    np.cumsum(np.bincount(topk_ids.reshape(-1), minlength=documents), out=offsets[1:])
    return Demand(
        queries=queries,
        topk_ids=topk_ids,
        topk_scores=topk_scores,
        offsets=offsets,
        rows=(order % count).astype(np.int32),
        ranks=(order // count).astype(np.int32),
    )


def of_columns(columns: Columns, documents: int) -> Demand:
    """The demand of the training queries.

    Args:
      columns: all of them.
      documents: N.

    Returns:
      The demand, which shares their arrays; it adds about 8·Q·K bytes.

    Example:
      demand = of_columns(dataset.train.columns(), len(dataset.corpus))
    """
    demand = turn_round(columns.embeddings, columns.topk_ids, columns.topk_scores, documents)
    return dataclasses.replace(demand, texts=columns.texts)
