"""From the training dataset to batches: a deterministic, resumable Grain pipeline.

Which queries a step sees, and which candidates each of them draws, depend on the seed and the step alone: the
global batch of step t is examples t·B to (t+1)·B of the shuffled, repeated dataset, and process p takes every
P-th of them. So the iterator's state, a count of batches, fits any number of processes and devices.

Each example that is handled by itself costs: what a batch takes is looked up for all of its examples at once.
"""

import dataclasses
from collections.abc import Callable, Sequence

import grain
import jax
import numpy as np

from dvq_jax.candidates import Draw, Mixture, bring, draw
from dvq_jax.columns import Source
from dvq_jax.data import gather
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


def training_batches(
    corpus: np.ndarray,
    examples: Source,
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
      corpus: [N, D] float, usually memory-mapped.
      examples: the training queries.
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

    processes, process, local = jax.process_count(), jax.process_index(), jax.local_device_count()

    def collate(numbers: list[tuple[int, int]]) -> HostBatch:
        positions, rows = np.array(numbers).T
        some = examples.take(rows)
        step = int(positions[0]) // batch_size
        chances = draw(mixture, batch_size, np.random.default_rng((seed, step)))
        doc_ids = bring(mixture, Draw(*(x[process::processes] for x in chances)), some)
        batch = Batch(
            queries=some.embeddings,
            doc_ids=doc_ids,
            docs=gather(corpus, doc_ids) if with_docs else None,
            lists=np.zeros_like(doc_ids) if lists is None else lists[np.maximum(doc_ids, 0)],
            positives=some.padded_positives(_MAX_POSITIVES),
            tokens=None if read is None else read(some.texts),
        )
        spread = jax.tree.map(lambda x: x.reshape(local, -1, *x.shape[1:]), batch)
        return HostBatch(batch=spread, query_ids=tuple(some.query_ids))

    numbers = grain.MapDataset.range(len(examples)).seed(seed).shuffle().repeat()
    placed = numbers.map_with_index(lambda position, row: (position, row))
    batches = placed[process::processes].batch(batch_size // processes, batch_fn=collate)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    return iter(batches.to_iter_dataset(options))
