"""Commands that several processes run: how they find each other, what each may take, how they end."""

import contextlib
import os
import signal
import socket
import subprocess
import sys

import pytest

# Joins, and says what JAX would take of the GPUs of a host.
_JOIN = """
import sys, jax
from absl import flags
from dvq_jax.cli import processes
flags.FLAGS(sys.argv)
processes.join()
print(jax.process_index(), jax.process_count(), jax.config.read('jax_cuda_visible_devices'), flush=True)
"""
_SLURM = {'SLURM_JOB_ID': '7', 'SLURM_STEP_NODELIST': 'localhost,elsewhere', 'SLURM_NTASKS': '2'}


def port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return str(probe.getsockname()[1])


def start(code, *flags, **variables):
    env = {name: value for name, value in os.environ.items() if not name.startswith('SLURM_')}
    env |= {'JAX_PLATFORMS': 'cpu', **variables}
    command = [sys.executable, '-c', code, *flags]
    return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def ended(processes):
    """Exit code, last line and standard error of each."""
    said = [process.communicate(timeout=120) for process in processes]
    return [
        (process.returncode, (out.splitlines() or [''])[-1], err)
        for process, (out, err) in zip(processes, said, strict=True)
    ]


@pytest.mark.parametrize(
    ('found', 'hosts', 'local', 'gpus'),
    [
        (True, '2', '00', ('all', 'all')),
        (False, '2', '00', ('all', 'all')),
        (True, '1', '01', ('0', '1')),
    ],
)
def test_a_process_alone_on_its_host_takes_all_gpus_under_slurm(found, hosts, local, gpus):
    address = port()
    shared = {**_SLURM, 'SLURM_STEP_NUM_NODES': hosts, 'JAX_COORDINATOR_PORT': address}
    processes = []
    for number in range(2):
        told = [f'--coordinator=localhost:{address}', '--num_processes=2', f'--process_id={number}']
        own = {'SLURM_PROCID': str(number), 'SLURM_LOCALID': local[number]}
        processes.append(start(_JOIN, *(['--distributed'] if found else told), **shared, **own))
    for number, (code, line, err) in enumerate(ended(processes)):
        assert (code, line) == (0, f'{number} 2 {gpus[number]}'), err


def test_elsewhere_a_process_takes_all_but_what_is_named():
    told = ['--num_processes=1', '--process_id=0']
    everything = start(_JOIN, f'--coordinator=localhost:{port()}', *told)
    named = start(_JOIN, f'--coordinator=localhost:{port()}', *told, JAX_LOCAL_DEVICE_IDS='2,3')
    lines = [line for _, line, _ in ended([everything, named, start(_JOIN)])]
    assert lines == ['0 1 all', '0 1 2,3', '0 1 all']


def test_a_run_that_cannot_be_is_refused():
    with_command = f'from dvq_jax import cli\n{_JOIN}'.replace('processes.join()', 'cli.run(processes.join)')
    lone = start(with_command, '--distributed')
    third = start(with_command, f'--coordinator=localhost:{port()}', '--num_processes=2', '--process_id=2')
    for code, _, err in ended([lone, third]):
        assert code == 2 and err.startswith('error: --distributed: this is no process of a run'), err


@pytest.mark.parametrize(('watched', 'code'), [(False, -signal.SIGTERM), (True, 0)])
def test_sigterm_ends_a_process_that_does_not_save(watched, code):
    waits = _JOIN.replace('join()', f'join(watched={watched})') + 'sys.stdin.readline()'
    env = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
    command = [sys.executable, '-c', waits, f'--coordinator=localhost:{port()}']
    with subprocess.Popen(
        [*command, '--num_processes=1', '--process_id=0'],
        env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        while not process.stdout.readline().startswith('0 1 '):
            assert process.poll() is None, process.stderr.read()
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(BrokenPipeError):
            process.communicate('go on\n', timeout=60)
    assert process.returncode == code
