"""Passes over a corpus against faiss: the exact Top-K, and encoding."""

import time
from collections.abc import Callable
from typing import Any

import baselines
import faiss
import numpy as np

from dvq_jax import encode, teacher


def _in_turn(ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Median seconds of both, in turn, after a first call of each; and how many times we are faster."""
    times = {'ours': [], 'faiss': []}
    for number in range(repeats + 1):
        for name, run in (('ours', ours), ('faiss', theirs)):
            begin = time.perf_counter()
            run()
            if number:
                times[name].append(time.perf_counter() - begin)
    seconds = {name: float(np.median(values)) for name, values in times.items()}
    return {**seconds, 'faiss_over_ours': seconds['faiss'] / seconds['ours']}


def mining(docs: np.ndarray, queries: np.ndarray, *, topk: int, repeats: int) -> dict[str, Any]:
    """`teacher.mine` against `faiss.IndexFlatIP`.

    Args:
      docs: [N, D] float32.
      queries: [Q, D] float32.
      topk: documents that each query gets.
      repeats: of each.

    Returns:
      Seconds of both and their ratio, the sizes, and the share of rows that both found.
    """
    flat = faiss.IndexFlatIP(docs.shape[1])
    flat.add(docs)
    same = np.mean(teacher.mine(docs, queries, topk)[0] == flat.search(queries, topk)[1])
    result = _in_turn(lambda: teacher.mine(docs, queries, topk), lambda: flat.search(queries, topk), repeats)
    return {'documents': len(docs), 'queries': len(queries), 'topk': topk, 'same': float(same), **result}


def encoding(docs: np.ndarray, *, lists: int, codebooks: int, repeats: int) -> dict[str, Any]:
    """`encode.encode_corpus` against `add` of the same faiss index, lists assigned by both.

    Args:
      docs: [N, D] float32.
      lists: L.
      codebooks: M, of 256 codewords.
      repeats: of each.

    Returns:
      Seconds of both and their ratio, the sizes, and the share of codes that are the same.
    """
    whole = baselines.train_ivfpq(docs, lists=lists, codebooks=codebooks, codewords=256)
    params, theirs = baselines.convert(whole)
    ours = encode.encode_corpus(params, docs, quiet=True)
    index = faiss.downcast_index(whole.index)
    by_distance = faiss.IndexFlatL2(docs.shape[1])  # as the index was filled; it is searched by inner product
    by_distance.add(params.centroids)
    index.quantizer = by_distance

    def add() -> None:
        index.reset()
        index.add(docs)

    result = _in_turn(lambda: encode.encode_corpus(params, docs, quiet=True), add, repeats)
    same = float(np.mean(ours.codes == theirs.codes))
    return {'documents': len(docs), 'lists': lists, 'codebooks': codebooks, 'same': same, **result}
