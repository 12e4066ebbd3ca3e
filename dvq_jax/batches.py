"""From the training dataset to batches: a deterministic, resumable Grain pipeline.

Which queries a step sees, and which candidates each of them draws, depend on the seed and the step alone: the
global batch of step t is examples t·B to (t+1)·B of the shuffled, repeated dataset, and process p takes every
P-th of them. So the iterator's state, a count of batches, fits any number of processes and devices.
"""

import dataclasses
from collections.abc import Callable, Sequence

import grain
import jax
import numpy as np

from dvq_jax.candidates import Draw, Mixture, bring, draw
from dvq_jax.data import gather
from dvq_jax.dataset import Dataset
from dvq_jax.types import Batch

# A query's further positives, in ascending order of rows, take part as if they were not labelled.
_MAX_POSITIVES = 64


@dataclasses.dataclass(frozen=True)
class HostBatch:
    """A batch of this process, before it goes to the devices.

    Attributes:
      batch: arrays lead with [local devices, b].
      query_ids: this process's queries, to name them when something goes wrong.
    """

    batch: Batch
    query_ids: tuple[str, ...]


class _Draw(grain.transforms.RandomMap):
    """Draws for the example of that number, which is read later, with the others of its batch."""

    def __init__(self, mixture: Mixture):
        self._mixture = mixture

    def random_map(self, element: int, rng: np.random.Generator) -> tuple[int, Draw]:
        return element, draw(self._mixture, rng)


def training_batches(
    dataset: Dataset,
    *,
    mixture: Mixture,
    batch_size: int,
    seed: int,
    lists: np.ndarray | None,
    with_docs: bool = True,
    read: Callable[[Sequence[str]], np.ndarray] | None = None,
    threads: int = 4,
    prefetch: int = 4,
) -> grain.DatasetIterator:
    """An endless iterator over this process's share of the global batches.

    Args:
      dataset: from `open_dataset`.
      mixture: which documents a query brings; its Top-K is no longer than the dataset's.
      batch_size: B, queries in a global batch; a multiple of the number of devices.
      seed: of the shuffles and draws.
      lists: [N] int32, frozen lists; None where they are re-assigned on the fly.
      with_docs: gather the documents; else `docs` is None, for the corpus is on the devices.
      read: texts to tokens, where the tower reads them, see `towers.reader`.
      threads: that read and gather ahead.
      prefetch: batches held ready.

    Returns:
      An iterator of `HostBatch`, with `get_state()` and `set_state()`.
    """

    def collate(drawn: list[tuple[int, Draw]]) -> HostBatch:
        examples = dataset.train.__getitems__([number for number, _ in drawn])
        doc_ids = np.stack(
            [
                bring(mixture, chances, example['positives'], example['topk_ids'])
                for example, (_, chances) in zip(examples, drawn, strict=True)
            ]
        )
        positives = np.full((len(examples), _MAX_POSITIVES), -1, np.int32)
        for row, example in zip(positives, examples, strict=True):
            kept = example['positives'][:_MAX_POSITIVES]
            row[: len(kept)] = kept
        batch = Batch(
            queries=np.stack([example['embedding'] for example in examples]),
            doc_ids=doc_ids,
            docs=gather(dataset.corpus, doc_ids) if with_docs else None,
            lists=np.zeros_like(doc_ids) if lists is None else lists[np.maximum(doc_ids, 0)],
            positives=positives,
            tokens=None if read is None else read([example['text'] for example in examples]),
        )
        local = jax.local_device_count()
        spread = jax.tree.map(lambda x: x.reshape(local, -1, *x.shape[1:]), batch)
        return HostBatch(batch=spread, query_ids=tuple(example['query_id'] for example in examples))

    numbers = grain.MapDataset.range(len(dataset.train)).seed(seed).shuffle().repeat()
    drawn = numbers.random_map(_Draw(mixture))
    mine = drawn[jax.process_index() :: jax.process_count()]
    batches = mine.batch(batch_size // jax.process_count(), batch_fn=collate)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    return iter(batches.to_iter_dataset(options))
