"""The scripts for accelerators, with stand-ins for what they call: each writes down its arguments."""

import os
import pathlib
import shutil
import signal
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
    """A checkout whose environment and cluster write down what is called; returns start(script, *flags).

    Of dvq_jax there is what DOES says in Bash.
    """
    checkout, log = tmp_path / 'checkout', tmp_path / 'log'
    shutil.copytree(LAUNCH, checkout / 'launch')
    (checkout / 'setup.py').write_text('what to install\n')
    note = f'printf "%s|" "$(basename "$0")" "$@" >> {log}; echo >> {log}'
    write_command(checkout / '.venv' / 'bin' / 'pip', note)
    write_command(
        checkout / '.venv' / 'bin' / 'python', f'{note}; [ "$2" = pip ] && sleep .3 || eval "$DOES"'
    )
    write_command(tmp_path / 'bin' / 'srun', f'{note}; echo $$ > {tmp_path}/step; exec "${{@:3}}"')
    write_command(tmp_path / 'bin' / 'scancel', f'{note}; kill -TERM "$(cat {tmp_path}/step)"')
    write_command(tmp_path / 'bin' / 'timeout', f'shift; exec {shutil.which("timeout")} 2 "$@"')
    for name in ('scontrol', 'gcloud'):
        write_command(tmp_path / 'bin' / name, note)

    def start(script, *flags, **variables):
        env = {**os.environ, 'PATH': f'{tmp_path}/bin:{os.environ["PATH"]}', 'PYTHON': sys.executable}
        return subprocess.Popen(
            ['bash', str(checkout / 'launch' / script), *flags],
            env={**env, **variables}, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    return start


@pytest.fixture
def run(host, tmp_path):
    """run(script, *flags): the exit code, standard output and error, and what was called."""

    def run(script, *flags, **variables):
        process = host(script, *flags, **variables)
        said = process.communicate(timeout=60)
        log = tmp_path / 'log'
        return process.returncode, *said, log.read_text().splitlines() if log.exists() else []

    return run


@pytest.mark.parametrize(('script', 'extra'), [('gpu.sh', 'cuda,text'), ('tpu_vm.sh', 'tpu,text')])
def test_one_host_installs_and_runs_the_command(run, script, extra):
    code, out, _, log = run(script, 'train', *FLAGS, DOES='echo done')
    assert (code, out) == (0, 'done\n')
    assert log == [
        f'python|-m|pip|install|--quiet|--editable|.[{extra}]|',
        'python|-m|dvq_jax.cli.train|--config=configs/default.py|--workdir=a folder|',
    ]


@pytest.mark.parametrize(
    ('script', 'flags'), [('gpu.sh', '--xla_gpu_enable_triton_gemm=false mine\n'), ('tpu_vm.sh', 'mine\n')]
)
def test_gpus_multiply_by_cublas_unless_told_otherwise(run, script, flags):
    assert run(script, 'train', DOES='echo "$XLA_FLAGS"', XLA_FLAGS='mine')[1] == flags


def installed(log):
    return [line.split('|')[-2] for line in log.read_text().splitlines() if '|pip|install|' in line]


def test_hosts_that_share_a_checkout_install_once(host, tmp_path):
    for process in [host('gpu.sh', 'train', DOES='echo done') for _ in range(3)]:
        assert process.communicate(timeout=60)[0] == 'done\n'
    assert installed(tmp_path / 'log') == ['.[cuda,text]']
    host('tpu_vm.sh', 'train', DOES=':').communicate(timeout=60)
    assert installed(tmp_path / 'log') == ['.[cuda,text]', '.[tpu,text]']
    (tmp_path / 'checkout' / 'setup.py').write_text('more to install\n')
    host('gpu.sh', 'train', DOES=':').communicate(timeout=60)
    assert installed(tmp_path / 'log') == ['.[cuda,text]', '.[tpu,text]', '.[cuda,text]']


def test_what_could_not_be_installed_is_tried_again(host, tmp_path):
    pip = tmp_path / 'checkout' / '.venv' / 'bin' / 'python'
    works = pip.read_text()
    write_command(pip, 'exit 1')
    assert host('gpu.sh', 'train').wait(timeout=60) == 1
    write_command(pip, works.removeprefix('#!/usr/bin/env bash\n'))
    assert host('gpu.sh', 'train', DOES=':').wait(timeout=60) == 0
    assert installed(tmp_path / 'log') == ['.[cuda,text]']


_TELL = 'sleep .2; kill -USR1 $PPID; '  # as Slurm does before the time is over


@pytest.mark.parametrize(
    ('does', 'code', 'again'),
    [
        ('echo done', 0, False),
        ("""echo '{"preempted": 5}'""", 0, True),
        ('exit 2', 2, False),
        ('kill -TERM $$', 128 + signal.SIGTERM, False),  # as srun does where another process has failed
        (f'{_TELL} exec sleep 30', 0, True),
        (f'{_TELL} trap "exit 2" TERM; while :; do sleep .1; done', 0, True),
        (f'{_TELL} trap "" TERM; sleep 4; echo done', 0, True),  # longer than there is time for
        (f'trap "echo done; exit" TERM; {_TELL} while :; do sleep .1; done', 0, False),
        (f'{_TELL} echo done', 0, False),
        ('sleep .2; kill -TERM $PPID; exec sleep 1', -signal.SIGTERM, False),  # as scancel does
    ],
)
def test_slurm_queues_again_what_it_was_told_to_end(run, tmp_path, does, code, again):
    slurm = {
        'SLURM_SUBMIT_DIR': str(tmp_path / 'checkout'),
        'SLURM_JOB_ID': '42',
        'SLURM_CPUS_PER_TASK': '64',
    }
    left, _, err, log = run('slurm.sh', 'train', *FLAGS, DOES=does, **slurm)
    assert left == code, err
    command = 'python|-m|dvq_jax.cli.train|--distributed|--config=configs/default.py|--workdir=a folder|'
    assert log[0] == 'python|-m|pip|install|--quiet|--editable|.[cuda,text]|'
    assert f'srun|--kill-on-bad-exit=1|--cpus-per-task=64|{command}' in log and command in log
    assert ('scancel|--signal=TERM|42|' in log) == ('USR1' in does)
    assert log.count('scontrol|requeue|42|') == again


def test_slurm_queues_again_what_has_not_begun(run, tmp_path):
    write_command(tmp_path / 'python3', 'kill -USR1 $PPID')
    slurm = {'SLURM_SUBMIT_DIR': str(tmp_path / 'checkout'), 'SLURM_JOB_ID': '42'}
    code, _, _, log = run('slurm.sh', 'train', PYTHON=str(tmp_path / 'python3'), **slurm)
    assert code == 0 and log == ['scontrol|requeue|42|']


def test_a_pod_runs_the_same_on_each_of_its_hosts(run):
    code, _, err, log = run('tpu_pod.sh', 'train', *FLAGS, TPU='pod', ZONE='zone', CHECKOUT='/mnt/dvq jax')
    assert code == 0, err
    script = r'bash /mnt/dvq\ jax/launch/tpu_vm.sh train'
    command = rf'{script} --config=configs/default.py --workdir=a\ folder --distributed'
    assert log == [f'gcloud|compute|tpus|tpu-vm|ssh|pod|--zone=zone|--worker=all|--command={command}|']


def test_a_pod_needs_its_name(run):
    code, _, err, log = run('tpu_pod.sh', 'train', *FLAGS, ZONE='zone', CHECKOUT='/mnt')
    assert code and 'the name of the TPU' in err and not log
