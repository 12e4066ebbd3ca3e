"""Codes chosen for the queries that want a document, not for its distance.

Nearest codewords minimise ‖v − o − û‖², as if every direction mattered. A document is asked for by few
queries, and what they see of it is a score: so its codes minimise

    Σ_q w_q·(⟨v_q, v⟩ − ⟨ṽ_q, o + û⟩)² + ρ·‖v·R − o − û‖²

over its own training queries (`demand`), v_q the teacher's query and ṽ_q the student's, after the tower. The
second term stands for the queries that are not known: as if `prior` more of them had come from everywhere,
ρ = prior·E‖v_q‖²/D. A document that no query wants keeps its nearest codewords.

The minimum over K^M codes is approached by coordinate descent from the nearest ones: codebook by codebook the
codeword that is best with the others as they are. Within codebook m the objective is the quadratic form
c·A_m·c − 2⟨b_m, c⟩ + const of the codeword c, with A_m = Σ_q w_q ṽ_q^m (ṽ_q^m)ᵀ + ρ·I, [S, S]. The squares
c·A_m·c do not depend on the other codes: they are found once a document, by a product of [n, S(S+1)/2] with
[S(S+1)/2, K] a codebook, whatever the number of queries, and a sweep adds the linear part alone. Serving
costs nothing: only which codes are stored has changed.
"""

import jax
import jax.numpy as jnp
import numpy as np

from dvq_jax.quantizer import encode, rotate, split
from dvq_jax.types import Array, Encoding, IndexParams

_PRECISION = jax.lax.Precision.HIGHEST


def _dot(spec: str, *arrays: Array) -> Array:
    return jnp.einsum(spec, *arrays, precision=_PRECISION)


def codeword_products(codebooks: Array) -> Array:
    """The products of coordinates that a quadratic form takes, cᵢ·cⱼ for i ≤ j, twice where i < j.

    Args:
      codebooks: [M, K, S] float32.

    Returns:
      [M, S(S+1)/2, K] float32.
    """
    rows, columns = np.triu_indices(codebooks.shape[-1])
    products = codebooks[..., rows] * codebooks[..., columns] * np.where(rows == columns, 1.0, 2.0)
    return jnp.swapaxes(products, 1, 2)


def by_codebook(params: IndexParams, vectors: Array) -> Array:
    """Cuts vectors into the codebooks' subspaces, a codebook's parts together: [..., D] to [M, ..., S]."""
    return jnp.moveaxis(split(params, vectors), -2, 0)


def encode_for(
    params: IndexParams,
    products: Array,
    docs: Array,
    queries: Array,
    weights: Array,
    scores: Array,
    lists: Array | None = None,
    *,
    ridge: float,
    sweeps: int,
) -> Encoding:
    """Encodes documents for their queries: their nearest codewords, improved by `choose`.

    Args:
      params: the index.
      products: [M, S(S+1)/2, K] float32, `codeword_products` of its codebooks.
      docs: [n, D] float32, in the caller's space.
      queries: [n, b, D] float32, ṽ_q in the rotated space, of each document's queries.
      weights: [n, b] float32, w_q; 0 pads.
      scores: [n, b] float32, ⟨v_q, v⟩.
      lists: [n] int32, the documents' lists where they are decided; None assigns the nearest.
      ridge: ρ.
      sweeps: over all codebooks.

    Returns:
      The encoding.
    """
    nearest = encode(params, docs, lists)
    coarse = params.centroids[nearest.lists]
    students, own = by_codebook(params, queries), by_codebook(params, coarse)
    chosen = choose(
        params,
        products,
        by_codebook(params, rotate(params, docs) - coarse),
        nearest.codes.astype(jnp.int32),
        students,
        scores - _scored(students, own),
        weights,
        ridge=ridge,
        sweeps=sweeps,
    )
    return nearest.replace(codes=chosen.astype(jnp.uint8))


def _scored(queries: Array, parts: Array) -> Array:
    """What vectors [M, n, S] score for queries [M, n, b, S], by codebook both, [n, b]."""
    return jnp.sum(_dot('mnbs,mns->mnb', queries, parts), axis=0)  # one product would transpose the queries


def choose(
    params: IndexParams,
    products: Array,
    residuals: Array,
    codes: Array,
    queries: Array,
    errors: Array,
    weights: Array,
    *,
    ridge: float,
    sweeps: int,
) -> Array:
    """Improves the codes of documents for their queries, see the module's text.

    Args:
      params: the index.
      products: [M, S(S+1)/2, K] float32, `codeword_products` of its codebooks.
      residuals: [M, n, S] float32, v·R − o by codebook.
      codes: [n, M] int32, to start from.
      queries: [M, n, b, S] float32, ṽ_q in the rotated space, of each document's queries, by codebook.
      errors: [n, b] float32, ⟨v_q, v⟩ − ⟨ṽ_q, o⟩: what û should score.
      weights: [n, b] float32, w_q; 0 pads.
      ridge: ρ.
      sweeps: over all codebooks.

    Returns:
      [n, M] int32; the objective is never above that of the given codes.
    """
    books, words, width = params.codebooks.shape
    rows, columns = np.triu_indices(width)
    # A CPU multiplies fastest what is summed along a left side's rows and a right side's columns.
    weighted = jnp.swapaxes(queries * weights[..., None], 2, 3)
    grams = _dot('mnsb,mnbt->mnst', weighted, queries) + ridge * jnp.eye(width)
    squares = _dot('mnp,mpk->mnk', grams[..., rows, columns], products)
    chosen = params.codebooks[jnp.arange(books)[:, None], codes.T]
    left = errors - _scored(queries, chosen)
    words_up = jnp.arange(words, dtype=codes.dtype)

    def improve(turn: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        codes, left = state
        m = turn % books
        book, now = params.codebooks[m], codes[:, m]
        gap = residuals[m] - book[now]
        # b_m as seen from the codeword that is there: what all of them together still miss, and its own part.
        pull = _dot('nb,nbs->ns', weights * left, queries[m]) + ridge * gap
        pull += _dot('nst,nt->ns', grams[m], book[now])
        costs = squares[m] - 2.0 * _dot('ns,ks->nk', pull, book)
        least = jnp.min(costs, axis=1)
        # As in `quantizer.nearest`, a minimum and a search for it; a tie keeps the code that it has.
        best = jnp.min(jnp.where(costs == least[:, None], words_up, words), axis=1).astype(codes.dtype)
        best = jnp.where(jnp.take_along_axis(costs, now[:, None], axis=1)[:, 0] <= least, now, best)
        left -= _dot('nbs,ns->nb', queries[m], book[best] - book[now])
        return codes.at[:, m].set(best), left

    return jax.lax.fori_loop(0, books * sweeps, improve, (codes, left))[0]
