"""Pipelines on Beam's local runner, in this process but for the commands."""

import dataclasses
import importlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from dvq_jax import blocks, encode, evaluate, teacher
from dvq_jax.errors import InputError
from dvq_jax.train import train
from tests.conftest import shrunk_config
from tests.prepare_test import write_inputs

pytest.importorskip('apache_beam')
from dvq_jax import beam

# DirectRunner would look for its successor on the net first.
LOCAL = ['--runner=FnApiRunner']
OPTIONS = {'pipeline_options': 'runner=FnApiRunner,direct_num_workers=1'}


def run(name, **flags):
    """Runs a command; returns its result and what it said on stderr."""
    command = [sys.executable, '-m', f'dvq_jax.cli.{name}', *(f'--{key}={flags[key]}' for key in flags)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_mining_is_that_of_one_machine_and_goes_on(tmp_path, capsys):
    given = write_inputs(tmp_path, queries=20_000)  # three blocks
    paths = {name: given[name] for name in ('corpus', 'queries')}
    settings = {'topk': 30, 'out': tmp_path / 'OUT'}
    result = beam.mine_pipeline(**paths, **settings, options=LOCAL)
    folder = tmp_path / '.OUT.mining'
    assert (result['mining'], result['blocks'], result['done']) == (str(folder), 3, 3)
    assert 'mine, block 3 of 3: ' in capsys.readouterr().err
    whole = times(folder)
    lost = next(folder.glob('*.1.npz'))
    lost.unlink()
    assert beam.mine_pipeline(**paths, **settings, options=LOCAL)['done'] == 1
    kept = {name: time for name, time in whole.items() if name != lost.name}
    assert kept.items() < times(folder).items() and times(folder).keys() == whole.keys()
    assert beam.mine_pipeline(**paths, **settings, options=LOCAL)['done'] == 0
    docs, queries = np.load(given['corpus']), np.load(given['queries'])
    capsys.readouterr()
    found = teacher.mine(docs, queries, 30, cache=folder)
    assert capsys.readouterr().err == ''
    for ours, expected in zip(found, teacher.mine(docs, queries, 30), strict=True):
        np.testing.assert_array_equal(ours, expected)


@pytest.fixture(scope='module')
def workdir(collection, tmp_path_factory):
    """A run that has not trained, without an encoding."""
    config, folder = shrunk_config(collection['dataset']), tmp_path_factory.mktemp('run')
    config.train.steps = 0
    train(config, str(folder))
    shutil.rmtree(folder / 'encodings')
    return folder


@pytest.mark.parametrize('queries', [8, 0])
def test_encoding_is_that_of_one_machine_and_goes_on(workdir, monkeypatch, queries):
    trained, dataset = evaluate.open_trained(workdir, 'latest')
    codes = {**trained.config['codes'], 'queries': queries}
    trained = dataclasses.replace(trained, config={**trained.config, 'codes': codes})
    monkeypatch.setattr(evaluate, 'open_trained', lambda *_: (trained, dataset))
    whole = encode.collect(evaluate.encoder_of(trained, dataset))
    monkeypatch.setattr(encode, '_REGION', 400)
    done, write = [], blocks.Parts.__setitem__

    def keep(parts, number, arrays):
        if len(done) == 3:
            raise InputError('the worker dies')
        done.append(number)
        write(parts, number, arrays)

    monkeypatch.setattr(blocks.Parts, '__setitem__', keep)
    with pytest.raises(InputError, match='the worker dies'):
        beam.encode_pipeline(workdir=workdir, step='latest', options=LOCAL)
    monkeypatch.setattr(blocks.Parts, '__setitem__', write)
    kept = times(workdir / 'encodings' / '0' / 'parts')
    assert sorted(kept) == [f'{number}.npz' for number in sorted(done)] and len(done) == 3
    result = beam.encode_pipeline(workdir=workdir, step='latest', options=LOCAL)
    assert (result['step'], result['blocks'], result['done']) == (0, 4, 1)
    assert beam.encode_pipeline(workdir=workdir, step='latest', options=LOCAL)['done'] == 0
    encoding = evaluate.encode_trained(trained, dataset)
    assert isinstance(encoding.codes, np.memmap)
    np.testing.assert_array_equal(encoding.codes, whole.codes)
    np.testing.assert_array_equal(encoding.lists, whole.lists)


def test_prepare_finds_the_queries_mined(tmp_path):
    given = write_inputs(tmp_path)
    paths = {name: given[name] for name in ('corpus', 'queries')}
    settings = {'topk': 50, 'out': tmp_path / 'OUT'}
    result, _ = run('beam', work='mine', **paths, **settings, **OPTIONS)
    assert (result['blocks'], result['done']) == (1, 1)
    result, said = run('prepare', **given, **settings)
    assert result['topk'] == 50 and 'mine: ' not in said
    assert not (tmp_path / '.OUT.mining').exists()


def test_evaluate_finds_the_corpus_encoded(workdir):
    shutil.rmtree(workdir / 'encodings', ignore_errors=True)
    result, _ = run('beam', work='encode', workdir=workdir, step='best', **OPTIONS)
    assert (result['step'], result['blocks'], result['done']) == (0, 1, 1)
    result, said = run('evaluate', workdir=workdir, nprobe=4)
    assert result['documents'] == 1500 and 'encode: ' not in said


BAD = {
    'no file': ({'corpus': 'none.npy'}, r'none\.npy: no such file'),
    'topk': ({'topk': 301}, 'has 300 documents, topk is 301'),
    'out exists': ({'out': 'docs.npy'}, r'docs\.npy: exists already'),
    'no runner': ({'options': ['--runner=Walker']}, '--runner=Walker: Beam does not take .*Walker'),
    'bad option': ({'options': ['--direct_num_workers=two']}, "invalid int value: 'two'"),
}


@pytest.mark.parametrize(('change', 'message'), BAD.values(), ids=BAD)
def test_bad_input_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch, change, message):
    write_inputs(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    given = {'corpus': 'docs.npy', 'queries': 'queries.npy', 'topk': 20, 'out': 'OUT', 'options': LOCAL}
    with pytest.raises(InputError, match=message) as raised:
        beam.mine_pipeline(**{**given, **change})
    assert '\n' not in str(raised.value)
    assert sorted(tmp_path.iterdir()) == before


def test_an_option_that_beam_does_not_know_is_named(capsys):
    beam._pipeline([*LOCAL, '--runer=FlinkRunner'])
    assert "--runer is none of Beam's own" in capsys.readouterr().err


def test_no_checkpoint_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match=str(tmp_path)):
        beam.encode_pipeline(workdir=tmp_path, step='latest', options=LOCAL)
    assert not list(tmp_path.iterdir())


def test_workers_that_see_other_files_are_refused(tmp_path, monkeypatch):
    given = write_inputs(tmp_path)
    paths = {'corpus': given['corpus'], 'queries': given['queries'], 'topk': 20}
    here, elsewhere = tmp_path / 'OUT', tmp_path / 'elsewhere'
    opened = beam._open_mining
    monkeypatch.setattr(beam, '_open_mining', lambda **known: opened(**{**known, 'cache': str(elsewhere)}))
    with pytest.raises(InputError, match=r'a worker sees other files .* storage that all workers see'):
        beam.mine_pipeline(**paths, out=here, options=LOCAL)
    elsewhere.mkdir()
    with pytest.raises(InputError, match=r'1 of 1 blocks are not where .* storage that all workers see'):
        beam.mine_pipeline(**paths, out=here, options=LOCAL)
    with pytest.raises(InputError, match='a worker sees other files'):
        opened(**paths, cache=str(elsewhere), identity='of other queries')


def test_the_command_refuses_flags_of_the_other_work(tmp_path):
    for flags, message in {
        ('--work=encode', '--workdir=W', '--out=OUT'): '--out is for --work=mine; leave it out.',
        ('--work=mine', '--corpus=docs.npy'): '--work=mine needs --queries; give it too.',
    }.items():
        command = [sys.executable, '-m', 'dvq_jax.cli.beam', *flags]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stdout, done.stderr) == (2, '', f'error: {message}\n')


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'apache_beam', None)
    monkeypatch.delitem(sys.modules, 'dvq_jax.beam')
    with pytest.raises(InputError, match=r'pip install "dvq_jax\[beam\]"'):
        importlib.import_module('dvq_jax.beam')
