"""Holds a freshly written index against the reference search, before anybody else can open it."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from dvq_jax import quantizer, search
from dvq_jax.types import Encoding, IndexParams

# How far two float32 sums of the same products may be apart, relative to the largest score.
_FLOAT = 1e-4


class MismatchError(RuntimeError):
    """The written index does not search like the reference: a bug, or an engine that changed."""


def _sample(params: IndexParams, encoding: Encoding, *, count: int, added: int, nprobe: int) -> np.ndarray:
    """Decoded documents as queries, [q, D], without those whose last probed list is tied with the next."""
    total, rng = encoding.lists.shape[0], np.random.default_rng(0)
    rows = rng.choice(total, min(count, total), replace=False)
    latest = encoding.documents - 1 - rng.choice(added, min(count, added), replace=False)
    rows = np.union1d(rows, latest)
    queries = quantizer.decode(params, Encoding(lists=encoding.lists[rows], codes=encoding.codes[rows]))
    coarse = -np.sort(-np.asarray(quantizer.rotate(params, queries)) @ params.centroids.T, axis=1)
    if nprobe >= coarse.shape[1]:
        return np.asarray(queries)
    gap = coarse[:, nprobe - 1] - coarse[:, nprobe]
    return np.asarray(queries)[gap > _FLOAT * np.abs(coarse).max()]


def lookup_error(params: IndexParams, queries: np.ndarray, *, lookup: str) -> np.ndarray:
    """How far a score may be off because the engine rounds its lookup tables.

    A query's table ⟨q·R, c⟩ is rounded to 8 bits by one step for all of it, max|table| / 127; a score sums M
    entries, each at most half a step off.

    Args:
      params: the index.
      queries: [q, D] float, in the caller's space, after the query tower.
      lookup: 'float', 'int8' or 'lut16'.

    Returns:
      [q, 1] float32.
    """
    if lookup == 'float':
        return np.zeros((len(queries), 1), np.float32)
    parts = quantizer.split(params, quantizer.rotate(params, jnp.asarray(queries)))
    tables = np.abs(np.asarray(jnp.einsum('qms,mks->qmk', parts, params.codebooks)))
    return tables.max(axis=(1, 2))[:, None] / 127 / 2 * params.codebooks.shape[0]


def _scores(
    params: IndexParams, encoding: Encoding, rotated: np.ndarray, rows: np.ndarray, *, nprobe: int
) -> np.ndarray:
    """[copies, q, k] the scores of each document's entries, NaN where their list is not probed."""
    coarse = rotated @ params.centroids.T
    probed = np.zeros(coarse.shape, bool)
    np.put_along_axis(probed, np.argsort(-coarse, axis=1, kind='stable')[:, :nprobe], True, axis=1)
    scores = []
    for copy in range(encoding.copies):
        entries = np.maximum(rows, 0) + copy * encoding.documents
        found = Encoding(lists=encoding.lists[entries.ravel()], codes=encoding.codes[entries.ravel()])
        vectors = np.asarray(quantizer.reconstruct(params, found)).reshape(*rows.shape, -1)
        reached = np.take_along_axis(probed, encoding.lists[entries], axis=1)
        scores.append(np.where(reached, np.einsum('qd,qkd->qk', rotated, vectors), np.nan))
    return np.stack(scores)


def _nearest_score(entries: np.ndarray, reported: np.ndarray) -> np.ndarray:
    """[q, k] of what a document may score, by either entry or their mean, the nearest to what is reported."""
    choices = np.concatenate([entries, entries.mean(axis=0, keepdims=True)])
    gaps = np.where(np.isnan(choices), np.inf, np.abs(choices - reported))
    return np.take_along_axis(choices, gaps.argmin(axis=0)[None], axis=0)[0]


def verify(
    engine: Callable[..., tuple[np.ndarray, np.ndarray]],
    *,
    params: IndexParams,
    encoding: Encoding,
    lookup: str = 'float',
    documents: Callable[[np.ndarray], np.ndarray] | None = None,
    rounding: np.ndarray | None = None,
    nprobe: int,
    k: int = 10,
    count: int = 32,
    added: int = 0,
) -> None:
    """Compares a sample of searches with the reference search.

    The documents found must be as good as the reference's, and be reported with the right scores: of their
    reconstructions, or of the documents themselves where the engine re-scores by those.

    Args:
      engine: (rotated [q, D], *, k, nprobe) -> (scores [q, k], rows [q, k]); re-scores the k best where it
        reorders.
      params: the index.
      encoding: N documents, in one list or more each.
      lookup: how the engine scores codes.
      documents: where the engine re-scores by them: rows [q, k] -> the documents [q, k, D] float32, rotated.
      rounding: [D] float32, then: how far a number that it stores may be off.
      nprobe: P.
      k: documents compared for each query.
      count: queries, made of documents.
      added: how many of the last documents are new; of them as many queries more are made, for among the
        others they may be too few to be met.

    Raises:
      MismatchError: they differ by more than rounding explains.
    """
    queries = _sample(params, encoding, count=count, added=added, nprobe=nprobe)
    if not len(queries):
        return
    expected, wanted = (np.asarray(x) for x in search.search(params, encoding, queries, k=k, nprobe=nprobe))
    rotated = np.asarray(quantizer.rotate(params, queries))
    scores, rows = engine(rotated, k=k, nprobe=nprobe)
    if not np.array_equal(rows >= 0, wanted >= 0):
        raise MismatchError('the written index finds another number of documents than the reference search.')
    real = rows >= 0
    entries = _scores(params, encoding, rotated, rows, nprobe=nprobe)
    one = encoding.copies == 1
    approximate = np.where(real, entries[0] if one else _nearest_score(entries, scores), -np.inf)
    slack = _FLOAT * np.abs(expected[real]).max(initial=0) + lookup_error(params, queries, lookup=lookup)
    # With two copies, rounding decides which of them are among the candidates, and so what is averaged.
    if one or (lookup == 'float' and documents is None):
        _compare('finds other documents', -np.sort(-approximate, axis=1), expected, 2 * slack)
    if documents is None:
        _compare('reports other scores', scores, approximate, slack)
        return
    exact = np.einsum('qd,qkd->qk', rotated, documents(np.maximum(rows, 0)))
    slack = _FLOAT * np.abs(exact[real]).max(initial=0) + (np.abs(rotated) @ rounding)[:, None]
    _compare('reports other exact scores', scores, np.where(real, exact, -np.inf), slack)


def _compare(what: str, found: np.ndarray, expected: np.ndarray, slack: np.ndarray) -> None:
    real = np.isfinite(expected)
    off = np.abs(np.where(real, found, 0) - np.where(real, expected, 0)) - slack
    if not off.max() <= 0:
        raise MismatchError(
            f'the written index {what} than the reference search, {off.max():.3g} beyond rounding.'
        )
