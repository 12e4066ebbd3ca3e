"""Corpus-sized work, cut into blocks: each is kept when it is finished, so that interrupted work goes on.

The blocks do not depend on each other. One process does them in turn, several processes of a
`jax.distributed` run share them, and Beam's workers take them as they come (`beam`).
"""

import contextlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Protocol

import jax
import numpy as np

from dvq_jax import files, peers, preemption
from dvq_jax.progress import Progress


class Work(Protocol):
    """What is done block by block.

    Attributes:
      label: what is being done, as `Progress` takes it.
      unit: what it counts.
      blocks: rows of each block, in order.
    """

    label: str
    unit: str
    blocks: Sequence[slice]

    def size(self, number: int) -> int:
        """How many units a block has."""

    def __call__(self, number: int, progress: Progress) -> dict[str, np.ndarray]:
        """Does a block, counting its units; its arrays by name."""


class Parts:
    """Finished parts of some work on disk, such as blocks: arrays by name, by the part's number or name.

    Several processes, on a folder that all of them see, can write at once.

    Args:
      folder: where they are; created when the first one is written.
      prefix: of the files' names.
    """

    def __init__(self, folder: pathlib.Path, prefix: str = ''):
        self._folder, self._prefix = folder, prefix

    def __contains__(self, part: int | str) -> bool:
        return self.path(part).exists()

    def __getitem__(self, part: int | str) -> dict[str, np.ndarray]:
        with np.load(self.path(part), allow_pickle=False) as stored:
            return dict(stored)

    def __setitem__(self, part: int | str, arrays: Mapping[str, np.ndarray]) -> None:
        # Beam may give a block to two workers.
        with files.atomic_file(self.path(part), contested=True) as aside, open(aside, 'wb') as file:
            np.savez(file, **arrays)

    def path(self, part: int | str) -> pathlib.Path:
        """Where a part is, once it is finished."""
        return self._folder / f'{self._prefix}{part}.npz'


def even(total: int, largest: int, *, multiple: int = 1) -> int:
    """The size of equal blocks that hold `total`: none above `largest`, their number such a multiple."""
    return -(-total // (multiple * -(-total // (multiple * largest))))


def cut(rows: int, size: int) -> list[slice]:
    """Blocks of consecutive rows, the last one shorter."""
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def missing(work: Work, parts: Parts) -> list[int]:
    """Numbers of the blocks that are not finished."""
    return [number for number in range(len(work.blocks)) if number not in parts]


def finish(work: Work, parts: Parts | None = None, *, quiet: bool = False) -> Mapping[int, dict]:
    """Does the blocks that are not finished; the processes of a run share those that go to `parts`.

    Args:
      work: what is to be done, the same in every process.
      parts: finished blocks, on a folder that all processes see; None holds them in this process's memory.
      quiet: print no progress of what is done in a few seconds.

    Returns:
      All blocks by number, each its arrays by name.

    Raises:
      Preempted: between two blocks, see `preemption`.
      InputError: another process that shares them has failed.
    """
    shared = parts is not None
    first, share = (jax.process_index(), jax.process_count()) if shared else (0, 1)
    parts = parts if shared else {}
    # By number, not by what is missing: of that every process would see something else.
    own = range(first, len(work.blocks), share)
    todo = {number for number in own if number not in parts}
    total, left = (sum(map(work.size, numbers)) for numbers in (own, todo))
    progress = Progress(work.label, total=total, unit=work.unit, start=total - left)
    with peers.all_or_none() if shared else contextlib.nullcontext():
        for turn in range(0, len(work.blocks), share):
            preemption.leave_if_noticed()  # every process asks as often, whatever it has to do
            if (number := turn + first) in todo:
                parts[number] = work(number, progress)
        if quiet:
            progress.end()
        elif todo:
            progress.done()
    return parts
