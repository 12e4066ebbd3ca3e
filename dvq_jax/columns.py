"""Training queries as arrays, a column for each of an example's fields, so that a batch is a few lookups.

A record of the dataset takes a tenth of a millisecond to read, one at a time in Python: a GPU would wait for
batches of them. Where all queries are held anyway, because lists or codes are chosen for them, batches come
from there; else from the records.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np


@dataclasses.dataclass(frozen=True)
class Columns:
    """n examples.

    Attributes:
      query_ids: n strings.
      embeddings: [n, D] float32.
      topk_ids: [n, K] int32, rows of the corpus, best first.
      topk_scores: [n, K] float32.
      positives: [any] int32, rows of the corpus, the first example's first.
      offsets: [n + 1] int64; an example's positives are positives[offsets[i]:offsets[i + 1]].
      texts: n strings, where the dataset has them.
    """

    query_ids: Sequence[str]
    embeddings: np.ndarray
    topk_ids: np.ndarray
    topk_scores: np.ndarray
    positives: np.ndarray
    offsets: np.ndarray
    texts: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.query_ids)

    def take(self, rows: np.ndarray) -> 'Columns':
        """Some of the examples.

        Args:
          rows: [m] int.

        Returns:
          Them, in that order.
        """
        counts = np.diff(self.offsets)[rows]
        offsets = offsets_of(counts)
        places = np.repeat(self.offsets[rows] - offsets[:-1], counts) + np.arange(offsets[-1])
        return Columns(
            query_ids=[self.query_ids[row] for row in rows],
            embeddings=self.embeddings[rows],
            topk_ids=self.topk_ids[rows],
            topk_scores=self.topk_scores[rows],
            positives=self.positives[places],
            offsets=offsets,
            texts=None if self.texts is None else [self.texts[row] for row in rows],
        )

    def padded_positives(self, most: int) -> np.ndarray:
        """Each example's first positives, [n, most] int32; -1 pads."""
        counts = np.minimum(np.diff(self.offsets), most)
        found = np.full((len(self), most), -1, np.int32)
        places = self.offsets[:-1, None] + np.arange(most)
        real = np.arange(most) < counts[:, None]
        found[real] = self.positives[places[real]]
        return found


class Source(Protocol):
    """Examples by their number: `Columns`, or `dataset.Examples`, which reads them."""

    def __len__(self) -> int: ...

    def take(self, rows: np.ndarray) -> Columns:
        """Some of the examples, see `Columns.take`."""


def offsets_of(counts: np.ndarray) -> np.ndarray:
    """Where each of n parts of so many begins, and the end: [n + 1] int64."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def from_examples(examples: Sequence[Mapping[str, Any]]) -> Columns:
    """Columns of examples, one or more, as `dataset.Examples` gives them."""
    return Columns(
        query_ids=[example['query_id'] for example in examples],
        embeddings=np.stack([example['embedding'] for example in examples]),
        topk_ids=np.stack([example['topk_ids'] for example in examples]),
        topk_scores=np.stack([example['topk_scores'] for example in examples]),
        positives=np.concatenate([example['positives'] for example in examples]),
        offsets=offsets_of([len(example['positives']) for example in examples]),
        texts=[example['text'] for example in examples] if 'text' in examples[0] else None,
    )


def joined(parts: Iterable[Columns]) -> Columns:
    """Several columns one after the other."""
    parts = list(parts)
    arrays = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ('embeddings', 'topk_ids', 'topk_scores', 'positives')
    }
    return Columns(
        query_ids=[name for part in parts for name in part.query_ids],
        offsets=offsets_of(np.concatenate([np.diff(part.offsets) for part in parts])),
        texts=None if parts[0].texts is None else [text for part in parts for text in part.texts],
        **arrays,
    )
