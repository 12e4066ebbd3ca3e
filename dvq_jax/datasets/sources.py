"""Published files: fetched or found, checked, and read line by line."""

import contextlib
import dataclasses
import gzip
import hashlib
import io
import os
import pathlib
import tarfile
import zlib
from collections.abc import Iterator
from typing import IO, TextIO

import tensorflow_datasets as tfds

from dvq_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Source:
    """A published file.

    Attributes:
      url: where it is.
      md5: its checksum as published, or '' where none is.
    """

    url: str
    md5: str = ''

    @property
    def name(self) -> str:
        """What the file is called."""
        return self.url.rpartition('/')[2]


def manual_folder(downloads: tfds.download.DownloadManager) -> pathlib.Path | None:
    """The folder of files that the user brought, where there is one."""
    try:
        return pathlib.Path(downloads.manual_dir)
    except AssertionError:
        return None


def fetch(source: Source, downloads: tfds.download.DownloadManager) -> pathlib.Path:
    """A published file, from the user's folder or from where it is published.

    Args:
      source: the file.
      downloads: TFDS's manager; what it has downloaded once it does not download again.

    Returns:
      The file.

    Raises:
      InputError: it cannot be downloaded, or its bytes are not those that were published. A bad download is
        removed, so that the next call downloads again.
    """
    folder = manual_folder(downloads)
    if folder and (folder / source.name).is_file():
        path = folder / source.name
        _check(path, source, f'put the published file there, or remove it to have {source.url} downloaded')
        return path
    try:
        path = pathlib.Path(downloads.download(source.url))
    except (OSError, tfds.download.DownloadError) as error:  # what `requests` raises is an OSError
        raise InputError(
            f'{source.url}: cannot be downloaded ({" ".join(str(error).split())}); try again, or put '
            f'{source.name} into a folder and give it as --manual_dir.'
        ) from error
    try:
        _check(path, source, 'the download is removed; try again')
    except InputError:
        path.unlink()
        path.with_name(f'{path.name}.INFO').unlink(missing_ok=True)  # what TFDS noted about it
        raise
    return path


def _check(path: pathlib.Path, source: Source, remedy: str) -> None:
    if not source.md5:
        return
    with open(path, 'rb') as file:
        found = hashlib.file_digest(file, 'md5').hexdigest()
    if found != source.md5:
        raise InputError(
            f'{path}: is not the published {source.name}, its MD5 is {found} and not {source.md5}; {remedy}.'
        )


@contextlib.contextmanager
def reading(path: str | os.PathLike) -> Iterator[TextIO]:
    """Opens a file of UTF-8 text: as it is, in a .gz, or in an archive.

    Args:
      path: the file; ARCHIVE.tar.gz/NAME is the one of that name in the archive, which is not unpacked.

    Yields:
      The file, open to read.

    Raises:
      InputError: it cannot be read, unpacked or decoded, now or while it is read.
    """
    try:
        # Lines end at '\n' alone: other separators of lines stand in texts.
        with (
            _bytes(pathlib.Path(path)) as file,
            io.TextIOWrapper(file, encoding='utf-8', newline='\n') as text,
        ):
            yield text
    except OSError as error:
        raise InputError(
            f'{path}: cannot be read ({error.strerror or error}); get the file again.'
        ) from error
    except (EOFError, zlib.error, tarfile.TarError, UnicodeDecodeError) as error:
        raise InputError(f'{path}: cannot be read as UTF-8 text ({error}); get the file again.') from error


@contextlib.contextmanager
def _bytes(path: pathlib.Path) -> Iterator[IO[bytes]]:
    if not path.parent.is_file():
        with (gzip.open if path.suffix == '.gz' else open)(path, 'rb') as file:
            yield file
        return
    with tarfile.open(path.parent, 'r:gz') as archive:
        for member in archive:
            if pathlib.PurePath(member.name).name == path.name:
                yield archive.extractfile(member)
                return
    raise FileNotFoundError(f'{path.name} is not in the archive')


def lines(path: str | os.PathLike) -> Iterator[tuple[int, str]]:
    """The lines of a file as `reading` opens it, without their ends, and their numbers from 1."""
    with reading(path) as file:
        for number, line in enumerate(file, start=1):
            yield number, line.rstrip('\r\n')
