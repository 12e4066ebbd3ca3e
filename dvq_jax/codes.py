"""Codes chosen for the queries that want a document, not for its distance.

Nearest codewords minimise ‖v − o − û‖², as if every direction mattered. A document is asked for by few
queries, and what they see of it is a score: so its codes minimise

    Σ_q w_q·(⟨v_q, v⟩ − ⟨ṽ_q, o + û⟩)² + ρ·‖v·R − o − û‖²

over its own training queries (`demand`), v_q the teacher's query and ṽ_q the student's, after the tower. The
second term stands for the queries that are not known: as if `prior` more of them had come from everywhere,
ρ = prior·E‖v_q‖²/D. A document that no query wants keeps its nearest codewords.

The minimum over K^M codes is approached by coordinate descent from the nearest ones: codebook by codebook the
codeword that is best with the others as they are. Within codebook m the objective is the quadratic form
c·A_m·c − 2⟨b_m, c⟩ + const of the codeword c, with A_m = Σ_q w_q ṽ_q^m (ṽ_q^m)ᵀ + ρ·I, [S, S], once a
document, so that a sweep costs a product of [n, S(S+1)/2] with [S(S+1)/2, K] a codebook, whatever the number
of queries. Serving costs nothing: only which codes are stored has changed.
"""

import jax
import jax.numpy as jnp
import numpy as np

from dvq_jax.quantizer import split
from dvq_jax.types import Array, IndexParams

_PRECISION = jax.lax.Precision.HIGHEST


def codeword_products(codebooks: Array) -> Array:
    """The products of coordinates that a quadratic form takes, cᵢ·cⱼ for i ≤ j, twice where i < j.

    Args:
      codebooks: [M, K, S] float32.

    Returns:
      [M, K, S(S+1)/2] float32.
    """
    rows, columns = np.triu_indices(codebooks.shape[-1])
    return codebooks[..., rows] * codebooks[..., columns] * np.where(rows == columns, 1.0, 2.0)


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
      products: [M, K, S(S+1)/2] float32, `codeword_products` of its codebooks.
      residuals: [n, D] float32, v·R − o.
      codes: [n, M] int32, to start from.
      queries: [n, b, D] float32, ṽ_q in the rotated space, of each document's queries.
      errors: [n, b] float32, ⟨v_q, v⟩ − ⟨ṽ_q, o⟩: what û should score.
      weights: [n, b] float32, w_q; 0 pads.
      ridge: ρ.
      sweeps: over all codebooks.

    Returns:
      [n, M] int32; the objective is never above that of the given codes.
    """
    books, words, width = params.codebooks.shape
    rows, columns = np.triu_indices(width)
    parts = jnp.moveaxis(split(params, queries), 2, 0)  # [M, n, b, S]
    wanted = jnp.swapaxes(split(params, residuals), 0, 1)  # [M, n, S]
    grams = jnp.einsum('mnbs,mnbt->mnst', parts * weights[..., None], parts, precision=_PRECISION)
    forms = (grams + ridge * jnp.eye(width))[..., rows, columns]
    chosen = params.codebooks[jnp.arange(books)[:, None], codes.T]
    left = errors - jnp.einsum('mnbs,mns->nb', parts, chosen, precision=_PRECISION)
    words_up = jnp.arange(words, dtype=codes.dtype)

    def improve(turn: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        codes, left = state
        m = turn % books
        book, part = params.codebooks[m], parts[m]
        without = left + jnp.einsum('nbs,ns->nb', part, book[codes[:, m]], precision=_PRECISION)
        pull = jnp.einsum('nb,nbs->ns', weights * without, part, precision=_PRECISION) + ridge * wanted[m]
        costs = jnp.matmul(forms[m], products[m].T, precision=_PRECISION)
        costs -= 2.0 * jnp.matmul(pull, book.T, precision=_PRECISION)
        now = jnp.take_along_axis(costs, codes[:, m, None], axis=1)
        least = jnp.min(costs, axis=1, keepdims=True)
        # As in `quantizer.nearest`, a minimum and a search for it; a tie keeps the code that it has.
        best = jnp.min(jnp.where(costs == least, words_up, words), axis=1).astype(codes.dtype)
        best = jnp.where(now[:, 0] <= least[:, 0], codes[:, m], best)
        left = without - jnp.einsum('nbs,ns->nb', part, book[best], precision=_PRECISION)
        return codes.at[:, m].set(best), left

    return jax.lax.fori_loop(0, books * sweeps, improve, (codes, left))[0]
