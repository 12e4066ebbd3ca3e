"""What runs on accelerators goes through their compilers, where `pip` has brought one."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

_SMALL = """
import compiled
compiled._B, compiled._C, compiled._D = 32, 16, 128
compiled._L, compiled._M, compiled._N, compiled._Q, compiled._KEPT = 256, 16, 20_000, 1000, 20_480
compiled.cli.run(compiled.main)
"""


@pytest.mark.parametrize(('target', 'package'), [('v5e', 'libtpu'), ('h100', 'jax_cuda12_plugin')])
def test_an_accelerators_compiler_takes_all_of_it(target, package, tmp_path):
    if not importlib.util.find_spec(package):
        pytest.skip(f'{package} is not installed')
    env = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': os.pathsep.join(['.', 'benchmarks'])}
    command = [sys.executable, '-c', _SMALL, f'--target={target}', f'--out={tmp_path / "out.json"}']
    subprocess.run(command, env=env, check=True, timeout=900)
    rows = json.loads((tmp_path / 'out.json').read_text(encoding='utf-8'))['rows']
    assert {row['devices'] for row in rows} == {1, 4} and len(rows) == 2 * 19
    assert all(0 < row['bytes'] < row.get('predicted', 2**30) * 1.2 for row in rows)
