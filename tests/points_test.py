"""Sums over a sample, by devices and on a host, against brute force."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from dvq_jax import host_points, points
from dvq_jax.host_centers import ROWS

DIM = 24


@pytest.fixture(params=[points.spread, host_points.HostPoints])
def place(request):
    return request.param


def some(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def nearest(values, centers):
    grouped = values.reshape(len(values), len(centers), 1, -1).astype(np.float64)
    gaps = np.square(grouped - centers).sum(axis=-1)
    return gaps.argmin(axis=-1), gaps.min(axis=-1)


@pytest.mark.parametrize('count', [1, 700, 2 * ROWS + 3])
@pytest.mark.parametrize(('groups', 'centers'), [(1, 40), (6, 16), (3, 300)])
def test_lloyd_sums_are_those_of_the_points_nearest_to_each_center(place, groups, centers, count):
    values, around = some(0, count, DIM), some(1, groups, centers, DIM // groups)
    totals, counts, squared = map(np.asarray, place(values).lloyd_sums(around))
    chosen, gaps = nearest(values, around)
    for group in range(groups):
        part = values.reshape(count, groups, -1)[:, group].astype(np.float64)
        expected = np.zeros((centers, DIM // groups))
        np.add.at(expected, chosen[:, group], part)
        np.testing.assert_allclose(totals[group], expected, atol=2e-7 * count + 1e-5)
        np.testing.assert_array_equal(counts[group], np.bincount(chosen[:, group], minlength=centers))
    np.testing.assert_allclose(squared, gaps.sum(), rtol=1e-5)


@pytest.mark.parametrize('count', [1, 2 * ROWS + 3])
def test_moment_is_of_points_and_their_codewords(place, count):
    values, books = some(0, count, DIM), some(1, 6, 16, DIM // 6)
    chosen, _ = nearest(values, books)
    approximate = books[np.arange(6), chosen].reshape(count, DIM)
    expected = values.astype(np.float64).T @ approximate
    np.testing.assert_allclose(place(values).moment(books), expected, atol=1e-5 * count)


def test_rotated_points_are_summed_as_points(place):
    values, around = some(0, 700, DIM), some(1, 1, 40, DIM)
    rotation = np.linalg.qr(some(2, DIM, DIM))[0]
    found = place(values).rotated(rotation).lloyd_sums(around)
    for one, other in zip(found, place(values @ rotation).lloyd_sums(around), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize('count', [2, 3 * ROWS + 5])
@pytest.mark.parametrize('groups', [1, 6])
def test_processes_share_the_search_for_the_nearest(count, groups, monkeypatch):
    values, around = some(0, count, DIM), some(1, groups, 40, DIM // groups)
    alone = host_points.HostPoints(values).lloyd_sums(around)
    told = []
    monkeypatch.setattr(jax, 'process_count', lambda: 3)
    monkeypatch.setattr(
        multihost_utils, 'process_allgather', lambda own: told.append(own) or np.stack([own] * 3)
    )
    for index in range(3):
        monkeypatch.setattr(jax, 'process_index', lambda index=index: index)
        host_points.HostPoints(values).lloyd_sums(around)
    monkeypatch.setattr(multihost_utils, 'process_allgather', lambda own: np.stack(told))
    for one, other in zip(alone, host_points.HostPoints(values).lloyd_sums(around), strict=True):
        np.testing.assert_array_equal(one, other)


_DIGEST = """
import hashlib, numpy as np
from dvq_jax import points
rng = np.random.default_rng(0)
values, centers = (rng.normal(size=shape).astype(np.float32) for shape in ((9000, 24), (6, 16, 4)))
found = (*points.spread(values).lloyd_sums(centers), points.spread(values).moment(centers))
print(hashlib.sha256(b''.join(np.asarray(x).tobytes() for x in found)).hexdigest())
"""


def test_any_number_of_devices_sums_to_the_same_bits():
    digests = set()
    for devices in (1, 4):
        flags = f'--xla_force_host_platform_device_count={devices}'
        env = {**os.environ, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'}
        command = [sys.executable, '-c', _DIGEST]
        digests.add(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)
    assert len(digests) == 1
