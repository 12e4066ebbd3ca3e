"""What runs on accelerators goes through a TPU's compiler, where `pip install libtpu` has brought one."""

import json
import os
import subprocess
import sys

import pytest

_SMALL = """
import compiled
compiled._B, compiled._C, compiled._D = 32, 16, 128
compiled._L, compiled._M, compiled._N, compiled._Q = 256, 16, 20_000, 1000
compiled.cli.run(compiled.main)
"""


def test_a_tpus_compiler_takes_all_of_it(tmp_path):
    pytest.importorskip('libtpu')
    env = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': os.pathsep.join(['.', 'benchmarks'])}
    command = [sys.executable, '-c', _SMALL, f'--out={tmp_path / "out.json"}']
    subprocess.run(command, env=env, check=True, timeout=900)
    rows = json.loads((tmp_path / 'out.json').read_text(encoding='utf-8'))['rows']
    assert {row['devices'] for row in rows} == {1, 4} and len(rows) == 2 * 19
    assert all(0 < row['bytes'] < row.get('predicted', 2**30) * 1.2 for row in rows)
