"""The teacher's exact Top-K: for each query the K documents with the largest inner product (eq. 4).

The corpus streams by once for each block of queries, see `exact`, and finished blocks can be kept, see
`blocks`. Neither [Q, N] scores nor the corpus are ever held whole.
"""

import functools
import hashlib
import os
from collections.abc import Sequence

import jax
import numpy as np

from dvq_jax import blocks, exact, files, host, screened
from dvq_jax.data import fingerprint
from dvq_jax.errors import InputError
from dvq_jax.progress import Progress
from dvq_jax.stream import Stream

QUERY_BLOCK = 8192
CORPUS_BLOCK = 131_072


class Mining:
    """The Top-K of some queries, cut into blocks of them; a `blocks.Work`.

    A block is 'ids' [q, k] int32, rows of the corpus, and 'scores' [q, k] float32.

    Args:
      corpus, queries, k, devices, query_block, corpus_block: as `mine` takes them.

    Raises:
      InputError: k is not in [1, N].
    """

    label, unit = 'mine', 'scores'

    def __init__(
        self,
        corpus: np.ndarray,
        queries: np.ndarray,
        k: int,
        *,
        devices: Sequence[jax.Device] | None = None,
        query_block: int = QUERY_BLOCK,
        corpus_block: int = CORPUS_BLOCK,
    ):
        if not 1 <= k <= len(corpus):
            raise InputError(f'top {k} of {len(corpus)} documents does not exist; choose 1 to {len(corpus)}.')
        self._corpus, self._queries, self._k = corpus, queries, k
        self._devices, self._corpus_block = devices, corpus_block
        self._query_block = blocks.even(len(queries), query_block)
        self.blocks = blocks.cut(len(queries), self._query_block)

    def identity(self) -> str:
        """A digest of all that the answer depends on; what computes it changes scores by rounding alone."""
        inputs = (fingerprint(self._corpus), fingerprint(self._queries), self._k, self._query_block)
        return hashlib.sha256(repr(inputs).encode()).hexdigest()

    def parts(self, cache: str | os.PathLike) -> blocks.Parts:
        """Its finished blocks in a folder, which is created, and may hold others'.

        Raises:
          InputError: the folder cannot be written to.
        """
        return blocks.Parts(files.make_folder(cache), f'{self.identity()[:16]}.')

    def size(self, number: int) -> int:
        """How many scores a block computes."""
        block = self.blocks[number]
        return (block.stop - block.start) * len(self._corpus)

    def __call__(self, number: int, progress: Progress) -> dict[str, np.ndarray]:
        """Searches for the queries of a block."""
        ids, scores = self._search(np.asarray(self._queries[self.blocks[number]]), progress)
        return {'ids': ids, 'scores': scores}

    @functools.cached_property
    def _search(self) -> exact.Search:
        way = screened if screened.pays(len(self._corpus), len(self._queries), self._k) else exact
        devices = self._devices
        if devices is None and not host.is_all_there_is():
            devices = jax.local_devices()
        if devices is None:
            return way.on_host(self._corpus, self._k, corpus_block=self._corpus_block)
        largest = self._corpus_block
        if way is screened:
            largest = screened.largest_block(len(self._corpus), self._k, largest)
        stream = Stream(self._corpus, devices, largest=largest)
        return way.on_devices(stream, self._k, query_block=self._query_block)


def mine(
    corpus: np.ndarray,
    queries: np.ndarray,
    k: int,
    *,
    cache: str | os.PathLike | None = None,
    devices: Sequence[jax.Device] | None = None,
    query_block: int = QUERY_BLOCK,
    corpus_block: int = CORPUS_BLOCK,
) -> tuple[np.ndarray, np.ndarray]:
    """The k largest ⟨v_q, v_d⟩ of each query over the whole corpus, larger first, ties by lowest row.

    Args:
      corpus: [N, D] float16 or float32, usually memory-mapped.
      queries: [Q, D] float16 or float32.
      k: how many documents a query gets, at most N.
      cache: a folder for finished query blocks; another call with the same inputs goes on from there, and the
        processes of a `jax.distributed` run, on a folder that all of them see, share the work. None keeps
        nothing.
      devices: what to compute on by XLA; None takes all local accelerators, or where there are none this
        host's cores, by BLAS. Either way bfloat16 chooses and float32 ranks where that is faster
        (`screened`).
      query_block: at most so many queries are finished, and stored, together; each such block reads the
        corpus once, and where bfloat16 chooses once more for float32, unless devices keep it (`stream`).
      corpus_block: about so many documents are scored at once on a device at most (`stream.width_of`), at
        most twice as many where bfloat16 chooses. It holds 16 KB of scores for each, a TPU 32, a few times
        [corpus_block, D] documents, 24·k bytes and 16 KB for each query of a block, and the corpus, and what
        is rounded of it, where that takes no more than half of what it has left.

    Returns:
      ids [Q, k] int32, rows of the corpus, and scores [Q, k] float32.

    Raises:
      InputError: k is not in [1, N], or the cache folder cannot be written to.

    Example:
      ids, scores = mine(np.load('docs.npy', mmap_mode='r'), queries, 200)
    """
    work = Mining(corpus, queries, k, devices=devices, query_block=query_block, corpus_block=corpus_block)
    found = blocks.finish(work, None if cache is None else work.parts(cache))
    ids = np.empty((len(queries), k), np.int32)
    scores = np.empty((len(queries), k), np.float32)
    for number, block in enumerate(work.blocks):
        part = found[number]
        ids[block], scores[block] = part['ids'], part['scores']
    return ids, scores
