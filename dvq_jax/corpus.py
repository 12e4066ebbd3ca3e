"""Passes over the corpus in blocks: what is held is a block and the result, never the corpus.

Every local device takes a block; the last ones are padded, so that there is one compiled shape.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dvq_jax.progress import Progress
from dvq_jax.quantizer import assign, encode
from dvq_jax.types import Array, Encoding, IndexParams

BLOCK = 8192
_ROWS = 1024


def _by_rows(function, *arrays: Array):
    """Applies a function of rows to `_ROWS` of them at a time, so that distances stay in cache."""
    cut = [x.reshape(-1, _ROWS, *x.shape[1:]) for x in arrays]
    parts = jax.lax.map(lambda rows: function(*rows), tuple(cut))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), parts)


def _encode_block(params: IndexParams, docs: Array, lists: Array | None) -> Encoding:
    docs = docs.astype(jnp.float32)
    if lists is None:
        return _by_rows(lambda rows: encode(params, rows), docs)
    return _by_rows(lambda rows, own: encode(params, rows, own), docs, lists)


def _assign_block(params: IndexParams, docs: Array) -> Array:
    return _by_rows(lambda rows: assign(params, rows), docs.astype(jnp.float32))


@functools.cache
def _mapped(name: str):
    functions = {
        'encode': (_encode_block, (None, 0, None)),
        'encode in lists': (_encode_block, (None, 0, 0)),
        'assign': (_assign_block, (None, 0)),
    }
    function, in_axes = functions[name]
    return jax.pmap(function, in_axes=in_axes, devices=jax.local_devices())


def _spread(block: np.ndarray, fan: int) -> np.ndarray:
    padding = [(0, fan * BLOCK - len(block))] + [(0, 0)] * (block.ndim - 1)
    return np.pad(block, padding).reshape(fan, BLOCK, *block.shape[1:])


def encode_corpus(
    params: IndexParams, corpus: np.ndarray, lists: np.ndarray | None = None, *, quiet: bool = False
) -> Encoding:
    """Encodes every document, see `quantizer.encode`.

    Args:
      params: the index.
      corpus: [N, D] float16 or float32, may be memory-mapped.
      lists: [N] int32, the documents' lists where training froze them; None assigns the nearest.
      quiet: print no progress.

    Returns:
      The encoding, lists [N] int32 and codes [N, M] uint8 on the host.

    Example:
      encoding = encode_corpus(params, np.load('docs.npy', mmap_mode='r'))
    """
    count, fan = len(corpus), jax.local_device_count()
    out = Encoding(lists=np.empty(count, np.int32), codes=np.empty((count, len(params.codebooks)), np.uint8))
    progress = Progress('encode', total=count, unit='documents', every=float('inf') if quiet else 5.0)
    for start in range(0, count, fan * BLOCK):
        rows = slice(start, min(start + fan * BLOCK, count))
        docs = _spread(corpus[rows], fan)
        if lists is None:
            part = _mapped('encode')(params, docs, None)
        else:
            part = _mapped('encode in lists')(params, docs, _spread(lists[rows], fan))
        size = rows.stop - start
        out.lists[rows] = np.asarray(part.lists).reshape(-1)[:size]
        out.codes[rows] = np.asarray(part.codes).reshape(fan * BLOCK, -1)[:size]
        progress.add(size)
    if not quiet:
        progress.done()
    return out


def assign_corpus(params: IndexParams, corpus: np.ndarray) -> np.ndarray:
    """The nearest list of every document, see `quantizer.assign`.

    Args:
      params: the index.
      corpus: [N, D] float16 or float32, may be memory-mapped.

    Returns:
      [N] int32 on the host.
    """
    count, fan = len(corpus), jax.local_device_count()
    lists = np.empty(count, np.int32)
    progress = Progress('assign', total=count, unit='documents')
    for start in range(0, count, fan * BLOCK):
        rows = slice(start, min(start + fan * BLOCK, count))
        part = _mapped('assign')(params, _spread(corpus[rows], fan))
        lists[rows] = np.asarray(part).reshape(-1)[: rows.stop - start]
        progress.add(rows.stop - start)
    progress.done()
    return lists
