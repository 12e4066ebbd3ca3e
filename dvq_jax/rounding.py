"""How far a product of vectors that were rounded to bfloat16 is off at most, by Cauchy-Schwarz:

  |⟨q̃, d̃⟩ − ⟨q, d⟩| ≤ e = ‖q − q̃‖·‖d‖ + ‖q̃‖·‖d − d̃‖,

and what sums of float32 lose. Documents are taken relative to their mean: that changes no order, and makes e
small where all of them point about the same way. It grows with the largest norm.
"""

import jax.numpy as jnp

from dvq_jax.quantizer import to_bfloat16
from dvq_jax.types import Array

SUM = 2.0**-22  # what float32 sums may lose a dimension, of the product of the norms
WRITTEN = 2.0**-8  # by how much a number is off at most that is written in bfloat16, relative to itself


def rounded(docs: Array, middle: Array) -> tuple[Array, Array]:
    """Documents relative to the middle, rounded.

    Args:
      docs: [n, D] float.
      middle: [D] float32.

    Returns:
      [n, D] bfloat16; and [2] float32, their largest norm before, and the most by which one is moved.
    """
    docs = docs.astype(jnp.float32) - middle
    near = to_bfloat16(docs)
    reach = jnp.stack([jnp.linalg.norm(x, axis=1).max() for x in (docs, docs - near)])
    return near.astype(jnp.bfloat16), reach


def error(queries: Array, coarse: Array, reach: Array, middle: Array) -> Array:
    """How far products of rounded queries and documents are off at most from ⟨q, d − middle⟩.

    Args:
      queries: [..., D] float32, arrays of NumPy's or JAX's.
      coarse: [..., D] bfloat16, rounded.
      reach: [2] float32, the largest of all documents' by `rounded`.
      middle: [D] float32.

    Returns:
      [...] float32.
    """
    moved = _norm(queries - coarse.astype(jnp.float32))
    sizes, (far, docs_moved) = _norm(queries), reach
    lost = SUM * queries.shape[-1] * sizes * (far + _norm(middle))
    return moved * far + (sizes + moved) * docs_moved + lost


def _norm(vectors: Array) -> Array:
    return (vectors * vectors).sum(axis=-1) ** 0.5
