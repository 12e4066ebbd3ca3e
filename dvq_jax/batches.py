"""From the training dataset to batches: a deterministic, resumable Grain pipeline.

Which queries a step sees, and which candidates each of them draws, depend on the seed and the step alone: the
global batch of step t is examples t·B to (t+1)·B of the shuffled, repeated dataset, and process p takes every
P-th of them. So the iterator's state, a count of batches, fits any number of processes and devices.
"""

import dataclasses

import grain
import jax
import numpy as np

from dvq_jax.candidates import Mixture, draw
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
    """Adds the documents that an example brings, by a generator of its own."""

    def __init__(self, mixture: Mixture):
        self._mixture = mixture

    def random_map(self, element: dict, rng: np.random.Generator) -> dict:
        doc_ids = draw(self._mixture, rng, element['positives'], element['topk_ids'])
        positives = np.full(_MAX_POSITIVES, -1, np.int32)
        kept = element['positives'][:_MAX_POSITIVES]
        positives[: len(kept)] = kept
        return {
            'query_id': element['query_id'],
            'embedding': element['embedding'],
            'doc_ids': doc_ids,
            'positives': positives,
        }


def training_batches(
    dataset: Dataset,
    *,
    mixture: Mixture,
    batch_size: int,
    seed: int,
    lists: np.ndarray | None,
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
      threads: that read and gather ahead.
      prefetch: batches held ready.

    Returns:
      An iterator of `HostBatch`, with `get_state()` and `set_state()`.
    """

    def collate(examples: list[dict]) -> HostBatch:
        stacked = {
            name: np.stack([example[name] for example in examples])
            for name in ('embedding', 'doc_ids', 'positives')
        }
        doc_ids = stacked['doc_ids']
        batch = Batch(
            queries=stacked['embedding'],
            doc_ids=doc_ids,
            docs=gather(dataset.corpus, doc_ids),
            lists=np.zeros_like(doc_ids) if lists is None else lists[np.maximum(doc_ids, 0)],
            positives=stacked['positives'],
        )
        local = jax.local_device_count()
        spread = jax.tree.map(lambda x: x.reshape(local, -1, *x.shape[1:]), batch)
        return HostBatch(batch=spread, query_ids=tuple(example['query_id'] for example in examples))

    examples = grain.MapDataset.source(dataset.train).seed(seed).shuffle().repeat()
    drawn = examples.random_map(_Draw(mixture))
    mine = drawn[jax.process_index() :: jax.process_count()]
    batches = mine.batch(batch_size // jax.process_count(), batch_fn=collate)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    return iter(batches.to_iter_dataset(options))
