"""The scripts for accelerators, with stand-ins for what they call: each writes down its arguments."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

LAUNCH = pathlib.Path(__file__).parent.parent / 'launch'
FLAGS = ['--config=configs/default.py', '--workdir=a folder']


def write_command(path, body):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/usr/bin/env bash\n{body}\n', encoding='utf-8')
    path.chmod(0o755)


@pytest.fixture
def host(tmp_path):
    """A checkout whose environment and cluster write down what is called; returns run(script, *flags)."""
    shutil.copytree(LAUNCH, tmp_path / 'checkout' / 'launch')
    log = tmp_path / 'log'
    note = f'printf "%s|" "$(basename "$0")" "$@" >> {log}; echo >> {log}'
    bin_folder = tmp_path / 'checkout' / '.venv' / 'bin'
    write_command(bin_folder / 'pip', note)
    write_command(bin_folder / 'python', f'{note}; [ "$2" = pip ] || echo "$RESULT"')
    write_command(tmp_path / 'bin' / 'srun', f'{note}; shift; exec "$@"')
    for name in ('scontrol', 'gcloud'):
        write_command(tmp_path / 'bin' / name, note)

    def run(script, *flags, **variables):
        env = {**os.environ, 'PATH': f'{tmp_path}/bin:{os.environ["PATH"]}', 'PYTHON': sys.executable}
        command = ['bash', str(tmp_path / 'checkout' / 'launch' / script), *flags]
        done = subprocess.run(
            command, env={**env, **variables}, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        return done, log.read_text().splitlines() if log.exists() else []

    return run


@pytest.mark.parametrize(('script', 'extra'), [('gpu.sh', 'cuda,text'), ('tpu_vm.sh', 'tpu,text')])
def test_one_host_installs_and_runs_the_command(host, script, extra):
    done, log = host(script, 'train', *FLAGS, RESULT='{"step": 7}')
    assert done.returncode == 0 and done.stdout == '{"step": 7}\n'
    assert log == [
        f'python|-m|pip|install|--quiet|--editable|.[{extra}]|',
        'python|-m|dvq_jax.cli.train|--config=configs/default.py|--workdir=a folder|',
    ]


@pytest.mark.parametrize(('result', 'again'), [('{"step": 7}', False), ('{"preempted": 5}', True)])
def test_slurm_trains_on_every_host_and_queues_again_what_was_preempted(host, tmp_path, result, again):
    slurm = {'SLURM_SUBMIT_DIR': str(tmp_path / 'checkout'), 'SLURM_JOB_ID': '42', 'RESULT': result}
    done, log = host('slurm.sh', *FLAGS, **slurm)
    assert done.returncode == 0, done.stderr
    train = '|-m|dvq_jax.cli.train|--distributed|--config=configs/default.py|--workdir=a folder|'
    assert f'srun|--kill-on-bad-exit=1|python{train}' in log and f'python{train}' in log
    assert ('scontrol|requeue|42|' in log) == again


def test_a_pod_runs_the_same_on_each_of_its_hosts(host):
    done, log = host('tpu_pod.sh', *FLAGS, TPU='pod', ZONE='zone', CHECKOUT='/mnt/dvq jax')
    assert done.returncode == 0, done.stderr
    script = r'bash /mnt/dvq\ jax/launch/tpu_vm.sh train'
    command = rf'{script} --distributed --config=configs/default.py --workdir=a\ folder'
    assert log == [f'gcloud|compute|tpus|tpu-vm|ssh|pod|--zone=zone|--worker=all|--command={command}|']


def test_a_pod_needs_its_name(host):
    done, log = host('tpu_pod.sh', *FLAGS, ZONE='zone', CHECKOUT='/mnt')
    assert done.returncode and 'the name of the TPU' in done.stderr and not log
