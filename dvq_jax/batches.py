"""From the training dataset to batches: a deterministic, resumable Grain pipeline.

Which queries a step sees, and which candidates each of them draws, depend on the seed and the step alone: the
global batch of step t is examples t·B to (t+1)·B of the dataset, again and again in another order, dealt out
to the devices as they come. So the iterator's state, a count of batches, fits any number of processes and
devices.

In-batch every process looks at all examples of a batch, for only so does it know which documents are brought
twice; it reads the documents of its own devices alone. Each example that is handled by itself costs: what a
batch takes is drawn and looked up for all of its examples at once.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import grain
import jax
import numpy as np

from dvq_jax.candidates import Draw, Mixture, bring, distinct, draw
from dvq_jax.columns import Source
from dvq_jax.data import gather
from dvq_jax.types import Batch

# A query's further positives, in ascending order of rows, take part as if they were not labelled.
_MAX_POSITIVES = 64
_ENDLESS = 2**40  # batches


@dataclasses.dataclass(frozen=True)
class HostBatch:
    """A batch of this process, before it goes to the devices.

    Attributes:
      batch: arrays lead with the local devices.
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
    own = slice(process * batch_size // processes, (process + 1) * batch_size // processes)

    def by_device(array: np.ndarray) -> np.ndarray:
        return array.reshape(local, -1, *array.shape[1:])

    @functools.lru_cache(maxsize=2)  # a batch may end one and begin the next
    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng((seed, epoch, 1)).permutation(len(examples))

    def batch_of(step: int) -> HostBatch:
        epochs, turns = np.divmod(np.arange(step * batch_size, (step + 1) * batch_size), len(examples))
        rows = np.concatenate([order(int(epoch))[turns[epochs == epoch]] for epoch in np.unique(epochs)])
        chances = draw(mixture, batch_size, np.random.default_rng((seed, step)))
        if mixture.in_batch:
            whole = examples.take(rows)
            brought = bring(mixture, chances, whole).reshape(processes * local, -1)
            some, doc_ids = whole.take(np.arange(own.start, own.stop)), distinct(brought)
            doc_ids = doc_ids[process * local : (process + 1) * local]
        else:
            some = examples.take(rows[own])
            doc_ids = bring(mixture, Draw(*(x[own] for x in chances)), some).reshape(local, -1)
        batch = Batch(
            queries=by_device(some.embeddings),
            doc_ids=doc_ids,
            docs=gather(corpus, doc_ids) if with_docs else None,
            lists=np.zeros_like(doc_ids) if lists is None else lists[np.maximum(doc_ids, 0)],
            positives=by_device(some.padded_positives(_MAX_POSITIVES)),
            tokens=None if read is None else by_device(read(some.texts)),
        )
        return HostBatch(batch=batch, query_ids=tuple(some.query_ids))

    batches = grain.MapDataset.range(_ENDLESS).map(batch_of)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    return iter(batches.to_iter_dataset(options))
