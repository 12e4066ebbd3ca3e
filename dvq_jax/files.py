"""Outputs are written aside and renamed, so that a reader never meets half a result."""

import contextlib
import hashlib
import os
import pathlib
import shutil
import tempfile
import uuid
from collections.abc import Iterator

from dvq_jax.errors import InputError


def _aside(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f'.{path.name}.partial')


def make_folder(path: str | os.PathLike) -> pathlib.Path:
    """Creates a folder and its parents, and checks that it can be written to.

    Args:
      path: the folder.

    Returns:
      The folder as a `pathlib.Path`.

    Raises:
      InputError: the folder cannot be made or written to.
    """
    path = pathlib.Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InputError(
            f'{path}: cannot write there ({error.strerror}); give a folder that you may write to.'
        ) from error
    return path


def check_output(path: str | os.PathLike) -> pathlib.Path:
    """Checks, before the work, that a file can be written at its end.

    Args:
      path: the file to create or replace; its folder is created.

    Returns:
      The file as a `pathlib.Path`.

    Raises:
      InputError: it is a folder, or its folder cannot be written to.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise InputError(f'{path}: is a folder; give the name of a file.')
    make_folder(path.parent)
    return path


def check_new(path: str | os.PathLike) -> pathlib.Path:
    """Checks, before the work, that an output does not exist yet.

    Args:
      path: the folder to create.

    Returns:
      The path as a `pathlib.Path`.

    Raises:
      InputError: it exists: it is somebody's finished result.
    """
    path = pathlib.Path(path)
    if path.exists():
        raise InputError(f'{path}: exists already; remove it or give another output.')
    return path


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike, *, contested: bool = False) -> Iterator[pathlib.Path]:
    """Gives a path to write to; on success it replaces `path`, on an exception it is removed.

    Args:
      path: the file to create or replace; its folder is created.
      contested: others may be writing the same file: the temporary path is this call's alone, and the last
        one to end stays.

    Yields:
      The temporary path, in the same folder.

    Raises:
      InputError: `path` is a folder, or its folder cannot be written to.
    """
    path = check_output(path)
    aside = _aside(path.with_name(f'{path.name}.{uuid.uuid4().hex}') if contested else path)
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Gives an empty folder to fill; on success it becomes `path`, on an exception it is removed.

    A folder left aside by a killed process is removed first. An existing `path` is an error: it is
    somebody's finished result.

    Args:
      path: the folder to create.

    Yields:
      The temporary folder, beside `path`.

    Raises:
      InputError: `path` exists already, or its parent cannot be written to.
    """
    path = check_new(path)
    make_folder(path.parent)
    aside = _aside(path)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        os.replace(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def sha256(path: str | os.PathLike) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
