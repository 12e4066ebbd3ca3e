"""`manifest.json`: what an index folder is, where it comes from, and the checksum of each of its files.

It is written last, so a folder without it is not a finished index. It is read first, and files are held
against it before anything else opens them.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
import typing
from collections.abc import Iterable
from typing import Any

from dvq_jax import files
from dvq_jax.errors import InputError
from dvq_jax.quantizer import bytes_per_document

NAME = 'manifest.json'
VERSION = 2
_KNOWN = {
    'engine': ('scann', 'faiss'),
    'metric': ('inner_product',),
    'copies': (1, 2),
    'lookup': ('float', 'int8', 'lut16'),
    'reorder': ('none', 'float32', 'bfloat16', 'int8'),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of `manifest.json`.

    Attributes:
      engine: 'scann' or 'faiss'.
      documents, dim: N and D.
      copies: lists that a document is in, 1 or 2.
      lists, books, codewords: L, M and K.
      lookup: how the engine scores codes: 'float', 'int8' or 'lut16'.
      reorder: the vectors kept for exact re-scoring: 'none', 'float32', 'bfloat16' or 'int8'.
      tower: the query tower's name.
      tower_args: the tower's hyperparameters.
      step: the training step that the index was exported from.
      config_sha256: the hash of the training config.
      packages: the versions of the packages that wrote the index.
      files: of each file, by name, its 'bytes' and 'sha256'.
      metric: always 'inner_product'.
      version: of this format.
    """

    engine: str
    documents: int
    copies: int
    dim: int
    lists: int
    books: int
    codewords: int
    lookup: str
    reorder: str
    tower: str
    tower_args: dict
    step: int
    config_sha256: str
    packages: dict
    files: dict
    metric: str = 'inner_product'
    version: int = VERSION

    @property
    def bytes_per_document(self) -> float:
        """What a document costs in codes, and in vectors kept for re-scoring."""
        kept = {'none': 0, 'int8': 1, 'bfloat16': 2, 'float32': 4}[self.reorder]
        return self.copies * bytes_per_document(self.books, self.codewords) + kept * self.dim


def config_hash(config: dict[str, Any]) -> str:
    """The SHA-256 of a config's canonical JSON, in hexadecimal; the order of its keys does not matter."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def write(folder: pathlib.Path, *, packages: dict[str, str], **fields: Any) -> Manifest:
    """Writes the manifest of a folder that is otherwise complete.

    Args:
      folder: the index folder; all files in it are listed.
      packages: versions by name, to be added to those of this package, JAX and NumPy.
      **fields: the other fields of `Manifest`.

    Returns:
      What was written.
    """
    listed = {
        path.relative_to(folder).as_posix(): {'bytes': path.stat().st_size, 'sha256': files.sha256(path)}
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }
    versions = {name: importlib.metadata.version(name) for name in ('dvq_jax', 'jax', 'numpy')}
    manifest = Manifest(files=listed, packages=versions | packages, **fields)
    text = json.dumps(dataclasses.asdict(manifest), indent=1, sort_keys=True)
    (folder / NAME).write_text(text + '\n', encoding='utf-8')
    return manifest


def read(folder: str | os.PathLike) -> Manifest:
    """Reads a folder's manifest; the files that it lists are not looked at (see `check`).

    Args:
      folder: the index folder.

    Returns:
      The manifest, its fields of the right types.

    Raises:
      InputError: there is no such folder, no manifest in it, or it is not one of this version.
    """
    path = pathlib.Path(folder) / NAME
    if not path.parent.is_dir():
        raise InputError(f'{folder}: no such folder; give an index that export wrote.')
    try:
        fields = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError as error:
        raise InputError(f'{folder}: not a finished index, it has no {NAME}; export it again.') from error
    except OSError as error:
        raise InputError(f'{path}: cannot be read ({error.strerror}); make it a readable file.') from error
    except ValueError as error:
        raise InputError(f'{path}: not JSON ({error}); export the index again.') from error
    version = fields.get('version') if isinstance(fields, dict) else None
    if version != VERSION:
        raise InputError(
            f'{path}: format version {version!r}, this program reads {VERSION}; export it again.'
        )
    types = typing.get_type_hints(Manifest)
    wrong = sorted(types.keys() ^ fields.keys()) or [n for n in types if type(fields[n]) is not types[n]]
    wrong = wrong or [name for name, values in _KNOWN.items() if fields[name] not in values]
    wrong = wrong or [
        name for name in ('documents', 'dim', 'lists', 'books', 'codewords') if fields[name] < 1
    ]
    if wrong:
        raise InputError(f'{path}: field {wrong[0]!r} is not one that export writes; export the index again.')
    return Manifest(**fields)


def check(folder: str | os.PathLike, manifest: Manifest, names: Iterable[str]) -> None:
    """Holds files against the manifest: they exist, and their size and SHA-256 are the listed ones.

    Args:
      folder: the index folder.
      manifest: its manifest.
      names: the files that the caller is going to open.

    Raises:
      InputError: a file is missing, not listed, or differs.
    """
    for name in names:
        path = pathlib.Path(folder) / name
        listed = manifest.files.get(name)
        if not isinstance(listed, dict):
            raise InputError(f'{folder}: {NAME} does not list {name}; export the index again.')
        if not path.is_file():
            raise InputError(f'{path}: is missing; copy the index again, whole, or export it again.')
        if path.stat().st_size != listed.get('bytes'):
            raise InputError(
                f'{path}: has {path.stat().st_size} bytes where {NAME} says {listed.get("bytes")}; '
                'copy the index again, whole, or export it again.'
            )
        if files.sha256(path) != listed.get('sha256'):
            raise InputError(
                f'{path}: its SHA-256 is not that in {NAME}; copy the index again, whole, or export it again.'
            )


def require(path: pathlib.Path, good: bool) -> None:
    """Raises InputError unless a file of an index is what its manifest describes."""
    if not good:
        raise InputError(f'{path}: is not what {NAME} describes; export the index again.')
