"""The sweep over sizes, through its command line."""

import json
import os
import pathlib
import subprocess
import sys

from tests.runs import SMALL

ROOT = pathlib.Path(__file__).parent.parent


def sweep(collection, folder, *extra):
    command = [
        sys.executable,
        'benchmarks/sweep.py',
        '--config=configs/distill_vq.py',
        f'--workdir={folder / "W"}',
    ]
    settings = {
        **SMALL,
        'routing.rounds': 0,
        'codes.queries': 0,
        'train.steps': 2,
        'data.dataset': collection['dataset'],
    }
    command += [f'--config.{name}={value}' for name, value in settings.items()]
    command += [f'--{name}={collection[name]}' for name in ('queries', 'query_ids', 'qrels')]
    command += [f'--out={folder / "sweep.json"}', '--nprobe=1,12', *extra]
    env = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
    return subprocess.run(command, cwd=ROOT, env=env, text=True, capture_output=True, timeout=300)


def test_each_size_is_measured_before_and_after(collection, tmp_path):
    done = sweep(collection, tmp_path, '--lists=8', '--codebooks=8')
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads((tmp_path / 'sweep.json').read_text())
    sizes = ['L 16, M 4', 'L 8, M 4', 'L 16, M 8']
    assert list(rows) == [f'{size}: {name}' for size in sizes for name in ('start', 'trained')]
    # More probes find more, and so do more bytes; 8 lists have no 12 to probe.
    whole, finer = rows['L 16, M 4: start']['nprobe'], rows['L 16, M 8: start']['nprobe']
    assert whole['12']['docs_scanned'] > whole['1']['docs_scanned']
    assert finer['12']['teacher@10'] > whole['12']['teacher@10']
    assert list(rows['L 8, M 4: start']['nprobe']) == ['1']
    assert done.stdout.count('\n') == 8 and '| – |' in done.stdout


def test_what_is_no_number_is_refused(collection, tmp_path):
    refused = sweep(collection, tmp_path, '--lists=many')
    assert refused.returncode == 2 and 'error: --lists=many: give numbers' in refused.stderr
