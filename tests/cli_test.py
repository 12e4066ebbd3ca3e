"""What all commands share."""

import subprocess
import sys

import pytest

from dvq_jax import cli


def train(*flags):
    command = [sys.executable, '-m', 'dvq_jax.cli.train', '--workdir=W', *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ('flags', 'said'),
    [
        (['--config=configs/none.py'], '--config=configs/none.py: no such file'),
        (['--config=configs/default.py', '--config.index.list=7'], 'a --config flag is wrong'),
        (['--config=configs/default.py', '--config.index.lists=many'], 'many'),
        (['--config=configs/default.py', '--topk=1'], 'topk'),
    ],
)
def test_a_wrong_flag_ends_in_one_sentence(flags, said):
    failed = train(*flags)
    assert failed.returncode == 2 and said in failed.stderr
    assert len(failed.stderr.splitlines()) == 1 and failed.stderr.startswith('error: ')


def test_an_interrupted_command_ends_without_a_traceback(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.app, 'run', lambda guarded, flags_parser: guarded([]))
    with pytest.raises(SystemExit) as ended:
        cli.run(interrupted)
    assert ended.value.code == 130 and capsys.readouterr().err == 'interrupted\n'
