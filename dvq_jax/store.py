"""Encodings of a corpus on disk, those of a run's checkpoints beside it."""

import contextlib
import pathlib
import shutil
from collections.abc import Iterable, Mapping, Sequence

import jax
import numpy as np

from dvq_jax import blocks, files, peers

_FOLDER = 'encodings'  # of a run's folder
_KINDS = {'lists': np.int32, 'codes': np.uint8}


class Store:
    """An encoding on disk: `codes.npy`, and `lists.npy` where lists were not decided before.

    Each region is a file under `parts/` first, so that several processes, on a folder that all of them see,
    can write at once, and an interrupted pass goes on; process 0 then joins them. `of` says what is encoded.

    Attributes:
      parts: the finished regions.

    Args:
      folder: created where it is missing.

    Raises:
      InputError: it cannot be created or written to.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder = files.make_folder(folder)
        self._parts = folder / 'parts'
        self.parts = blocks.Parts(self._parts)

    def begin(self, identity: str) -> None:
        """Removes what is an encoding of something else, or by other settings."""
        with peers.all_or_none():
            if jax.process_index() == 0 and not self.holds(identity):
                for path in self._folder.iterdir():  # which others may be opening
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                files.make_folder(self._parts)
                with files.atomic_file(self._folder / 'of') as aside:
                    aside.write_text(identity, encoding='utf-8')

    def holds(self, identity: str) -> bool:
        """Whether it is of this encoding, finished or not."""
        mark = self._folder / 'of'
        return mark.exists() and mark.read_text(encoding='utf-8') == identity

    def read(self, names: Iterable[str]) -> dict[str, np.ndarray] | None:
        """The joined arrays by name, memory-mapped; None where not all are there yet."""
        paths = {name: self._folder / f'{name}.npy' for name in names}
        if not all(path.exists() for path in paths.values()):
            return None
        return {name: np.load(path, mmap_mode='r', allow_pickle=False) for name, path in paths.items()}

    def join(self, regions: Sequence[slice], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Makes one array of all regions for each name, [copies, N, ...], and removes the parts."""
        with peers.all_or_none():
            if jax.process_index() == 0:
                self._write(regions, shapes)
                shutil.rmtree(self._parts)

    def _write(self, regions: Sequence[slice], shapes: Mapping[str, tuple[int, ...]]) -> None:
        with contextlib.ExitStack() as stack:
            arrays = {}
            for name, shape in shapes.items():
                aside = stack.enter_context(files.atomic_file(self._folder / f'{name}.npy'))
                arrays[name] = np.lib.format.open_memmap(aside, 'w+', _KINDS[name], shape)
            for number, region in enumerate(regions):
                part = self.parts[number]
                for name, array in arrays.items():
                    array.reshape(-1, regions[-1].stop, *array.shape[1:])[:, region] = part[name]
            for array in arrays.values():
                array.flush()


def store_of(workdir: pathlib.Path, step: int) -> Store:
    """Where a run keeps the encoding of a checkpoint; raises InputError where it cannot be written to."""
    return Store(workdir / _FOLDER / str(step))


def prune_stores(workdir: pathlib.Path, kept: Sequence[int]) -> None:
    """Removes the encodings of a run's checkpoints that are not kept; one of a later step waits for it."""
    folder = workdir / _FOLDER
    for path in folder.iterdir() if folder.is_dir() else ():
        if int(path.name) not in kept and int(path.name) < max(kept):
            shutil.rmtree(path)
