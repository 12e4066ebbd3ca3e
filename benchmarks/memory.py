"""What memory a corpus takes that is larger than it: prepare, train and export, command by command.

python benchmarks/memory.py --workdir=W --documents=5000000 --dim=384 --out=docs/results/memory.json

Writes a synthetic corpus (clusters of unit-norm vectors, float16) under the workdir and runs the commands on
it as a user would; export encodes. What counts is each process's anonymous memory at its peak: the corpus is
memory-mapped and lies in the page cache, which gives way. Linux alone tells. A command that has run is not
run again.
"""

import json
import pathlib
import subprocess
import sys
import time
from typing import Any

import numpy as np
from absl import flags
from processes import anonymous_memory

from dvq_jax import cli, files
from dvq_jax.errors import InputError

_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Folder for the corpus and what is made of it.', required=True
)
_DOCUMENTS = flags.DEFINE_integer('documents', 5_000_000, 'N.')
_QUERIES = flags.DEFINE_integer('queries', 2000, 'To train on.')
_DIM = flags.DEFINE_integer('dim', 384, 'D.')
_LISTS = flags.DEFINE_integer('lists', 1024, 'L.')
_CODEBOOKS = flags.DEFINE_integer('codebooks', 16, 'M.')
_REORDER = flags.DEFINE_string('reorder', 'none', 'See dvq_jax.cli.export.')
_OUT = flags.DEFINE_string('out', 'docs/results/memory.json', 'The numbers, JSON.')

_CLUSTERS = 20_000
_BLOCK = 65536
_EVERY = 0.05  # seconds between two looks


def write_vectors(path: pathlib.Path, *, rows: int, dim: int, seed: int) -> None:
    """Unit-norm float16 vectors around centers that all seeds share, block by block."""
    centers = np.random.default_rng(0).normal(size=(_CLUSTERS, dim)).astype(np.float32)
    rng = np.random.default_rng((1, seed))
    with files.atomic_file(path) as aside:
        vectors = np.lib.format.open_memmap(aside, 'w+', np.float16, (rows, dim))
        for start in range(0, rows, _BLOCK):
            count = min(_BLOCK, rows - start)
            block = centers[rng.integers(0, _CLUSTERS, count)]
            block = block + rng.standard_normal(block.shape, np.float32)
            block /= np.linalg.norm(block, axis=1, keepdims=True)
            vectors[start : start + count] = block
        vectors.flush()


def run_measured(command: str, *arguments: str) -> dict[str, float]:
    """Runs `python -m dvq_jax.cli.COMMAND`; seconds, and its anonymous memory at its peak."""
    begin, peak = time.monotonic(), 0
    process = subprocess.Popen(
        [sys.executable, '-m', f'dvq_jax.cli.{command}', *arguments], stdout=subprocess.DEVNULL
    )
    while process.poll() is None:
        peak = max(peak, anonymous_memory(process.pid))
        time.sleep(_EVERY)
    if process.returncode:
        raise InputError(f'{command} ended with code {process.returncode}; see its message above.')
    return {'seconds': round(time.monotonic() - begin, 1), 'anonymous_gib': round(peak / 2**30, 2)}


def _commands(folder: pathlib.Path) -> dict[str, tuple[str, ...]]:
    dataset, run = folder / 'dataset', folder / 'run'
    return {
        'prepare': (
            f'--corpus={folder / "docs.npy"}',
            f'--queries={folder / "queries.npy"}',
            '--topk=100',
            f'--out={dataset}',
        ),
        'train': (
            '--config=configs/default.py',
            f'--config.data.dataset={dataset}',
            f'--config.index.lists={_LISTS.value}',
            f'--config.index.codebooks={_CODEBOOKS.value}',
            '--config.routing.rounds=1',
            f'--workdir={run}',
        ),
        'export': (f'--workdir={run}', f'--reorder={_REORDER.value}', f'--out={folder / "index"}'),
    }


def main() -> dict[str, Any]:
    """Writes the corpus, runs what is missing, stores and prints all."""
    folder, out = files.make_folder(_WORKDIR.value), pathlib.Path(_OUT.value)
    stored = json.loads(out.read_text(encoding='utf-8')) if out.exists() else {}
    about = {flag.name: flag.value for flag in (_DOCUMENTS, _QUERIES, _DIM, _LISTS, _CODEBOOKS, _REORDER)}
    if stored.setdefault('settings', about) != about:
        raise InputError(f'{out}: was measured with {stored["settings"]}; give another --out.')
    for name, rows, seed in (('docs', _DOCUMENTS.value, 0), ('queries', _QUERIES.value, 1)):
        if not (folder / f'{name}.npy').exists():
            write_vectors(folder / f'{name}.npy', rows=rows, dim=_DIM.value, seed=seed)
    stored['corpus_gib'] = round((folder / 'docs.npy').stat().st_size / 2**30, 2)
    for command, arguments in _commands(folder).items():
        if command not in stored:
            stored[command] = run_measured(command, *arguments)
            with files.atomic_file(out) as aside:
                aside.write_text(json.dumps(stored, indent=1) + '\n', encoding='utf-8')
    return stored


if __name__ == '__main__':
    cli.run(main)
