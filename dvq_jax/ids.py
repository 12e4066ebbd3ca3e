"""Ids, a row each, of a text file that may be larger than memory."""

import itertools
import mmap
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from dvq_jax.errors import InputError

_BLOCK = 1 << 24
_LINES = 1 << 16


class Ids(Sequence[str]):
    """The ids in a text file, by row.

    The file stays on disk, memory-mapped; 8 bytes a line are kept, where it ends.

    Example:
      Ids('index/ids.txt').take(np.array([[2, 0, -1]]))    # [['d3', 'd1', '']]

    Args:
      path: the file, UTF-8.
      columns: an id is a line's first column, before a tab, and lines may end with a carriage return; else it
        is the line.
    """

    def __init__(self, path: str | os.PathLike, *, columns: bool = False):
        empty = pathlib.Path(path).stat().st_size == 0
        with open(path, 'rb') as file:
            self._text = b'' if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._columns = columns
        raw = np.frombuffer(self._text, np.uint8)
        starts = range(0, len(raw), _BLOCK)
        ends = [np.flatnonzero(raw[start : start + _BLOCK] == ord('\n')) + start for start in starts]
        self.complete = empty or bool(raw[-1] == ord('\n'))  # whether the last line ends
        last = [] if self.complete else [[len(raw)]]
        self._ends = np.concatenate([[-1], *ends, *last]).astype(np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, row: int) -> str:
        return self._read(int(self._ends[row]) + 1, int(self._ends[row + 1]))

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _LINES):
            ends = self._ends[first : first + _LINES + 1].tolist()
            yield from (self._read(last + 1, end) for last, end in itertools.pairwise(ends))

    def _read(self, start: int, end: int) -> str:
        line = self._text[start:end]
        return (line.partition(b'\t')[0].rstrip(b'\r') if self._columns else line).decode()

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The ids of rows.

        Args:
          rows: integers of any shape, in [0, N); negative where there is no document.

        Returns:
          An array of str objects of the same shape; '' where there is no document.
        """
        distinct, places = np.unique(np.maximum(rows, -1), return_inverse=True)
        names = np.empty(distinct.shape, object)
        names[:] = ['' if row < 0 else self[row] for row in distinct.tolist()]
        return names[places.reshape(rows.shape)]


class RowNumbers(Sequence[str]):
    """Rows as ids: '0', '1' and so on.

    Args:
      count: how many.
    """

    def __init__(self, count: int):
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> str:
        if not 0 <= row < self._count:
            raise IndexError(row)
        return str(row)


def open_ids(path: str | os.PathLike | None, rows: int) -> Sequence[str]:
    """Opens the first column of a tab-separated file, one id a row of the embeddings.

    Args:
      path: the file; None names the rows '0', '1', and so on.
      rows: how many embeddings there are.

    Returns:
      The ids, in row order, read as they are asked for.

    Raises:
      InputError: no such file, another number of lines, an id that is empty, repeated or not one word.
    """
    if path is None:
        return RowNumbers(rows)
    try:
        ids = Ids(path, columns=True)
        if len(ids) != rows:
            raise InputError(f'{path}: has {len(ids)} ids for {rows} embeddings; give one line an embedding.')
        _check(ids, path)
    except OSError as error:
        raise InputError(f'{path}: cannot be read ({error.strerror}); give a text file.') from error
    except UnicodeDecodeError as error:
        raise InputError(f'{path}: cannot be read as UTF-8 text ({error}); give a text file.') from error
    return ids


def _check(ids: Ids, path: str | os.PathLike) -> None:
    """Of all ids no more than hashes are held, 8 bytes each; of those whose hash repeats, the ids too."""
    hashes = np.empty(len(ids), np.int64)
    for row, name in enumerate(ids):
        if name.split() != [name]:
            raise _not_a_word(path, row, f'has the id {name!r}')
        hashes[row] = hash(name)
    distinct, counts = np.unique(hashes, return_counts=True)
    seen = set()
    for row in np.flatnonzero(np.isin(hashes, distinct[counts > 1])).tolist():
        if ids[row] in seen:
            raise _not_a_word(path, row, f'repeats the id {ids[row]!r}')
        seen.add(ids[row])


def _not_a_word(path: str | os.PathLike, row: int, what: str) -> InputError:
    return InputError(f'{path}: line {row + 1} {what}; ids must be unique words, as TREC files need.')
