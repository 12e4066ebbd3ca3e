"""The quantizer as pure functions of `IndexParams`: assign, encode, decode, straight_through, score.

A document v is rotated (v·R), given to its nearest centroid o (eq. 2 of the paper) and its residual
u = v·R − o is replaced, subspace by subspace, by the nearest codeword (eq. 3), so that
v·R ≈ o + û. A query q scores it by ⟨q·R, o + û⟩ (eq. 5).

Distances are ‖c‖² − 2⟨u, c⟩, one matrix product: the broadcast difference u − c, [n, M, K, S], is never made.
Products ask for the highest precision: on GPU and TPU the default rounds operands, which moves documents
between lists and codewords. Training alone may ask for bfloat16 ones.
"""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from dvq_jax import nearest_gpu
from dvq_jax.codewords import pick, sums
from dvq_jax.types import Array, Encoding, IndexParams

Products = Literal['float32', 'bfloat16']
_DISTANCES = 2**22  # of vectors to all centers of a group that are held at once


def to_bfloat16(x: Array) -> Array:
    """Rounds float32 to bfloat16's values, in float32; not by a cast to and fro, which XLA may leave out."""
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


def product(a: Array, b: Array, products: Products = 'float32') -> Array:
    """a @ b, accumulated in float32.

    Args:
      a: [..., n, k] float32.
      b: [..., k, m] float32.
      products: of what: 'bfloat16' rounds both operands, on every platform to the same values, and takes an
        accelerator's matrix units; 'float32' rounds nothing.

    Returns:
      [..., n, m] float32.
    """
    if products == 'float32':
        return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
    a, b = to_bfloat16(a), to_bfloat16(b)
    return jnp.matmul(a, b, precision=jax.lax.DotAlgorithmPreset.BF16_BF16_F32)


def bytes_per_document(codebooks: int, codewords: int) -> float:
    """What a document's codes cost: M·⌈log₂ K⌉ bits."""
    return codebooks * (codewords - 1).bit_length() / 8


class Quantized(NamedTuple):
    """Documents as the student sees them, in the rotated space, differentiable in the parameters.

    Attributes:
      coarse: [n, D] float32, v̂: the centroid of each document's list.
      full: [n, D] float32, v̂ + û: centroid plus quantized residual.
      lists: [n] int32, the list used.
      codes: [n, M] int32, the codewords used.
    """

    coarse: Array
    full: Array
    lists: Array
    codes: Array


def rotate(params: IndexParams, vectors: Array, *, products: Products = 'float32') -> Array:
    """Takes vectors from the caller's space to the rotated one, x ↦ x·R.

    Args:
      params: the index.
      vectors: [..., D] float.
      products: see `product`.

    Returns:
      [..., D] float32.
    """
    return product(vectors.astype(jnp.float32), params.rotation, products)


def nearest(vectors: Array, centers: Array, *, products: Products = 'float32') -> tuple[Array, Array]:
    """The nearest center of each vector in each group, one group at a time, so many distances at once.

    A GPU has a kernel for codewords, `nearest_gpu`. Else it is a minimum over rows and a search for it, which
    vectorise along the vectors: on a CPU XLA's argmin is a scalar loop, and a minimum within rows takes half
    as long again.

    Args:
      vectors: [n, G, S] float32.
      centers: [G, K, S] float32.
      products: see `product`.

    Returns:
      [n, G] int32, the lowest index where distances tie; and [n, G] float32,
      ‖c‖² − 2⟨x, c⟩ of that center, its squared distance up to the constant ‖x‖².
    """
    norms = jnp.sum(jnp.square(centers), axis=-1)
    if nearest_gpu.takes(centers):
        rounded = products == 'bfloat16'
        operands = map(to_bfloat16, (vectors, centers)) if rounded else (vectors, centers)
        return nearest_gpu.nearest(*operands, norms, rounded=rounded)

    def one_group(group):
        group_vectors, group_centers, group_norms = group

        def block(rows):
            return _least(group_norms[:, None] - 2.0 * product(group_centers, rows.T, products))

        return jax.tree.map(jnp.ravel, jax.lax.map(block, _blocks(group_vectors, len(group_centers))))

    chosen, gaps = jax.lax.map(one_group, (jnp.swapaxes(vectors, 0, 1), centers, norms))
    return chosen.T[: len(vectors)], gaps.T[: len(vectors)]


def block_size(vectors: int, *, centers: int) -> int:
    """How many of so many vectors are compared with all centers of a group at once: few and even blocks."""
    return max(1, -(-vectors // max(1, -(-vectors * centers // _DISTANCES))))


def _blocks(rows: Array, centers: int) -> Array:
    """Rows [n, S] as blocks [blocks, size, S], filled up with zeros."""
    size = block_size(len(rows), centers=centers)
    count = -(-len(rows) // size)
    return jnp.pad(rows, ((0, count * size - len(rows)), (0, 0))).reshape(count, size, rows.shape[1])


def _least(gaps: Array) -> tuple[Array, Array]:
    """[n] the lowest index of the least of each column of [K, n], and [n] that least."""
    least, indices = jnp.min(gaps, axis=0), jnp.arange(len(gaps), dtype=jnp.int32)[:, None]
    return jnp.min(jnp.where(gaps == least, indices, len(gaps)), axis=0), least


def split(params: IndexParams, vectors: Array) -> Array:
    """Cuts vectors into the codebooks' subspaces: [n, D] to [n, M, S]."""
    books, _, width = params.codebooks.shape
    return vectors.reshape(*vectors.shape[:-1], books, width)


def _nearest_list(params: IndexParams, rotated: Array, products: Products = 'float32') -> Array:
    return nearest(rotated[:, None], params.centroids[None], products=products)[0][:, 0]


def assign(params: IndexParams, docs: Array, taken: Array | None = None) -> Array:
    """The list of each document: the nearest centroid by L2, q_d = argmin_i ‖v_d·R − o_i‖ (eq. 2).

    Args:
      params: the index.
      docs: [n, D] float, in the caller's space.
      taken: [n] int32, the documents' first lists, where it is their second that is wanted: the nearest
        centroid but that one.

    Returns:
      [n] int32 in [0, L); the lowest index where distances tie.
    """
    rotated = rotate(params, docs)
    if taken is None:
        return _nearest_list(params, rotated)
    norms = jnp.sum(jnp.square(params.centroids), axis=-1)
    gaps = norms[:, None] - 2.0 * product(params.centroids, rotated.T)
    return _least(jnp.where(jnp.arange(len(norms))[:, None] == taken, jnp.inf, gaps))[0]


def encode(params: IndexParams, docs: Array, lists: Array | None = None) -> Encoding:
    """Lists and codes of documents: b_d^i = argmin_j ‖u_d^i − c_j^i‖, u_d = v_d·R − o (eq. 3).

    Args:
      params: the index.
      docs: [n, D] float, in the caller's space.
      lists: [n] int32, the documents' lists where they are already decided; else they are assigned.

    Returns:
      The encoding of the n documents.
    """
    rotated = rotate(params, docs)
    lists = _nearest_list(params, rotated) if lists is None else lists
    residuals = split(params, rotated - params.centroids[lists])
    codes, _ = nearest(residuals, params.codebooks)
    return Encoding(lists=lists.astype(jnp.int32), codes=codes.astype(jnp.uint8))


def reconstruct(params: IndexParams, encoding: Encoding) -> Array:
    """v̂ + û of encoded documents, in the rotated space.

    Args:
      params: the index.
      encoding: n documents.

    Returns:
      [n, D] float32.
    """
    return params.centroids[encoding.lists] + _codewords(params, encoding.codes)


def _codewords(params: IndexParams, codes: Array) -> Array:
    return pick(params.codebooks, codes.astype(jnp.int32)).reshape(len(codes), -1)


def decode(params: IndexParams, encoding: Encoding) -> Array:
    """The approximate documents, (v̂ + û)·Rᵀ, in the caller's space.

    Args:
      params: the index.
      encoding: n documents.

    Returns:
      [n, D] float32.
    """
    return product(reconstruct(params, encoding), params.rotation.T)


def score(params: IndexParams, queries: Array, encoding: Encoding) -> Array:
    """Scores of every query against every encoded document, ⟨q·R, v̂ + û⟩ (eq. 5).

    Args:
      params: the index.
      queries: [q, D] float, in the caller's space, after the query tower.
      encoding: n documents.

    Returns:
      [q, n] float32.
    """
    rotated = rotate(params, queries)
    return product(rotated, reconstruct(params, encoding).T)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _relaxed(vectors: Array, centers: Array, temperature: float, products: Products) -> tuple[Array, Array]:
    """Nearest centers [n, G] and their values [n, G, S]: one-hot forward, softmax of distances backward.

    The values are Σ_k w_k·c_k with w = p + stop_gradient(one_hot − p), p = softmax(−gaps/temperature).
    Written out, forward is a gather, and backward goes group by group and there block by block of vectors, so
    that [n, G, K] is never held: with g the values' gradient and dw_k = ⟨g, c_k⟩,

        dgaps_k = −p_k·(dw_k − Σ_j p_j·dw_j)/temperature
        dx = −2·Σ_k dgaps_k·c_k,    dc_k = Σ_n one_hot_k·g + 2·dgaps_k·(c_k − x)
    """
    chosen, _ = nearest(vectors, centers, products=products)
    return chosen, pick(centers, chosen)


def _relaxed_forward(
    vectors: Array, centers: Array, temperature: float, products: Products
) -> tuple[tuple[Array, Array], tuple]:
    chosen, values = _relaxed(vectors, centers, temperature, products)
    return (chosen, values), (vectors, centers, chosen)


def _relaxed_backward(
    temperature: float, products: Products, kept: tuple, gradients: tuple
) -> tuple[Array, Array]:
    vectors, centers, chosen = kept
    dot = functools.partial(product, products=products)

    def one_group(group):
        *rows, c = group
        norms = jnp.sum(jnp.square(c), axis=-1)

        def block(dc, rows):
            x, g = rows
            p = jax.nn.softmax((2.0 * dot(x, c.T) - norms) / temperature, axis=-1)
            dw = dot(g, c.T)
            dgaps = p * (jnp.sum(p * dw, axis=-1, keepdims=True) - dw) / temperature
            dc += 2.0 * (c * jnp.sum(dgaps, axis=0)[:, None] - dot(dgaps.T, x))
            return dc, -2.0 * dot(dgaps, c)

        blocks = tuple(_blocks(part, len(c)) for part in rows)
        dc, dx = jax.lax.scan(block, jnp.zeros_like(c), blocks)
        return dx.reshape(-1, c.shape[-1])[: len(vectors)], dc

    gradient = gradients[1]
    dx, dc = jax.lax.map(one_group, (jnp.swapaxes(vectors, 0, 1), jnp.swapaxes(gradient, 0, 1), centers))
    return jnp.swapaxes(dx, 0, 1), dc + sums(chosen, gradient, words=centers.shape[1])


_relaxed.defvjp(_relaxed_forward, _relaxed_backward)


def straight_through(
    params: IndexParams,
    docs: Array,
    lists: Array | None = None,
    *,
    estimator: Literal['hard', 'softmax'] = 'hard',
    temperature: float = 1.0,
    products: Products = 'float32',
) -> Quantized:
    """Quantizes documents so that gradients reach centroids and codebooks through the discrete choice.

    Both estimators give the same forward values, those of `encode` and `reconstruct`. They differ backward:

    - 'hard': the choice is a constant; the gradient of û goes to the chosen codewords alone (the one-hot
      selection, done as a gather whose transpose is a scatter-add).
    - 'softmax': the choice is one_hot(argmin) forward and softmax(−distance/temperature) backward,
      w = p + stop_gradient(one_hot − p), so that near codewords, and the residual, receive gradient too.

    Args:
      params: the index.
      docs: [n, D] float, in the caller's space.
      lists: [n] int32, the frozen lists; None re-assigns each document to its nearest centroid.
      estimator: how gradients pass the choice.
      temperature: of 'softmax', in units of squared distance.
      products: see `product`.

    Returns:
      The quantized documents, in the rotated space; a query is compared after `rotate`.

    Raises:
      ValueError: an unknown estimator.
    """
    if estimator not in ('hard', 'softmax'):
        raise ValueError(f"estimator is {estimator!r}; use 'hard' or 'softmax'.")
    rotated = rotate(params, docs, products=products)
    if lists is not None:
        coarse = params.centroids[lists]
    elif estimator == 'hard':
        lists = _nearest_list(*jax.lax.stop_gradient((params, rotated)), products)
        coarse = params.centroids[lists]
    else:
        chosen, relaxed = _relaxed(rotated[:, None], params.centroids[None], temperature, products)
        lists, coarse = chosen[:, 0], relaxed[:, 0]
    residuals = split(params, rotated - coarse)
    if estimator == 'hard':
        codes, _ = nearest(*jax.lax.stop_gradient((residuals, params.codebooks)), products=products)
        fine = _codewords(params, codes)
    else:
        codes, relaxed = _relaxed(residuals, params.codebooks, temperature, products)
        fine = relaxed.reshape(rotated.shape)
    return Quantized(coarse=coarse, full=coarse + fine, lists=lists, codes=codes)
