"""What grows with the corpus, and what more devices change.

A step and the memory of a pass should not depend on N, and the loss not on the number of devices. Every size
and every number of devices has a process of its own, so that none finds what another has left.
"""

import functools
import os
import pathlib
import tempfile
from typing import Any

import jax
import numpy as np
from processes import anonymous_memory, apart, with_peak
from speed_step import LISTS, make_batch, make_index, our_step
from speed_timing import in_turn
from synthetic import write_vectors

from dvq_jax import encode
from dvq_jax.corpus import BLOCK
from dvq_jax.data import gather, open_embeddings
from dvq_jax.store import Store

_STEPS = 20
_ENOUGH = 1_000_000  # documents in all, that encoding is timed on where the corpus has fewer
_BATCH, _CANDIDATES, _CODEBOOKS = 128, 16, 16


def _at_size(path: pathlib.Path, *, documents: int, repeats: int) -> dict[str, Any]:
    """In a process of its own: a step, a pass of encoding and the memory of that, at N documents."""
    corpus = open_embeddings(path)[:documents]
    dim = corpus.shape[1]
    index = make_index(dim=dim, codebooks=_CODEBOOKS)
    batch = make_batch(batch_size=_BATCH, candidates=_CANDIDATES, dim=dim)
    take, rng = our_step(index, batch, estimator='hard'), np.random.default_rng(1)

    def step() -> None:
        doc_ids = np.sort(rng.integers(0, documents, batch.doc_ids.shape, np.int32))
        float(take(batch.replace(doc_ids=doc_ids, docs=gather(corpus, doc_ids))))

    def encoded(some: np.ndarray) -> None:
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            encode.encode_corpus(index, some, store=Store(pathlib.Path(folder)), quiet=True)

    step_seconds = in_turn({'step': step}, _STEPS)['step']
    encoded(corpus[: BLOCK + 1])  # compiles both shapes of block
    before = anonymous_memory(os.getpid())
    passes = max(1, min(repeats, _ENOUGH // documents))
    seconds, peak = with_peak(lambda: in_turn({'encode': lambda: encoded(corpus)}, passes)['encode'])
    return {
        'documents': documents,
        'dim': dim,
        'lists': LISTS,
        'codebooks': _CODEBOOKS,
        'corpus_mib': corpus.nbytes / 2**20,
        'step_seconds': step_seconds,
        'documents_per_second': documents / seconds,
        'anonymous_mib': {'before': before / 2**20, 'peak': peak / 2**20},
    }


def scaling(*, sizes: list[int], dim: int, repeats: int) -> list[dict[str, Any]]:
    """Takes training steps on, and encodes, synthetic corpora of growing size.

    A step reads its B·C documents from the memory-mapped corpus; encoding stores what it makes on disk.

    Args:
      sizes: N.
      dim: D.
      repeats: of a pass of encoding, where a million documents allow so many.

    Returns:
      A row a size: 'step_seconds', 'documents_per_second' of encoding, and the process's anonymous memory
      before it and at its peak.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / 'docs.npy'
        write_vectors(path, rows=max(sizes), dim=dim, seed=0)
        return [apart(functools.partial(_at_size, path, documents=size, repeats=repeats)) for size in sizes]


def _on_devices(*, dim: int, batch_size: int, repeats: int) -> dict[str, Any]:
    """In a process of its own: steps on all devices that it has been given."""
    count = jax.local_device_count()
    batch = make_batch(batch_size=batch_size, candidates=_CANDIDATES, dim=dim)
    batch = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[2:]), batch)
    take, losses = our_step(make_index(dim=dim, codebooks=_CODEBOOKS), batch, estimator='hard'), []
    seconds = in_turn({'step': lambda: losses.append(float(take(batch)))}, repeats)['step']
    return {'devices': count, 'dim': dim, 'batch_size': batch_size, 'seconds': seconds, 'losses': losses}


def devices(*, counts: list[int], dim: int, batch_size: int, repeats: int) -> list[dict[str, Any]]:
    """Takes the same steps on 1 and more devices, which share this host's cores.

    Args:
      counts: numbers of devices; each divides the batch.
      dim: D.
      batch_size: B of the global batch.
      repeats: steps that count.

    Returns:
      A row a number: 'seconds' of a step, the 'losses' of all, and 'loss_difference', the largest relative
      one to the losses of the first row.
    """
    rows = []
    for count in counts:
        forced = {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': f'--xla_force_host_platform_device_count={count}'}
        steps = functools.partial(_on_devices, dim=dim, batch_size=batch_size, repeats=repeats)
        row = apart(steps, environment=forced)
        difference = np.max(np.abs(np.divide(row['losses'], (rows or [row])[0]['losses']) - 1))
        rows.append({**row, 'loss_difference': float(difference)})
    return rows
