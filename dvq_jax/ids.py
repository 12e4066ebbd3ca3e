"""Ids, a row each, of a text file that may be larger than memory."""

import itertools
import mmap
import os
import stat
from collections.abc import Iterator, Sequence

import numpy as np

from dvq_jax.errors import InputError

_BLOCK = 1 << 24
_LINES = 1 << 16


class Ids(Sequence[str]):
    """The ids in a text file, by row.

    The file stays on disk, memory-mapped, and must stay as it is; 8 bytes a line are kept, where it ends.

    Example:
      Ids('index/ids.txt').take(np.array([[2, 0, -1]]))    # [['d3', 'd1', '']]

    Args:
      path: the file, UTF-8.
      columns: an id is a line's first column, before a tab, and lines may end with a carriage return; else it
        is the line.

    Attributes:
      complete: whether the last line ends.

    Raises:
      InputError: where it is read, that the file has another size by now.
    """

    def __init__(self, path: str | os.PathLike, *, columns: bool = False):
        self._path, self._columns = path, columns
        with open(path, 'rb') as file:
            about = os.fstat(file.fileno())
            mapped = stat.S_ISREG(about.st_mode) and about.st_size  # not a pipe, and not empty
            self._text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if mapped else file.read()
        raw = np.frombuffer(self._text, np.uint8)
        starts = range(0, len(raw), _BLOCK)
        ends = [np.flatnonzero(raw[start : start + _BLOCK] == ord('\n')) + start for start in starts]
        self.complete = not len(raw) or bool(raw[-1] == ord('\n'))
        last = [] if self.complete else [[len(raw)]]
        self._ends = np.concatenate([[-1], *ends, *last]).astype(np.int64, copy=False)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _LINES):
            self._check()
            ends = self._ends[first : first + _LINES + 1].tolist()
            yield from (self._read(last + 1, end) for last, end in itertools.pairwise(ends))

    def __getitem__(self, row: int | slice) -> str | list[str]:
        found = range(len(self))[row]
        return [self._at(one) for one in found] if isinstance(found, range) else self._at(found)

    def _at(self, row: int) -> str:
        self._check()
        return self._read(int(self._ends[row]) + 1, int(self._ends[row + 1]))

    def _read(self, start: int, end: int) -> str:
        if not self._columns:
            return self._text[start:end].decode()
        tab = self._text.find(b'\t', start, end)
        return self._text[start : end if tab < 0 else tab].rstrip(b'\r').decode()

    def _check(self) -> None:
        # To read what a mapped file has lost would end the process.
        if isinstance(self._text, mmap.mmap) and self._text.size() != len(self._text):
            raise InputError(f'{self._path}: has changed since it was opened; run again.')

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The ids of rows.

        Args:
          rows: integers of any shape, in [0, N); negative where there is no document.

        Returns:
          An array of str objects of the same shape; '' where there is no document.
        """
        self._check()
        distinct, places = np.unique(np.maximum(rows, -1), return_inverse=True)
        starts, ends = self._ends[distinct] + 1, self._ends[distinct + 1]
        names = np.empty(distinct.shape, object)
        names[:] = [
            self._read(start, end) if start <= end else ''  # of row -1 the end is before the start
            for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
        ]
        return names[places.reshape(rows.shape)]


class _RowNumbers(Sequence[str]):
    """Rows as ids: '0', '1' and so on."""

    def __init__(self, count: int):
        self._rows = range(count)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[str]:
        return map(str, self._rows)

    def __getitem__(self, row: int | slice) -> str | list[str]:
        found = self._rows[row]
        return [str(one) for one in found] if isinstance(found, range) else str(found)


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
        return _RowNumbers(rows)
    try:
        ids = Ids(path, columns=True)
        if len(ids) != rows:
            raise InputError(f'{path}: has {len(ids)} ids for {rows} embeddings; give one line an embedding.')
        _check(ids, path)
    except OSError as error:
        raise InputError(f'{path}: cannot be read ({error.strerror}); give a text file.') from error
    return ids


def _check(ids: Ids, path: str | os.PathLike) -> None:
    """Of all ids no more than hashes are held, 8 bytes each and twice that to sort them."""
    hashes, row = np.empty(len(ids), np.int64), -1
    try:
        for row, name in enumerate(ids):
            if name.split() != [name]:
                raise _not_a_word(path, row, f'has the id {name!r}')
            hashes[row] = hash(name)
    except UnicodeDecodeError as error:
        raise InputError(
            f'{path}: cannot be read as UTF-8 text (line {row + 2}: {error}); give a text file.'
        ) from error
    ordered = np.sort(hashes)
    again = ordered[1:][ordered[1:] == ordered[:-1]]
    seen = set()
    for row in np.flatnonzero(np.isin(hashes, again)).tolist() if len(again) else ():
        if ids[row] in seen:
            raise _not_a_word(path, row, f'repeats the id {ids[row]!r}')
        seen.add(ids[row])


def _not_a_word(path: str | os.PathLike, row: int, what: str) -> InputError:
    return InputError(f'{path}: line {row + 1} {what}; ids must be unique words, as TREC files need.')
