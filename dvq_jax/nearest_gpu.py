"""The nearest center of few dimensions on a GPU: one kernel, and distances never leave its registers.

XLA makes a product for each codebook, writes its [K, n] distances to memory, and reads them twice again, in
launches that take about as long as the work. Float32 goes through the matrix units here, as a sum of three
bfloat16 numbers: of the nine products of two such sums the six largest are off by less than float32's own
rounding. A tie goes to the lowest index, and the same input gives the same bits.
"""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np

from dvq_jax.types import Array

_ROWS, _WARPS = 64, 4  # vectors that a program compares with all centers of a group, and its warps
_LEAST = 16  # rows and columns of a matrix unit's operands
_WIDEST, _MOST = 64, 256  # S and K up to which distances of so many vectors fit into registers
# Which parts are multiplied, the smallest products first.
_PRODUCTS = ((1, 1), (0, 2), (2, 0), (0, 1), (1, 0), (0, 0))


def takes(centers: Array) -> bool:
    """Whether there is a GPU that runs the kernel, for such centers [G, K, S]."""
    _, count, width = centers.shape
    return fits(count, width) and _runs(count, width)


def fits(count: int, width: int) -> bool:
    """Whether it could take K centers of S dimensions."""
    return width <= _WIDEST and count <= _MOST


def padded(size: int) -> int:
    """How many numbers S, or centers K, become in the kernel: a power of two."""
    return max(_LEAST, 1 << (size - 1).bit_length())


@functools.cache
def _runs(count: int, width: int) -> bool:
    """Whether it compiles for one vector.

    Pallas may not know a GPU, or want more shared memory of it; and JAX means to part with Triton.
    """
    if jax.default_backend() != 'gpu':
        return False
    few = (np.zeros(shape, np.float32) for shape in ((1, 1, width), (1, count, width), (1, count)))
    try:
        jax.jit(nearest).lower(*few).compile()
    except Exception as error:  # whatever it is, XLA finds codewords too
        print(f'codewords are found without a kernel: {error}', file=sys.stderr, flush=True)
        return False
    return True


def nearest(
    vectors: Array, centers: Array, norms: Array, *, rounded: bool = False, interpret: bool = False
) -> tuple[Array, Array]:
    """As `quantizer.nearest`.

    Args:
      vectors: [n, G, S] float32.
      centers: [G, K, S] float32, see `takes`.
      norms: [G, K] float32, ‖c‖² of them.
      rounded: both have bfloat16's values already, so that one product does.
      interpret: run on any platform, slowly.

    Returns:
      As there: [n, G] int32 and [n, G] float32.
    """
    # A fifth of a second to import, for which only who has a GPU should wait.
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    (rows, groups, width), count = vectors.shape, centers.shape[1]
    # An array in a kernel has a power of two of elements; what fills it up is never the nearest.
    wide, words = padded(width), padded(count)
    blocks = max(1, pl.cdiv(rows, _ROWS))
    norms = jnp.pad(norms, ((0, 0), (0, words - count)), constant_values=jnp.inf)
    centers = jnp.pad(centers, ((0, 0), (0, words - count), (0, wide - width)))
    columns = jnp.moveaxis(vectors, 0, 2)
    columns = jnp.pad(columns, ((0, 0), (0, wide - width), (0, blocks * _ROWS - rows)))
    found = pl.pallas_call(
        functools.partial(_kernel, pairs=_PRODUCTS[-1:] if rounded else _PRODUCTS),
        grid=(blocks, groups),
        in_specs=[
            pl.BlockSpec((1, wide, _ROWS), lambda block, group: (group, 0, block)),
            pl.BlockSpec((1, words, wide), lambda block, group: (group, 0, 0)),
            pl.BlockSpec((1, words), lambda block, group: (group, 0)),
        ],
        out_specs=[pl.BlockSpec((1, _ROWS), lambda block, group: (group, block))] * 2,
        out_shape=[jax.ShapeDtypeStruct((groups, blocks * _ROWS), kind) for kind in (jnp.int32, jnp.float32)],
        compiler_params=triton.CompilerParams(num_warps=_WARPS),
        interpret=interpret,
        name='nearest',
    )(columns, centers, norms)
    return tuple(part.T[:rows] for part in found)


def _kernel(columns, centers, norms, chosen, least, *, pairs: tuple[tuple[int, int], ...]) -> None:
    """References to [1, S, rows], [1, K, S], [1, K]; [1, rows] and [1, rows], which are written."""
    left, right = _parts(centers[0]), _parts(columns[0])
    products = jnp.zeros((centers.shape[1], columns.shape[2]), jnp.float32)
    for a, b in pairs:
        products += jnp.dot(left[a], right[b], preferred_element_type=jnp.float32)
    gaps = norms[0][:, None] - 2.0 * products
    smallest = jnp.min(gaps, axis=0)
    places = jax.lax.broadcasted_iota(jnp.int32, gaps.shape, 0)
    chosen[0, :] = jnp.min(jnp.where(gaps == smallest[None, :], places, len(gaps)), axis=0)
    least[0, :] = smallest


def _parts(x: Array) -> list[Array]:
    """Three bfloat16 numbers for each of float32, whose sum it is."""
    parts = []
    for _ in range(3):
        parts.append(x.astype(jnp.bfloat16))
        x = x - parts[-1].astype(jnp.float32)
    return parts
