"""`query_transform.npz`: what is done to a query before the search, ṽ = tower(v)·R.

The engines have no slot for a learned tower, and ScaNN has none for a rotation, so both travel beside the
index: arrays only ('rotation', and the tower's parameters by path, 'tower/Dense_0/kernel'), never a pickle.
The tower's name and hyperparameters are in the manifest.
"""

import functools
import os
import zipfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from dvq_jax import towers
from dvq_jax.errors import InputError
from dvq_jax.towers import Tower

NAME = 'query_transform.npz'
_BLOCK = 1024


def write(path: str | os.PathLike, *, rotation: np.ndarray, tower: Tower) -> None:
    """Writes a query transform.

    Args:
      path: the file to create.
      rotation: [D, D] float32.
      tower: the query tower.
    """
    flat = traverse_util.flatten_dict({'tower': tower.params}, sep='/')
    arrays = {name: np.asarray(value) for name, value in sorted(flat.items())}
    np.savez(path, rotation=np.asarray(rotation, np.float32), **arrays)


def read(path: str | os.PathLike, *, name: str, args: dict[str, Any], dim: int) -> tuple[np.ndarray, Tower]:
    """Reads what `write` wrote.

    Args:
      path: the file.
      name: the tower's name.
      args: the tower's hyperparameters.
      dim: D.

    Returns:
      The rotation, [D, D] float32, and the tower.

    Raises:
      InputError: the file does not hold a transform of D dimensions.
    """
    if not zipfile.is_zipfile(path):
        raise InputError(f'{path}: not an .npz archive; export the index again.')
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = dict(stored)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f'{path}: not an archive of arrays ({error}); export the index again.') from error
    rotation = arrays.pop('rotation', np.empty(0))
    if _kind(rotation) != ((dim, dim), np.float32):
        raise InputError(f'{path}: does not hold a {dim} by {dim} rotation; export the index again.')
    params = traverse_util.unflatten_dict(arrays, sep='/').get('tower', {})
    if towers.reads_text(name):
        return rotation, Tower(name)
    module = towers.build(name, **args)
    expected = jax.eval_shape(lambda: towers.initial_params(module, dim, seed=0))
    if jax.tree.map(_kind, params) != jax.tree.map(_kind, expected):
        raise InputError(f'{path}: does not hold the parameters of tower {name!r}; export it again.')
    return rotation, Tower(name, args, params)


def _kind(array: Any) -> tuple[tuple[int, ...], np.dtype]:
    return array.shape, array.dtype


class QueryTransform:
    """Queries from the caller's space to the index's, ṽ = tower(v)·R.

    A linear tower and the rotation are one product, and none where that changes nothing.

    Example:
      transform = QueryTransform.read('index/query_transform.npz', name='identity', args={}, dim=384)
      rotated = transform(queries)

    Args:
      rotation: [D, D] float32.
      tower: the query tower; one that reads text is the index's encoder, and has had its turn.
    """

    def __init__(self, *, rotation: np.ndarray, tower: Tower):
        tower = Tower() if towers.reads_text(tower.name) else tower
        module = towers.build(tower.name, **tower.args)
        unchanged = np.eye(len(rotation), dtype=np.float32)
        matrix, self._adapt = np.asarray(rotation, np.float32), None
        if module.is_linear:
            matrix = towers.apply(tower, unchanged) @ matrix
        else:
            tree = jax.tree.map(jnp.asarray, tower.params)
            self._adapt = functools.partial(jax.jit(module.apply), {'params': tree})
        self._matrix = None if np.array_equal(matrix, unchanged) else matrix

    @classmethod
    def read(cls, path: str | os.PathLike, *, name: str, args: dict[str, Any], dim: int) -> 'QueryTransform':
        """Opens what `write` wrote, see `read`."""
        rotation, tower = read(path, name=name, args=args, dim=dim)
        return cls(rotation=rotation, tower=tower)

    def __call__(self, queries: np.ndarray) -> np.ndarray:
        """Transforms queries.

        Args:
          queries: [q, D] float.

        Returns:
          [q, D] float32.
        """
        queries = np.asarray(queries, np.float32)
        adapted = queries if self._adapt is None else self._adapted(queries)
        return adapted if self._matrix is None else adapted @ self._matrix

    def _adapted(self, queries: np.ndarray) -> np.ndarray:
        """After a tower that is not a matrix; padded to a power of two, for few compiled shapes."""
        done = np.empty_like(queries)
        for start in range(0, len(queries), _BLOCK):
            block = queries[start : start + _BLOCK]
            padded = np.zeros((1 << (len(block) - 1).bit_length(), block.shape[1]), np.float32)
            padded[: len(block)] = block
            done[start : start + _BLOCK] = self._adapt(padded)[: len(block)]
        return done
