"""The nearest of many centers on a host: by BLAS, or by rounded products and a bound on what they are off by.

Cores with bfloat16 matrix units (`host.has_matrix_units`) multiply rounded vectors several times as fast. By
Cauchy-Schwarz a squared distance ‖x‖² + ‖c‖² − 2⟨x̃, c̃⟩ of rounded x̃ and c̃ is off by at most

  e = 2·(‖x − x̃‖·max‖c‖ + ‖x̃‖·max‖c − c̃‖),

so that the nearest by rounded products is the nearest where no other one is within 2·e of it. Vectors of
which that is not so, usually a few in a hundred, are looked up in float32. All are taken relative to the mean
of the centers, which changes no distance, and makes e small. Norms below 1e-15 are not for a screen: squares
of what is rounded off would be 0.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dvq_jax import host
from dvq_jax.blocks import cut
from dvq_jax.quantizer import to_bfloat16
from dvq_jax.rounding import SUM
from dvq_jax.types import Array

_FEWEST = 2**34  # multiplications from which on a screen pays, for it compiles
ROWS = 2048  # vectors that a call of XLA takes,
_BLOCK = 128  # and that it compares at once: their distances should stay in a core's cache
_DISTANCES = 2**20  # that BLAS computes at once, for the same reason


def _with_one(vectors: np.ndarray) -> np.ndarray:
    """(x, 1) of vectors [n, S], [n, S + 1]."""
    extended = np.ones((len(vectors), vectors.shape[1] + 1), np.float32)
    extended[:, :-1] = vectors
    return extended


class Centers:
    """Centers that vectors are compared with.

    Args:
      centers: [K, S] float32.
      vectors: how many are going to be.
    """

    def __init__(self, centers: np.ndarray, vectors: int):
        norms = np.sum(np.square(centers), axis=1)
        self._table = np.concatenate([-2 * centers.T, norms[None]], dtype=np.float32)  # (x, 1) times it
        self._screen = None
        if host.has_matrix_units() and vectors * centers.size >= _FEWEST:
            self._screen = _screen_of(centers)

    def nearest(self, vectors: np.ndarray, taken: np.ndarray | None = None) -> np.ndarray:
        """As `quantizer.nearest` and `quantizer.assign`.

        Args:
          vectors: [n, S] float32.
          taken: [n] int32, centers that are not to be found again; None excludes none.

        Returns:
          [n] int32.
        """
        if self._screen is None:
            return self._by_blas(vectors, taken)
        found = np.empty(len(vectors), np.int32)
        for part in cut(len(vectors), ROWS):
            padding = ROWS - (part.stop - part.start)
            rows = np.pad(vectors[part], ((0, padding), (0, 0))) if padding else vectors[part]
            own = None if taken is None else np.pad(taken[part], (0, padding))
            nearest, unsure = _by_rounded(*self._screen, rows, own)
            found[part] = np.asarray(nearest)[: len(found[part])]
            again = part.start + np.flatnonzero(np.asarray(unsure)[: len(found[part])])
            found[again] = self._by_blas(vectors[again], None if taken is None else taken[again])
        return found

    def _by_blas(self, vectors: np.ndarray, taken: np.ndarray | None) -> np.ndarray:
        found = np.empty(len(vectors), np.int32)
        for part in cut(len(vectors), max(_BLOCK, _DISTANCES // self._table.shape[1])):
            gaps = _with_one(vectors[part]) @ self._table
            if taken is not None:
                gaps[np.arange(len(gaps)), taken[part]] = np.inf
            found[part] = np.argmin(gaps, axis=1)
        return found


def _screen_of(centers: np.ndarray) -> tuple[Array, ...]:
    """What `_by_rounded` takes of centers [K, S]."""
    middle = np.mean(centers, axis=0)
    moved = centers - middle
    rounded = moved.astype(jnp.bfloat16)
    far, off = (np.linalg.norm(x, axis=1).max() for x in (moved, moved - rounded.astype(np.float32)))
    summed = SUM * centers.shape[1] * far
    bound = np.array([2 * far, 2 * off + summed, summed * far], np.float32)
    return jax.device_put((middle, rounded, np.sum(np.square(moved), axis=1), bound))


@functools.partial(
    jax.jit, compiler_options={'xla_cpu_multi_thread_eigen': False, 'xla_cpu_prefer_vector_width': 512}
)
def _by_rounded(
    middle: Array, centers: Array, norms: Array, bound: Array, vectors: Array, taken: Array | None
) -> tuple[Array, Array]:
    """[n] int32, the nearest by rounded products, and [n] bool, whether another one may be nearer."""
    numbers = jnp.arange(len(norms), dtype=jnp.float32)[:, None]  # XLA's least integer is a scalar loop

    def block(part: tuple[Array, Array | None]) -> tuple[Array, Array]:
        vectors, taken = part
        moved = vectors - middle
        rounded = to_bfloat16(moved)
        off, size = (jnp.linalg.norm(x, axis=1) for x in (moved - rounded, rounded))
        error = off * bound[0] + size * bound[1] + bound[2]
        contracted = (((1,), (1,)), ((), ()))
        products = jax.lax.dot_general(
            centers, rounded.astype(jnp.bfloat16), contracted, preferred_element_type=jnp.float32
        )
        gaps = norms[:, None] - 2 * products
        if taken is not None:
            gaps = jnp.where(numbers == taken, jnp.inf, gaps)
        least = jnp.min(gaps, axis=0)
        nearest = jnp.min(jnp.where(gaps == least, numbers, len(norms)), axis=0)
        close = jnp.sum((gaps <= least + 2 * error).astype(jnp.float32), axis=0)
        return nearest.astype(jnp.int32), close != 1  # nothing is close to NaN

    blocks = jax.tree.map(lambda x: x.reshape(-1, _BLOCK, *x.shape[1:]), (vectors, taken))
    return jax.tree.map(jnp.ravel, jax.lax.map(block, blocks))
