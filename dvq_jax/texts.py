"""Files of texts: tab-separated lines, an id and a text, read by row without holding the file."""

import hashlib
import os
import pathlib
from collections.abc import Collection, Iterator

import numpy as np

from dvq_jax.errors import InputError

_CHUNK = 2**24  # bytes


class Texts:
    """The texts of a file, by row.

    A line is an id, a tab, and the text; further columns (a title, say) follow it after a space.

    Args:
      path: the file.

    Raises:
      InputError: no such file, no line in it, or a line without a text, which is named.

    Example:
      texts = Texts('docs.tsv')
      texts.read(slice(0, 2))                # two strings
    """

    def __init__(self, path: str | os.PathLike):
        self._path = pathlib.Path(path)
        try:
            self._starts = _line_starts(self._path)
        except OSError as error:
            raise InputError(
                f'{path}: cannot be read ({error.strerror}); give a .tsv of ids and texts.'
            ) from error
        if not len(self):
            raise InputError(f'{path}: is empty; give a .tsv of ids and texts, one a line.')

    def __len__(self) -> int:
        return len(self._starts) - 1

    def read(self, rows: slice) -> list[str]:
        """The texts of consecutive rows.

        Args:
          rows: within the file.

        Returns:
          A string for each.

        Raises:
          InputError: a line that is not UTF-8 or has no text.
        """
        start, stop = self._starts[rows.start], self._starts[rows.stop]
        with open(self._path, 'rb') as file:
            file.seek(start)
            lines = file.read(stop - start).split(b'\n')
        return [
            self._text(line, number)
            for number, line in enumerate(lines[: rows.stop - rows.start], start=rows.start + 1)
        ]

    def all(self) -> list[str]:
        """Every text, as `read`; for files of queries."""
        return self.read(slice(0, len(self)))

    def _text(self, line: bytes, number: int) -> str:
        try:
            name, *columns = line.decode('utf-8').rstrip('\r').split('\t')
        except UnicodeDecodeError as error:
            raise InputError(f'{self._path}: line {number} is not UTF-8 ({error}); write it so.') from error
        text = ' '.join(column.strip() for column in columns).strip()
        if not name or not text:
            raise InputError(f'{self._path}: line {number} has no text after an id and a tab; write both.')
        return text

    def digest(self) -> str:
        """The SHA-256 of the file."""
        with open(self._path, 'rb') as file:
            return hashlib.file_digest(file, 'sha256').hexdigest()


def find(path: str | os.PathLike, ids: Collection[str]) -> dict[str, list[str]]:
    """The texts of some ids, of a file that may be larger than memory.

    Args:
      path: the file, as `Texts` reads it.
      ids: of the texts wanted.

    Returns:
      For each id the columns after it, the text last.

    Raises:
      InputError: no such file, an id that is not in it, or a line without a text.
    """
    wanted = {name.encode(): name for name in ids}
    found = {}
    try:
        with open(path, 'rb') as file:
            for number, line in enumerate(file, start=1):
                name, *columns = line.rstrip(b'\r\n').split(b'\t')
                if name in wanted:
                    if not columns:
                        raise InputError(
                            f'{path}: line {number} has no text after an id and a tab; write both.'
                        )
                    found[wanted[name]] = [column.decode('utf-8', 'replace') for column in columns]
    except OSError as error:
        raise InputError(
            f'{path}: cannot be read ({error.strerror}); give a .tsv of ids and texts.'
        ) from error
    if missing := set(ids) - found.keys():
        raise InputError(f'{path}: has no document {min(missing)!r}; give the documents that were searched.')
    return found


def _chunks(path: pathlib.Path) -> Iterator[bytes]:
    with open(path, 'rb') as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _line_starts(path: pathlib.Path) -> np.ndarray:
    """[lines + 1] int64: where each line begins, and where the one after the last would."""
    found, size, last = [np.zeros(1, np.int64)], 0, b'\n'
    for chunk in _chunks(path):
        found.append(size + 1 + np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord('\n')))
        size, last = size + len(chunk), chunk[-1:]
    if last != b'\n':
        found.append(np.array([size + 1]))
    return np.concatenate(found)
