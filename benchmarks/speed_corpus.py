"""Passes over a corpus against faiss: the exact Top-K, and encoding; and a Top-K that is ours alone."""

import pathlib
import tempfile
from collections.abc import Callable
from typing import Any
from unittest import mock

import baselines
import faiss
import numpy as np
from speed_timing import in_turn
from synthetic import write_vectors

from dvq_jax import encode, host, teacher
from dvq_jax.data import open_embeddings
from dvq_jax.progress import Progress

_MOVED = 0.03  # a coordinate, at most, on average


def perturbed(docs: np.ndarray, copies: int) -> np.ndarray:
    """A larger corpus like this one.

    Args:
      docs: [N, D] float32, of unit norm.
      copies: of each document, moved the more the later.

    Returns:
      [copies·N, D] float32, of unit norm.
    """
    rng = np.random.default_rng(0)
    grown = np.empty((copies, *docs.shape), np.float32)
    for number, copy in enumerate(grown):
        copy[:] = docs + number / copies * _MOVED * rng.standard_normal(docs.shape, np.float32)
        copy /= np.linalg.norm(copy, axis=1, keepdims=True)
    return grown.reshape(-1, docs.shape[1])


def _both_ways(work: Callable[[], Any]) -> dict[str, Callable[[], Any]]:
    """Work as this host does it, and as hosts do it whose cores have no units for bfloat16 products."""

    def in_float32() -> None:
        with mock.patch.object(host, 'has_matrix_units', return_value=False):
            work()

    return {'ours': work, 'float32': in_float32}


def mining(docs: np.ndarray, queries: np.ndarray, *, topk: int, repeats: int) -> dict[str, Any]:
    """`teacher.mine` against `faiss.IndexFlatIP`.

    Args:
      docs: [N, D] float32.
      queries: [Q, D] float32.
      topk: documents that each query gets.
      repeats: of each.

    Returns:
      The sizes, 'seconds' of both, and of ours by float32 alone, their ratio, and the share of rows that both
      found.
    """
    flat = faiss.IndexFlatIP(docs.shape[1])
    flat.add(docs)
    same = np.mean(teacher.mine(docs, queries, topk)[0] == flat.search(queries, topk)[1])

    sides = _both_ways(lambda: teacher.mine(docs, queries, topk))
    sides['faiss'] = lambda: flat.search(queries, topk)
    seconds = in_turn(sides, repeats)
    sizes = {'documents': len(docs), 'queries': len(queries), 'dim': docs.shape[1], 'topk': topk}
    ratio = seconds['faiss'] / seconds['ours']
    found = {'same': float(same), 'seconds': seconds, 'faiss_over_ours': ratio}
    return {**sizes, 'repeats': repeats, **found}


def large_mining(*, documents: int, dim: int, queries: int, topk: int, repeats: int) -> dict[str, Any]:
    """A block of queries after the other in a synthetic corpus of float16, once devices have that.

    Args:
      documents, dim: N, D.
      queries: of a block.
      topk: documents that each query gets.
      repeats: blocks that are timed; one before them is not.

    Returns:
      The sizes, and 'seconds' of a block: 'ours'.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = [pathlib.Path(folder) / f'{name}.npy' for name in ('docs', 'queries')]
        for seed, rows in enumerate((documents, (1 + repeats) * queries)):
            write_vectors(paths[seed], rows=rows, dim=dim, seed=seed)
        corpus, wanted = map(open_embeddings, paths)
        work = teacher.Mining(corpus, wanted, topk, query_block=queries)
        progress = Progress(work.label, total=None, unit=work.unit)
        numbers = iter(range(len(work.blocks)))
        seconds = in_turn({'ours': lambda: work(next(numbers), progress)}, repeats)
    sizes = {'documents': documents, 'queries': queries, 'dim': dim, 'topk': topk}
    return {**sizes, 'repeats': repeats, 'seconds': seconds}


def encoding(docs: np.ndarray, *, lists: int, codebooks: int, repeats: int) -> dict[str, Any]:
    """`encode.encode_corpus` against `add` of the same faiss index: both rotate, assign lists and encode.

    Args:
      docs: [N, D] float32.
      lists: L.
      codebooks: M, of 256 codewords.
      repeats: of each.

    Returns:
      The sizes, 'seconds' of both, and of ours by float32 alone, their ratio, and the share of codes that are
      the same.
    """
    dim = docs.shape[1]
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(dim, dim)))[0].astype(np.float32)
    shape = {'lists': lists, 'codebooks': codebooks, 'codewords': 256}
    whole = baselines.train_ivfpq(docs, **shape, rotation=rotation)
    params, theirs = baselines.convert(whole)
    ours = encode.encode_corpus(params, docs, quiet=True)
    by_distance = faiss.IndexFlatL2(dim)  # as the index was filled; it is searched by inner product
    by_distance.add(params.centroids)
    faiss.downcast_index(whole.index).quantizer = by_distance

    def add() -> None:
        whole.reset()
        whole.add(docs)

    sides = _both_ways(lambda: encode.encode_corpus(params, docs, quiet=True))
    seconds = in_turn({**sides, 'faiss': add}, repeats)
    sizes = {'documents': len(docs), 'dim': dim, **shape}
    same = float(np.mean(ours.codes == theirs.codes))
    return {**sizes, 'same': same, 'seconds': seconds, 'faiss_over_ours': seconds['faiss'] / seconds['ours']}
