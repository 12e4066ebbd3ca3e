"""Runs as tests start them: by the command in processes of their own, or in this one; and what they leave."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import numpy as np

from dvq_jax import checkpoint
from dvq_jax.train import train

ROOT = pathlib.Path(__file__).parent.parent
SMALL = {
    'data.batch_size': 16, 'index.lists': 16, 'index.codebooks': 4, 'index.codewords': 16,
    'initialize.opq_iterations': 3, 'initialize.coarse_iterations': 3, 'initialize.pq_iterations': 2,
    'routing.rounds': 1, 'codes.queries': 8, 'codes.sweeps': 1,
    'candidates': 'top50:4+ib', 'train.steps': 20, 'train.log_every': 5,
    'train.checkpoint_every': 10, 'eval.nprobe': 4,
}  # fmt: skip


def start(collection, workdir, *, devices=1, extra=(), **changes):
    """Starts the command; returns the process."""
    overrides = {**SMALL, 'data.dataset': collection['dataset'], **changes}
    command = [
        sys.executable,
        '-m',
        'dvq_jax.cli.train',
        '--config=configs/default.py',
        f'--workdir={workdir}',
    ]
    command += [f'--config.{key}={value}' for key, value in overrides.items()]
    env = {
        **os.environ,
        'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
        'JAX_PLATFORMS': 'cpu',
    }
    return subprocess.Popen(
        [*command, *extra], cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    return json.loads(out.splitlines()[-1])


def arrays(workdir, step='latest'):
    trained = checkpoint.load(workdir, step)
    return {**vars(trained.params), 'lists': np.asarray(trained.lists)}


def difference(ours, theirs):
    """‖a − b‖ / ‖b‖ of the trained parameters; the frozen lists must be the same."""
    np.testing.assert_array_equal(ours['lists'], theirs['lists'])
    names = ('centroids', 'codebooks', 'rotation')
    return max(np.linalg.norm(ours[name] - theirs[name]) / np.linalg.norm(theirs[name]) for name in names)


def start_two(collection, workdir, **changes):
    """Starts two processes of one run."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        address = f'127.0.0.1:{probe.getsockname()[1]}'
    extra = [f'--coordinator={address}', '--num_processes=2']
    return [
        start(collection, workdir, extra=[*extra, f'--process_id={number}'], **changes) for number in range(2)
    ]


def wait_until(it_is_so, processes):
    deadline = time.monotonic() + 200
    while not it_is_so():
        assert time.monotonic() < deadline and all(process.poll() is None for process in processes)
        time.sleep(0.02)


def curve(workdir, every):
    """step -> loss, at the steps that a whole run writes."""
    lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
    return {line['step']: line['loss'] for line in lines if 'loss' in line and line['step'] % every == 0}


def run(small_config, workdir, **changes):
    for key, value in changes.items():
        with small_config.unlocked():
            small_config.update_from_flattened_dict({key.replace('__', '.'): value})
    return train(small_config, str(workdir))
