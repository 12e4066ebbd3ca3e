"""How far a product of vectors that were rounded to bfloat16 is off at most, by Cauchy-Schwarz:

  |⟨q̃, d̃⟩ − ⟨q, d⟩| ≤ e = ‖q − q̃‖·‖d‖ + ‖q̃‖·‖d − d̃‖,

and what sums of float32 lose. Documents are taken relative to their mean: that changes no order, and makes e
small where all of them point about the same way. It grows with the largest norm. Where norms are so small
that squares of what is rounded off may be 0, nothing is known.
"""

import jax.numpy as jnp
import numpy as np

from dvq_jax.quantizer import to_bfloat16
from dvq_jax.types import Array

SUM = 2.0**-22  # what float32 sums may lose a dimension, of the product of the norms
# By how much a sum of float32 is off at most that is written in bfloat16, relative to itself. It is rounded
# once: a library that wrote parts of a sum so, and added those up, would break this.
WRITTEN = 2.0**-8
_LEAST = 1e-15  # a norm, of which more is known


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
      [...] float32; infinity where that is not known.
    """
    moved = _norm(queries - coarse.astype(jnp.float32))
    sizes, (far, docs_moved) = _norm(queries), reach
    lost = SUM * queries.shape[-1] * sizes * (far + _norm(middle))
    known = (sizes > _LEAST) & (far > _LEAST)
    with np.errstate(invalid='ignore'):  # 0 times infinity, which leaves everything open
        error = moved * far + (sizes + moved) * docs_moved + lost
    return queries.__array_namespace__().where(known, error, np.inf)


def _norm(vectors: Array) -> Array:
    return (vectors * vectors).sum(axis=-1) ** 0.5
