"""The nearest codewords on a host, where writing distances and finding the least cost more than products.

XLA compiles a loop in which distances stay in registers. Documents lie along the lanes of vector units, a
block of them [D, 256]; a group of 8 codewords is taken at a time, and the least of its distances kept. XLA's
loops on a CPU have one result, so that the place of the least in its group goes into the last three bits of
the distance: of two codewords whose distances differ by less than 2⁻²⁰ of themselves either may be taken,
which is about what float32's sums leave open anyway. Codewords of many dimensions are BLAS's, a codebook
after the other.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dvq_jax.blocks import cut
from dvq_jax.host_centers import ROWS, Centers
from dvq_jax.types import Array

_LANES = 256  # documents that are compared at once: they should stay in a core's cache
_GROUP = 8  # codewords, a power of two
_FAR = 2.0**120  # a squared norm that nobody is near to
_WIDE = 64  # dimensions of a codeword from which on it is BLAS's
_LIFT = 2.0**-16  # of ‖x‖², which keeps distances above 0 whatever is rounded, so that bits sort as floats do


def _by_group(parts: np.ndarray) -> np.ndarray:
    """[M, K, ...] to [K/8, M, 8, ...]."""
    return parts.reshape(len(parts), -1, _GROUP, *parts.shape[2:]).swapaxes(0, 1)


class Codebooks:
    """Codebooks that residuals are compared with.

    Args:
      codebooks: [M, K, S] float32.
      residuals: how many are going to be.
    """

    def __init__(self, codebooks: np.ndarray, residuals: int):
        self._size, words, width = codebooks.shape
        self._kind = np.uint8 if words <= 256 else np.int32
        self._wide = self._grouped = None
        if width >= _WIDE:
            self._wide = [Centers(book, residuals) for book in codebooks]
            return
        padding = (0, 0), (0, -words % _GROUP)
        norms = np.pad(np.sum(np.square(codebooks), axis=-1), padding, constant_values=_FAR)
        self._grouped = jax.device_put(
            [_by_group(x) for x in (-2 * np.pad(codebooks, (*padding, (0, 0))), norms)]
        )

    def nearest(self, residuals: np.ndarray) -> np.ndarray:
        """As `quantizer.nearest`.

        Args:
          residuals: [n, D] float32.

        Returns:
          [n, M] uint8, of more than 256 codewords int32.
        """
        if self._wide is not None:
            parts = np.split(residuals, self._size, axis=1)
            found = [book.nearest(part) for book, part in zip(self._wide, parts, strict=True)]
            return np.stack(found, axis=1).astype(self._kind)
        found = np.empty((len(residuals), self._size), self._kind)
        for part in cut(len(residuals), ROWS):
            blocks = np.zeros((ROWS // _LANES, residuals.shape[1], _LANES), np.float32)
            for block, some in zip(blocks, cut(part.stop - part.start, _LANES), strict=False):
                block[:, : some.stop - some.start] = residuals[part][some].T
            codes = np.asarray(_nearest(*self._grouped, blocks))
            found[part] = codes.swapaxes(1, 2).reshape(ROWS, -1)[: part.stop - part.start]
        return found


@functools.partial(jax.jit, compiler_options={'xla_cpu_prefer_vector_width': 512})
def _nearest(codewords: Array, norms: Array, blocks: Array) -> Array:
    """[B, M, n] int32 of residuals [B, D, n]; codewords times −2 [K/8, M, 8, S], and their squared norms."""
    _, books, _, width = codewords.shape
    place = _GROUP - 1  # the bits of the place in a group

    def one_group(residuals: Array, squares: Array, group: tuple[Array, Array]) -> Array:
        codewords, norms = group
        least = None
        for number in range(_GROUP):
            gaps = squares + norms[:, number, None]
            for axis in range(width):
                gaps += residuals[:, axis] * codewords[:, number, axis, None]
            bits = jax.lax.bitcast_convert_type(gaps, jnp.int32)
            gaps = jax.lax.bitcast_convert_type(bits & ~place | number, jnp.float32)
            # `jnp.minimum` would look for NaN.
            least = gaps if least is None else jnp.where(gaps < least, gaps, least)
        return least

    def one_block(block: Array) -> Array:
        residuals = block.reshape(books, width, -1)
        squares = jnp.sum(jnp.square(residuals), axis=1) * (1 + _LIFT)
        groups = jax.lax.map(functools.partial(one_group, residuals, squares), (codewords, norms))
        bits = jax.lax.bitcast_convert_type(groups, jnp.int32)
        least, chosen = bits[0], jnp.zeros(bits.shape[1:], jnp.int32)
        for number in range(1, len(bits)):
            less = (bits[number] | place) < least  # and not in another place of as near a group
            least, chosen = jnp.where(less, bits[number], least), jnp.where(less, number, chosen)
        return _GROUP * chosen + (least & place)

    return jax.lax.map(one_block, blocks)
