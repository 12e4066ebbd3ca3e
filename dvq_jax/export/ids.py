"""`ids.txt`: the documents' ids, UTF-8, one a line, in row order.

A plain file that any program reads. Ten million ids open in about a second: the file stays on disk,
memory-mapped, and only the positions of its line ends are kept.
"""

import itertools
import mmap
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator

import numpy as np

from dvq_jax.errors import InputError

NAME = 'ids.txt'
_BLOCK = 1 << 24
_LINES = 1 << 16


def write(
    path: str | os.PathLike, ids: Iterable[str], *, count: int, after: str | os.PathLike | None = None
) -> None:
    """Writes ids.

    Args:
      path: the file to create.
      ids: one for each document, in row order; may be a generator.
      count: N, how many there must be.
      after: a file of other documents' ids, which go before them as they are.

    Raises:
      InputError: an id with a line break, or not N ids.
    """
    written = 0
    with open(path, 'wb') as file:
        if after is not None:
            with open(after, 'rb') as others:
                shutil.copyfileobj(others, file)
        for identifier in ids:
            if '\n' in identifier:
                raise InputError(f'document id {identifier!r} has a line break; give ids of one line.')
            file.write(identifier.encode() + b'\n')
            written += 1
    if written != count:
        raise InputError(f'there are {written} document ids for {count} documents; give one for each.')


class Ids:
    """The ids of N documents, by row.

    Example:
      Ids('index/ids.txt', count=3).take(np.array([[2, 0, -1]]))    # [['d3', 'd1', '']]

    Args:
      path: the file.
      count: N, how many there must be.

    Raises:
      InputError: not N lines.
    """

    def __init__(self, path: str | os.PathLike, *, count: int):
        empty = pathlib.Path(path).stat().st_size == 0
        with open(path, 'rb') as file:
            self._text = b'' if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        raw = np.frombuffer(self._text, np.uint8)
        starts = range(0, len(raw), _BLOCK)
        ends = [np.flatnonzero(raw[start : start + _BLOCK] == ord('\n')) + start for start in starts]
        self._ends = np.concatenate([[-1], *ends]).astype(np.int64)
        if len(self) != count or self._ends[-1] != len(raw) - 1:
            raise InputError(f'{path}: has {len(self)} lines for {count} documents; export the index again.')

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _LINES):
            ends = self._ends[first : first + _LINES + 1].tolist()
            yield from (self._text[last + 1 : end].decode() for last, end in itertools.pairwise(ends))

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The ids of rows.

        Args:
          rows: integers of any shape, in [0, N); negative where there is no document.

        Returns:
          An array of str objects of the same shape; '' where there is no document.
        """
        distinct, places = np.unique(np.maximum(rows, -1), return_inverse=True)
        starts, ends = self._ends[distinct] + 1, self._ends[distinct + 1]
        names = np.empty(distinct.shape, object)
        names[:] = [
            self._text[start:end].decode() if end >= start else ''
            for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
        ]
        return names[places.reshape(rows.shape)]
