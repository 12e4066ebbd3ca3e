"""The teacher's exact Top-K: for each query the K documents with the largest inner product (eq. 4).

The corpus streams by once for each block of queries, the unit of resumption, see `exact`. Neither [Q, N]
scores nor the corpus are ever held whole.
"""

import hashlib
import os
from collections.abc import Sequence

import jax
import numpy as np

from dvq_jax import exact, files, host
from dvq_jax.data import fingerprint
from dvq_jax.errors import InputError
from dvq_jax.progress import Progress


def mine(
    corpus: np.ndarray,
    queries: np.ndarray,
    k: int,
    *,
    cache: str | os.PathLike | None = None,
    devices: Sequence[jax.Device] | None = None,
    query_block: int = 8192,
    corpus_block: int = 131_072,
) -> tuple[np.ndarray, np.ndarray]:
    """The k largest ⟨v_q, v_d⟩ of each query over the whole corpus, larger first, ties by lowest row.

    Args:
      corpus: [N, D] float16 or float32, usually memory-mapped.
      queries: [Q, D] float16 or float32.
      k: how many documents a query gets, at most N.
      cache: a folder for finished query blocks; another call with the same inputs goes on from there.
        None keeps nothing.
      devices: what to compute on by XLA; None takes all local accelerators, or where there are none this
        host's BLAS.
      query_block: at most so many queries are finished, and stored, together; each such block reads the
        corpus once.
      corpus_block: at most so many documents are scored at once on a device, which holds
        [256, corpus_block] scores and [corpus_block, D] float32 documents, twice.

    Returns:
      ids [Q, k] int32, rows of the corpus, and scores [Q, k] float32.

    Raises:
      InputError: k is not in [1, N], or the cache folder cannot be written to.

    Example:
      ids, scores = mine(np.load('docs.npy', mmap_mode='r'), queries, 200)
    """
    if not 1 <= k <= len(corpus):
        raise InputError(f'top {k} of {len(corpus)} documents does not exist; choose 1 to {len(corpus)}.')
    if devices is None and not host.is_all_there_is():
        devices = jax.local_devices()
    platform = 'host' if devices is None else devices[0].platform
    size = exact.even(len(queries), query_block)
    blocks = [slice(start, min(start + size, len(queries))) for start in range(0, len(queries), size)]
    paths = {}
    if cache is not None:
        inputs = (fingerprint(corpus), fingerprint(queries), k, size, corpus_block, platform)
        name = hashlib.sha256(repr(inputs).encode()).hexdigest()[:16]
        paths = {block.start: files.make_folder(cache) / f'{name}.{block.start}.npz' for block in blocks}
    found = {start for start, path in paths.items() if path.exists()}
    finished = sum(block.stop - block.start for block in blocks if block.start in found)
    total = len(queries) * len(corpus)
    progress = Progress('mine', total=total, unit='scores', start=finished * len(corpus))
    if devices is None:
        search = exact.on_host(corpus, k, corpus_block=corpus_block)
    else:
        blocks_of = {'query_block': size, 'corpus_block': corpus_block}
        search = exact.on_devices(corpus, k, devices=devices, **blocks_of)
    ids = np.empty((len(queries), k), np.int32)
    scores = np.empty((len(queries), k), np.float32)
    for block in blocks:
        if block.start in found:
            with np.load(paths[block.start]) as stored:
                ids[block], scores[block] = stored['ids'], stored['scores']
            continue
        ids[block], scores[block] = search(np.asarray(queries[block], np.float32), progress)
        if paths:
            with files.atomic_file(paths[block.start]) as aside, open(aside, 'wb') as file:
                np.savez(file, ids=ids[block], scores=scores[block])
    progress.done()
    return ids, scores
