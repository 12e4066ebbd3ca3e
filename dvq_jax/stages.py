"""Stages of long work, each kept when it is finished: what is interrupted goes on after the last of them."""

import hashlib
import pathlib
import shutil
from collections.abc import Callable
from typing import Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils

from dvq_jax import files

Arrays = dict[str, np.ndarray]


class Kept(Protocol):
    """Who keeps stages, `Stages` or `unkept`."""

    def __call__(self, name: str, make: Callable[[], Arrays]) -> Arrays:
        """What `make` makes, or has made in an earlier call for the name that was not this process's."""


def unkept(name: str, make: Callable[[], Arrays]) -> Arrays:
    """Makes a stage whenever it is asked for."""
    return make()


class Stages:
    """Stages in a folder that all processes of a run see.

    All of them ask for the same stages, in the same order, and make what is not there together; process 0
    writes it.

    Args:
      folder: created when the first stage is kept.
      of: says what the work is and all that it depends on; a stage of something else is not found.
    """

    def __init__(self, folder: pathlib.Path, of: str):
        self._folder, self._of = folder, hashlib.sha256(of.encode()).hexdigest()[:16]

    def __call__(self, name: str, make: Callable[[], Arrays]) -> Arrays:
        """What `make` makes, or has made before.

        Args:
          name: of the stage.
          make: arrays by name.

        Returns:
          The arrays.

        Raises:
          InputError: the folder cannot be written to.
        """
        path = self._folder / f'{name}.{self._of}.npz'
        if multihost_utils.broadcast_one_to_all(np.array(path.exists())):
            with np.load(path, allow_pickle=False) as stored:
                return dict(stored)
        arrays = make()
        if jax.process_index() == 0:
            with files.atomic_file(path) as aside, open(aside, 'wb') as file:
                np.savez(file, **arrays)
        return arrays

    def remove(self) -> None:
        """Removes all stages, these and others of the folder: the work is done."""
        if jax.process_index() == 0:
            shutil.rmtree(self._folder, ignore_errors=True)
