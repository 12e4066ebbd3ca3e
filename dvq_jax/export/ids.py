"""`ids.txt`: the documents' ids, UTF-8, one a line, in row order: a plain file that any program reads."""

import os
import shutil
from collections.abc import Iterable

from dvq_jax.errors import InputError
from dvq_jax.ids import Ids

NAME = 'ids.txt'


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


def read(path: str | os.PathLike, *, count: int) -> Ids:
    """Opens what `write` wrote.

    Args:
      path: the file.
      count: N, how many there must be.

    Returns:
      The ids, by row.

    Raises:
      InputError: not N lines, each of them ended.
    """
    ids = Ids(path)
    lines = len(ids) if ids.complete else len(ids) - 1
    if lines != count:
        raise InputError(f'{path}: has {lines} lines for {count} documents; export the index again.')
    return ids
