"""A sample spread over the devices, and the sums over it that k-means and OPQ take.

All devices of all processes share every pass. Sums run over a fixed number of shards in a fixed order, so
that any number of devices that divides it gives the same bits. A host without accelerators has its own way,
`host_points`.
"""

import functools
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from dvq_jax import host
from dvq_jax.codewords import pick, sums
from dvq_jax.host_points import HostPoints
from dvq_jax.quantizer import nearest
from dvq_jax.types import Array

_SHARDS = 8
_BLOCK = 1024
_PRECISION = jax.lax.Precision.HIGHEST
_AXIS = 'data'


class Points(Protocol):
    """n points of D dimensions."""

    def lloyd_sums(self, centers: np.ndarray) -> tuple[Array, Array, Array]:
        """What an iteration of Lloyd's needs, in each of G subspaces.

        Args:
          centers: [G, K, D/G] float32.

        Returns:
          The sum of the points that are nearest to each center, [G, K, D/G] float32, how many they are,
          [G, K], and the sum of all squared distances, scalar.
        """

    def moment(self, codebooks: np.ndarray) -> Array:
        """Σ_i x_iᵀ·x̂_i, [D, D] float32, of points and their nearest codewords of [M, K, S] float32."""

    def rotated(self, rotation: np.ndarray) -> 'Points':
        """The points x·R, of a rotation [D, D] float32."""


class DevicePoints(NamedTuple):
    """Points on the devices.

    Attributes:
      values: [local devices, shards, blocks, block, D] float32.
      weights: [local devices, shards, blocks, block] float32; 0 marks padding.
    """

    values: Array
    weights: Array

    def lloyd_sums(self, centers: np.ndarray) -> tuple[Array, Array, Array]:
        """See `Points`."""
        return _lloyd_sums(self, centers)

    def moment(self, codebooks: np.ndarray) -> Array:
        """See `Points`."""
        return _moment(self, codebooks)

    def rotated(self, rotation: np.ndarray) -> 'DevicePoints':
        """See `Points`."""
        return _rotated(self, rotation)


def place(sample: np.ndarray) -> Points:
    """Puts a sample where passes over it are made.

    Args:
      sample: [n, D] float32, the same on every process.

    Returns:
      The points.
    """
    return HostPoints(sample) if host.is_all_there_is() else spread(sample)


@functools.partial(jax.pmap, axis_name=_AXIS)
def _put(values: np.ndarray) -> Array:
    return values


def spread(sample: np.ndarray) -> DevicePoints:
    """Spreads a sample over all devices; every process holds it all and takes its part.

    Args:
      sample: [n, D] float32, the same on every process.

    Returns:
      The points, zero-padded to whole blocks.
    """
    devices = jax.device_count()
    shards = devices * max(1, _SHARDS // devices)
    blocks = -(-len(sample) // (shards * _BLOCK))
    padding = shards * blocks * _BLOCK - len(sample)
    shape = (devices, shards // devices, blocks, _BLOCK)
    values = np.pad(sample, ((0, padding), (0, 0))).reshape(*shape, sample.shape[1])
    weights = np.pad(np.ones(len(sample), np.float32), (0, padding)).reshape(shape)
    first = jax.process_index() * jax.local_device_count()
    mine = slice(first, first + jax.local_device_count())
    return DevicePoints(_put(values[mine]), _put(weights[mine]))


def _sum_over_shards(per_block, points: DevicePoints, *args) -> tuple:
    """Σ over all blocks of `per_block(values, weights, *args)`, in the order of the shards."""

    def shard_sum(shard):
        def add(total, block):
            return jax.tree.map(jnp.add, total, per_block(*block, *args)), None

        first, rest = jax.tree.map(lambda x: x[0], shard), jax.tree.map(lambda x: x[1:], shard)
        return jax.lax.scan(add, per_block(*first, *args), rest)[0]

    partial = jax.lax.map(shard_sum, (points.values, points.weights))
    shards = jax.tree.map(lambda x: jax.lax.all_gather(x, _AXIS, axis=0, tiled=True), partial)
    return jax.tree.map(lambda x: functools.reduce(jnp.add, list(x)), shards)


def _lloyd_block(values: Array, weights: Array, centers: Array) -> tuple[Array, Array, Array]:
    groups, count, width = centers.shape
    grouped = values.reshape(-1, groups, width)
    chosen, gaps = nearest(grouped, centers)
    squared = gaps + jnp.sum(jnp.square(grouped), axis=-1)
    weighted = weights[:, None, None] * jnp.concatenate([grouped, jnp.ones((*squared.shape, 1))], axis=-1)
    totals = sums(chosen, weighted, words=count)
    return totals[..., :-1], totals[..., -1], jnp.sum(squared * weights[:, None])


@functools.partial(jax.pmap, axis_name=_AXIS, in_axes=(0, None), out_axes=None)
def _lloyd_sums(points: DevicePoints, centers: Array) -> tuple[Array, Array, Array]:
    return _sum_over_shards(_lloyd_block, points, centers)


def _moment_block(values: Array, _weights: Array, codebooks: Array) -> Array:
    books, _, width = codebooks.shape
    chosen, _ = nearest(values.reshape(-1, books, width), codebooks)
    approximate = pick(codebooks, chosen).reshape(values.shape)
    return jnp.matmul(values.T, approximate, precision=_PRECISION)


@functools.partial(jax.pmap, axis_name=_AXIS, in_axes=(0, None), out_axes=None)
def _moment(points: DevicePoints, codebooks: Array) -> Array:
    """Σ_i x_iᵀ·x̂_i."""
    return _sum_over_shards(_moment_block, points, codebooks)


@functools.partial(jax.pmap, axis_name=_AXIS, in_axes=(0, None))
def _rotated(points: DevicePoints, rotation: Array) -> DevicePoints:
    return points._replace(values=jnp.matmul(points.values, rotation, precision=_PRECISION))
