"""The nearest center of few dimensions on a GPU: one kernel, and distances never leave its registers.

XLA makes a product for each codebook, writes its [K, n] distances to memory and reads them twice again, in
launches that take about as long. Codewords are too narrow, S = D/M numbers, for matrix units to help: here a
thread multiplies and adds S times for each distance, which float32 does exactly as `quantizer.nearest` asks.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from dvq_jax.types import Array

_ROWS = 64  # vectors that a program compares with all centers of a group
_WARPS = 4
_WIDEST, _MOST = 64, 256  # S and K up to which distances of so many vectors fit into registers


def takes(centers: Array) -> bool:
    """Whether there is a GPU that runs the kernel, for such centers [G, K, S]."""
    _, count, width = centers.shape
    return width <= _WIDEST and count <= _MOST and _runs()


@functools.cache
def _runs() -> bool:
    if jax.default_backend() != 'gpu':
        return False
    few = np.zeros((_ROWS, 1, 1), np.float32), np.zeros((1, 1, 1), np.float32), np.zeros((1, 1), np.float32)
    try:
        with jax.ensure_compile_time_eval():
            jax.block_until_ready(jax.jit(nearest)(*few))
    except (RuntimeError, NotImplementedError, ValueError):  # Pallas does not know this one
        return False
    return True


def nearest(
    vectors: Array, centers: Array, norms: Array, *, interpret: bool = False
) -> tuple[Array, Array]:
    """As `quantizer.nearest` by products of float32.

    Args:
      vectors: [n, G, S] float32.
      centers: [G, K, S] float32, see `takes`.
      norms: [G, K] float32, ‖c‖² of them.
      interpret: run on any platform, slowly.

    Returns:
      As there: [n, G] int32 and [n, G] float32.
    """
    (rows, groups, width), count = vectors.shape, centers.shape[1]
    words, blocks = max(16, pl.next_power_of_2(count)), pl.cdiv(rows, _ROWS)
    # An array in a kernel has a power of two of elements; what fills it up is never the nearest.
    norms = jnp.pad(norms, ((0, 0), (0, words - count)), constant_values=jnp.inf)
    by_coordinate = jnp.pad(jnp.moveaxis(centers, 2, 1), ((0, 0), (0, 0), (0, words - count)))
    columns = jnp.moveaxis(vectors, 0, 2)
    columns = jnp.pad(columns, ((0, 0), (0, 0), (0, blocks * _ROWS - rows)))
    found = pl.pallas_call(
        functools.partial(_kernel, width=width, words=words),
        grid=(blocks, groups),
        in_specs=[
            pl.BlockSpec((1, width, _ROWS), lambda block, group: (group, 0, block)),
            pl.BlockSpec((1, width, words), lambda block, group: (group, 0, 0)),
            pl.BlockSpec((1, words), lambda block, group: (group, 0)),
        ],
        out_specs=[pl.BlockSpec((1, _ROWS), lambda block, group: (group, block))] * 2,
        out_shape=[jax.ShapeDtypeStruct((groups, blocks * _ROWS), kind) for kind in (jnp.int32, jnp.float32)],
        compiler_params=triton.CompilerParams(num_warps=_WARPS),
        interpret=interpret,
        name='nearest',
    )(columns, by_coordinate, norms)
    return tuple(part.T[:rows] for part in found)


def _kernel(columns, centers, norms, chosen, least, *, width: int, words: int) -> None:
    """References to [1, S, rows], [1, S, K], [1, K]; [1, rows] and [1, rows], which are written."""
    products = jnp.zeros((_ROWS, words), jnp.float32)
    for coordinate in range(width):
        products += columns[0, coordinate, :][:, None] * centers[0, coordinate, :][None, :]
    gaps = norms[0, :][None, :] - 2.0 * products
    smallest = jnp.min(gaps, axis=1)
    places = jax.lax.broadcasted_iota(jnp.int32, gaps.shape, 1)
    chosen[0, :] = jnp.min(jnp.where(gaps == smallest[:, None], places, words), axis=1)
    least[0, :] = smallest
