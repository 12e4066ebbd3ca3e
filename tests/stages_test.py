"""What an interrupted run does not do again."""

import collections
import json
import os
import signal

import numpy as np
import pytest

from dvq_jax import checkpoint, corpus, encode, initialize, routing
from dvq_jax.errors import InputError
from dvq_jax.stages import Stages
from tests.conftest import shrunk_config
from tests.runs import arrays, run


def test_a_stage_is_made_once_for_the_same_work(tmp_path):
    made = []

    def make(_where):
        made.append(1)
        return {'a': np.arange(3, dtype=np.int32), 'loss': np.float32(0.5)}

    for of in ('this', 'this', 'other', 'this'):
        found = Stages(tmp_path / 'S', of)('first', make)
        np.testing.assert_array_equal(found['a'], [0, 1, 2])
        assert found['a'].dtype == np.int32 and f'{found["loss"]:.2f}' == '0.50'
    assert len(made) == 2
    Stages(tmp_path / 'S', 'this').remove()
    assert not (tmp_path / 'S').exists()
    Stages(tmp_path / 'S', 'this')('first', make)
    assert len(made) == 3


def test_a_stage_that_is_interrupted_leaves_nothing(tmp_path):
    def interrupted(_where):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Stages(tmp_path / 'S', 'this')('first', interrupted)
    assert Stages(tmp_path / 'S', 'this')('first', lambda _: {'a': np.ones(1)})['a'] == 1


def test_the_blocks_of_a_stage_stay_until_it_is_kept(tmp_path):
    kept = Stages(tmp_path / 'S', 'this')

    def interrupted(where):
        where('pass')[0] = {'a': np.arange(3)}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept('first', interrupted)
    for other in (kept, Stages(tmp_path / 'S', 'that')):
        assert not other('second', lambda where: {'there': np.array(0 in where('pass'))})['there']
    assert kept('first', lambda where: where('pass')[0])['a'].tolist() == [0, 1, 2]
    assert {path.name.split('.', 1)[0] for path in (tmp_path / 'S').iterdir()} == {'first', 'second'}
    assert all(path.name.endswith('.stage.npz') for path in (tmp_path / 'S').iterdir())


def test_a_damaged_stage_is_named_and_what_is_not_ours_stays(tmp_path):
    kept = Stages(tmp_path / 'S', 'this')
    kept('first', lambda _: {'a': np.arange(1000)})
    (path,) = (tmp_path / 'S').iterdir()
    (tmp_path / 'S' / 'notes.txt').touch()
    for size in (500, 0):
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(InputError, match=rf'{path.name}: is damaged .* remove it'):
            kept('first', lambda _: pytest.fail('it is there'))
    kept.remove()
    assert [left.name for left in (tmp_path / 'S').iterdir()] == ['notes.txt']


# The parts of a start with two rounds and second lists, by where they are, and how often each is done.
PARTS = {
    'coarse': initialize,
    'assign_corpus': routing,
    '_train': routing,
    'assign': routing,
    'fine': initialize,
}
DONE = {'coarse': 1, 'assign_corpus': 1, '_train': 2, 'assign': 3, 'fine': 1}


def begin(dataset, workdir):
    return run(shrunk_config(dataset), workdir, routing__rounds=2, index__copies=2, train__steps=2)


@pytest.fixture(scope='module')
def uninterrupted(collection, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('whole')
    begin(collection['dataset'], workdir)
    return workdir


@pytest.mark.parametrize(('part', 'call'), [('assign', 2), ('fine', 1)])
def test_an_interrupted_start_goes_on(part, call, collection, uninterrupted, tmp_path, monkeypatch):
    ended = dict.fromkeys(PARTS, 0)

    def counted(name, function):
        def call_it(*args, **kwargs):
            if (name, ended[name] + 1) == stop_at:
                raise KeyboardInterrupt
            result = function(*args, **kwargs)
            ended[name] += 1
            return result

        return call_it

    for name, module in PARTS.items():
        monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    stop_at = part, call
    with pytest.raises(KeyboardInterrupt):
        begin(collection['dataset'], tmp_path / 'W')
    assert (tmp_path / 'W' / 'start').exists()
    stop_at = None
    begin(collection['dataset'], tmp_path / 'W')
    assert ended == DONE and not (tmp_path / 'W' / 'start').exists()
    assert_same(tmp_path / 'W', uninterrupted)


def assert_same(workdir, other):
    """Parameters, lists, and what was measured."""
    theirs = arrays(other)
    for name, array in arrays(workdir).items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)
    ours, theirs = (
        [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
        for folder in (workdir, other)
    )
    for line in ours + theirs:
        for name in ('time', 'examples_per_second', 'data_wait'):
            line.pop(name, None)
    assert ours == theirs
    about = [checkpoint.read_about(folder, 2) for folder in (workdir, other)]
    assert about[0]['history'] == about[1]['history'] and set(about[0]['history']) == {'0', '2'}


def test_no_finished_block_is_done_again(collection, uninterrupted, tmp_path, monkeypatch):
    """SIGTERM and a kill in passes of the start, SIGTERM in the second encoding for the dev queries."""
    done = collections.Counter()
    stops = {('assign', 1, 1): 'SIGTERM', ('route documents', 1, 2): 'kill', ('encode', 1, 2): 'SIGTERM'}

    def counted(make):
        def call_it(work, number, progress):
            block = work.label, number
            done[block] += 1
            stop = stops.pop((*block, done[block]), None)
            if stop == 'SIGTERM':
                os.kill(os.getpid(), signal.SIGTERM)
            elif stop == 'kill':
                done[block] -= 1
                raise KeyboardInterrupt
            return make(work, number, progress)

        return call_it

    for module, work in ((corpus, corpus.Pass), (encode, encode.Encoder)):
        monkeypatch.setattr(module, '_REGION', 500)  # three of documents, three of queries
        monkeypatch.setattr(work, '__call__', counted(work.__call__))
    assert begin(collection['dataset'], tmp_path)['preempted'] == 0
    assert dict(done) == {('assign', 0): 1, ('assign', 1): 1}
    with pytest.raises(KeyboardInterrupt):
        begin(collection['dataset'], tmp_path)
    assert begin(collection['dataset'], tmp_path)['preempted'] == 0
    assert checkpoint.available_steps(tmp_path) == [0]
    assert begin(collection['dataset'], tmp_path)['step'] == 2 and not stops
    often = {'assign': 1, 'probe': 3, 'route documents': 3, 'encode': 2}
    assert dict(done) == {(label, number): count for label, count in often.items() for number in range(3)}
    assert_same(tmp_path, uninterrupted)
