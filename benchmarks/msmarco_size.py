"""How long MS MARCO's size takes, from the corpus to an index, without running all of it.

python benchmarks/msmarco_size.py --workdir=W --out=docs/results/msmarco_size.json

Writes a synthetic corpus and queries of that size, prepares and trains with some of the queries and for some
steps, on the whole corpus, exports, and says what the whole would take, stage by stage (`msmarco_stages`).
--check runs the commands with all queries too, to compare with. --report_only prints what is stored. What a
call has finished by the time that it is interrupted, --unfinished stores.
"""

import functools
import json
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))  # configs/ is read from the checkout

import ml_collections
import msmarco_stages
import numpy as np
import performance_tables
from absl import flags
from ml_collections import config_flags
from processes import apart, run_measured
from synthetic import write_vectors
from tables import table

from dvq_jax import cli, files
from dvq_jax.errors import InputError

_CONFIG = config_flags.DEFINE_config_file(
    'config', 'configs/default.py', 'The training; sizes are by the flags.', lock_config=True
)
_WORKDIR = flags.DEFINE_string('workdir', None, 'A folder for the corpus and what is made of it.')
_DOCUMENTS = flags.DEFINE_integer('documents', 8_800_000, 'N.')
_DIM = flags.DEFINE_integer('dim', 768, 'D.')
_LISTS = flags.DEFINE_integer('lists', 10_000, 'L.')
_CODEBOOKS = flags.DEFINE_integer('codebooks', 64, 'M.')
_NPROBE = flags.DEFINE_integer('nprobe', 100, 'P.')
_QUERIES = flags.DEFINE_integer('queries', 500_000, 'Q.')
_TOPK = flags.DEFINE_integer('topk', 200, 'C; all of them are candidates, and those of the whole batch.')
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 128, 'B.')
_SOME_QUERIES = flags.DEFINE_integer('some_queries', 24_576, 'To mine, and to train with.')
_SOME_DOCUMENTS = flags.DEFINE_integer('some_documents', 2**18, 'To choose codes of.')
_STEPS = flags.DEFINE_integer('steps', 250, 'To train.')
_CHECK = flags.DEFINE_bool('check', False, 'Run everything too, to compare with.')
_UNFINISHED = flags.DEFINE_bool(
    'unfinished', False, 'Run nothing, and store what an interrupted call has kept.'
)
_OUT = flags.DEFINE_string('out', 'docs/results/msmarco_size.json', 'The numbers, JSON.')
_REPORT_ONLY = flags.DEFINE_bool('report_only', False, 'Run nothing, and print the tables.')


def _settings() -> dict[str, Any]:
    """What the flags say about the training."""
    return {
        'index.lists': _LISTS.value,
        'index.codebooks': _CODEBOOKS.value,
        'data.batch_size': _BATCH_SIZE.value,
        'candidates': f'top{_TOPK.value}+ib',
        'eval.nprobe': _NPROBE.value,
    }


def _write_inputs(folder: pathlib.Path) -> None:
    for name, rows, seed in (('docs', _DOCUMENTS.value, 0), ('queries', _QUERIES.value, 1)):
        if not (folder / f'{name}.npy').exists():
            write_vectors(folder / f'{name}.npy', rows=rows, dim=_DIM.value, seed=seed)
    queries = np.load(folder / 'queries.npy', mmap_mode='r')
    np.save(folder / 'some_queries.npy', queries[: _SOME_QUERIES.value])


def _export(folder: pathlib.Path, of: str) -> float:
    return run_measured('export', f'--workdir={folder / of}', f'--out={folder / of}_index')['seconds']


def _run_all(folder: pathlib.Path) -> dict[str, float]:
    """Seconds of the commands with all queries."""
    config = flags.FLAGS['config']
    settings = {**config_flags.get_override_values(config), **_settings(), 'data.dataset': folder / 'all'}
    inputs = (f'--corpus={folder / "docs.npy"}', f'--queries={folder / "queries.npy"}')
    training = (f'--config.{name}={value}' for name, value in settings.items())
    commands = {
        'prepare': (*inputs, f'--topk={_TOPK.value}', f'--out={folder / "all"}'),
        'train': (
            f'--config={config_flags.get_config_filename(config)}',
            *training,
            f'--workdir={folder / "all_run"}',
        ),
    }
    seconds = {name: run_measured(name, *given)['seconds'] for name, given in commands.items()}
    return {**seconds, 'export': _export(folder, 'all_run')}


def _kept_or_measured(
    path: pathlib.Path, config: ml_collections.ConfigDict, size: msmarco_stages.Size
) -> dict[str, Any]:
    """What `msmarco_stages.measure` has kept; a call that was interrupted after it goes on from there."""

    def kept() -> dict[str, Any]:
        found = json.loads(path.read_text(encoding='utf-8')) if path.exists() else {}
        return found if found.get('of') == msmarco_stages.identity(config, size) else {}

    if not _UNFINISHED.value and not kept().get('finished'):
        # In a process of its own, which leaves its memory to the next one.
        apart(functools.partial(msmarco_stages.measure, path, config, size))
    if not kept():
        raise InputError(f'{path}: holds no measurement of these sizes; run without --unfinished.')
    return kept()


def _measure() -> dict[str, Any]:
    """Measures some, and says what all would take."""
    if not _WORKDIR.value:
        raise InputError('--workdir is not given; give a folder for the corpus and what is made of it.')
    folder, config = files.make_folder(_WORKDIR.value), _CONFIG.value
    config.update_from_flattened_dict(_settings())
    if not _UNFINISHED.value:
        _write_inputs(folder)
    size = msmarco_stages.Size(
        documents=_DOCUMENTS.value,
        dim=_DIM.value,
        queries=_QUERIES.value,
        topk=_TOPK.value,
        some_queries=_SOME_QUERIES.value,
        some_documents=min(_SOME_DOCUMENTS.value, _DOCUMENTS.value),
        steps=_STEPS.value,
    )
    measured = _kept_or_measured(folder / 'measured.json', config, size)
    calls = msmarco_stages.calls_of(measured, folder, config, size)
    if measured['finished']:
        calls['export'] = [(1, _export(folder, 'some_run'))]
    stages = msmarco_stages.project(calls, config, size)
    seconds = {}
    for stage in stages:
        seconds[stage.command] = seconds.get(stage.command, 0.0) + stage.projected
    return {
        'size': {**vars(size), **_settings()},
        'cores': os.cpu_count(),
        'finished': measured['finished'],
        'device': measured['device'],
        'peaks': measured['peaks'],
        'stages': [stage.row(measured['peaks']) for stage in stages],
        'projected_seconds': seconds,
        **({'all_seconds': _run_all(folder)} if _CHECK.value else {}),
    }


def markdown(stored: Mapping[str, Any]) -> str:
    """A row a stage, and one a command with what it took where everything was run too.

    Args:
      stored: what the benchmark stored.

    Returns:
      Two tables.
    """
    ways = [(source, products) for source in stored['peaks'] for products in ('float32', 'bfloat16')]
    titles = ('stage', 'measured, s', 'of the whole', 'whole, s', *(', '.join(way) for way in ways))
    lines = []
    for row in stored['stages']:
        units, seconds = (sum(values) for values in zip(*row['calls'], strict=True))
        shares = [f'{row["fractions"][a][b]:.0%}' if 'fractions' in row else '' for a, b in ways]
        cells = [f'{row["command"]}: {row["name"]}', f'{seconds:.1f}', f'{units / row["total"]:.1%}']
        lines.append([*cells, f'{row["projected_seconds"]:.1f}', *shares])
    said = '' if stored.get('finished', True) else 'Interrupted: what is not here was still to come.\n\n'
    return f'{said}{table(titles, lines, left=1)}\n\n{performance_tables.commands(stored)}'


def main() -> None:
    """Measures and stores, or reads what is stored, and prints it."""
    out = pathlib.Path(_OUT.value)
    if not _REPORT_ONLY.value:
        files.check_output(out)
        stored = _measure()
        with files.atomic_file(out) as aside:
            aside.write_text(json.dumps(stored, indent=1) + '\n', encoding='utf-8')
    print(markdown(json.loads(out.read_text(encoding='utf-8'))))


if __name__ == '__main__':
    cli.run(main)
