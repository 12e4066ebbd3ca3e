"""What memory a corpus takes that is larger than it: prepare, train and export, command by command.

python benchmarks/memory.py --workdir=W --documents=5000000 --dim=384 --out=docs/results/memory.json

Writes a synthetic corpus (clusters of unit-norm vectors, float16, and ids) under the workdir and runs the
commands on it as a user would; export encodes. What counts is each process's anonymous memory at its peak:
the corpus is memory-mapped and lies in the page cache, which gives way. Linux alone tells. A command that has
run is not run again.
"""

import json
import pathlib
from typing import Any

from absl import flags
from processes import run_measured
from synthetic import write_vectors

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


def _commands(folder: pathlib.Path) -> dict[str, tuple[str, ...]]:
    dataset, run = folder / 'dataset', folder / 'run'
    return {
        'prepare': (
            f'--corpus={folder / "docs.npy"}',
            f'--corpus_ids={folder / "docs.tsv"}',
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
    with files.atomic_file(folder / 'docs.tsv') as aside, open(aside, 'w', encoding='utf-8') as file:
        file.writelines(f'doc{row}\n' for row in range(_DOCUMENTS.value))
    stored['corpus_gib'] = round((folder / 'docs.npy').stat().st_size / 2**30, 2)
    for command, arguments in _commands(folder).items():
        if command not in stored:
            stored[command] = run_measured(command, *arguments)
            with files.atomic_file(out) as aside:
                aside.write_text(json.dumps(stored, indent=1) + '\n', encoding='utf-8')
    return stored


if __name__ == '__main__':
    cli.run(main)
