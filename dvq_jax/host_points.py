"""A sample on a host without accelerators, and the sums over it that k-means and OPQ take.

Looking for the nearest center is nearly all of the work. Cores share it, and processes exchange what they
found; all else every process does for itself, in the same order, and any number of them has the same bits.
"""

import jax
import numpy as np
from jax.experimental import multihost_utils

from dvq_jax import host
from dvq_jax.blocks import cut
from dvq_jax.codewords import sums_on_host
from dvq_jax.host_centers import ROWS, Centers
from dvq_jax.host_codes import Codebooks

_SUMMED = 2**15  # points whose sums are in float32; those of all are not
_PASSES = 10  # that k-means makes, more or less: what pays for all of them pays


class HostPoints:
    """Points on a host, see `points.Points`.

    Args:
      values: [n, D] float32.
    """

    def __init__(self, values: np.ndarray):
        self._values = values

    def lloyd_sums(self, centers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.float64]:
        """See `points.Points`."""
        groups, count, width = centers.shape
        chosen = self._nearest(centers) + count * np.arange(groups, dtype=np.int32)
        totals = np.zeros((groups * count, width))
        for part in cut(len(chosen), _SUMMED):
            parts = self._values[part].reshape(-1, width)
            totals += sums_on_host(chosen[part].ravel(), parts, words=len(totals))
        totals = totals.reshape(centers.shape)
        counts = np.bincount(chosen.ravel(), minlength=groups * count).reshape(groups, count)
        squared = self._squared(centers, totals, counts)
        return totals.astype(np.float32), counts.astype(np.float32), squared

    def _squared(self, centers: np.ndarray, totals: np.ndarray, counts: np.ndarray) -> np.float64:
        """Σ‖x − c‖² = Σ‖x‖² − 2·Σ⟨c, Σ x⟩ + Σ n·‖c‖²."""
        sizes = np.sum(np.vecdot(self._values, self._values), dtype=np.float64)
        products = np.einsum('gks,gks', centers, totals, dtype=np.float64)
        return sizes - 2 * products + np.einsum('gk,gks,gks', counts, centers, centers, dtype=np.float64)

    def moment(self, codebooks: np.ndarray) -> np.ndarray:
        """See `points.Points`."""
        chosen, books = self._nearest(codebooks), np.arange(len(codebooks))

        def product(part: slice) -> np.ndarray:
            values = self._values[part]
            return values.T @ codebooks[books, chosen[part]].reshape(values.shape)

        return sum(host.on_threads(product, self._tiles()))

    def rotated(self, rotation: np.ndarray) -> 'HostPoints':
        """See `points.Points`."""
        values = np.empty_like(self._values)

        def rotate(part: slice) -> None:
            np.matmul(self._values[part], rotation, out=values[part])

        host.each(rotate, self._tiles())
        return HostPoints(values)

    def _tiles(self) -> list[slice]:
        return cut(len(self._values), ROWS)

    def _nearest(self, centers: np.ndarray) -> np.ndarray:
        """[n, G] int32, the nearest center in each of G subspaces; each process looks for some."""
        count, groups = len(self._values), len(centers)
        passes, each = _PASSES * count, -(-count // (ROWS * jax.process_count())) * ROWS
        one = Centers(centers[0], passes) if groups == 1 else None
        many = None if one else Codebooks(centers, passes)
        values = self._values[jax.process_index() * each :][:each]

        def find(part: slice) -> np.ndarray:
            return one.nearest(values[part])[:, None] if one else many.nearest(values[part])

        chosen, tiles = np.zeros((each, groups), np.int32), cut(len(values), ROWS)
        for part, found in zip(tiles, host.on_threads(find, tiles, spare=2), strict=True):
            chosen[part] = found
        if jax.process_count() > 1:
            chosen = np.asarray(multihost_utils.process_allgather(chosen)).reshape(-1, groups)
        return chosen[:count]
