"""Stages of long work, each kept when it is finished: what is interrupted goes on after the last of them.

Where a stage is a pass over the corpus it keeps finished blocks too, see `blocks`, and goes on after those.
"""

import contextlib
import functools
import hashlib
import pathlib
import zipfile
from collections.abc import Callable
from typing import Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils

from dvq_jax import blocks, peers, preemption
from dvq_jax.errors import InputError

_KIND = '.stage'  # in the names of files, so that others are left alone
Arrays = dict[str, np.ndarray]
Where = Callable[[str], blocks.Parts | None]  # a stage keeps the blocks of a pass, by the pass's name
Make = Callable[[Where], Arrays]


class Kept(Protocol):
    """Who keeps stages, `Stages` or `unkept`."""

    def __call__(self, name: str, make: Make) -> Arrays:
        """What `make` makes, or has made before for the same name."""


def nowhere(_name: str) -> None:
    """Keeps no blocks."""


def unkept(name: str, make: Make) -> Arrays:
    """Makes a stage whenever it is asked for."""
    return make(nowhere)


class Stages:
    """Stages in a folder that all processes of a run see.

    All of them ask for the same stages, in the same order, and make what is not there together; process 0
    writes it.

    Args:
      folder: created when the first stage is kept.
      of: says what the work is and all that it depends on; a stage of something else is not found.
    """

    def __init__(self, folder: pathlib.Path, of: str):
        self._folder, self._parts = folder, blocks.Parts(folder)
        self._of = hashlib.sha256(of.encode()).hexdigest()[:16]

    def __call__(self, name: str, make: Make) -> Arrays:
        """What `make` makes, or has made before.

        Args:
          name: of the stage.
          make: arrays by name; what its blocks depend on must be kept before, as a stage or a block.

        Returns:
          The arrays.

        Raises:
          InputError: the folder cannot be written to, or what it holds is damaged.
          Preempted: before the stage, or in it, see `preemption`.
        """
        preemption.leave_if_noticed()
        stage = f'{name}.{self._of}{_KIND}'
        if multihost_utils.broadcast_one_to_all(np.array(stage in self._parts)):
            try:
                return self._parts[stage]
            except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
                path = self._parts.path(stage)
                raise InputError(f'{path}: is damaged ({error}); remove it and start again.') from error
        arrays = make(functools.partial(self._blocks, stage))
        with peers.all_or_none():  # and all have read its blocks
            if jax.process_index() == 0:
                self._parts[stage] = arrays
        if jax.process_index() == 0:
            self._remove(f'{stage}-*')
        return arrays

    def _blocks(self, stage: str, name: str) -> blocks.Parts:
        return blocks.Parts(self._folder, f'{stage}-{name}.')

    def _remove(self, names: str) -> None:
        for path in self._folder.glob(names):
            path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Removes all stages, of this work and of other: what they were for is done."""
        if jax.process_index() == 0 and self._folder.is_dir():
            self._remove(f'*{_KIND}*.npz*')
            with contextlib.suppress(OSError):  # somebody else's files
                self._folder.rmdir()
