"""What an interrupted start does not do again."""

import numpy as np
import pytest

from dvq_jax import initialize, routing
from dvq_jax.errors import InputError
from dvq_jax.stages import Stages
from tests.conftest import shrunk_config
from tests.train_test import arrays, run


def test_a_stage_is_made_once_for_the_same_work(tmp_path):
    made = []

    def make():
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
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Stages(tmp_path / 'S', 'this')('first', interrupted)
    assert Stages(tmp_path / 'S', 'this')('first', lambda: {'a': np.ones(1)})['a'] == 1


def test_a_damaged_stage_is_named_and_what_is_not_ours_stays(tmp_path):
    kept = Stages(tmp_path / 'S', 'this')
    kept('first', lambda: {'a': np.arange(1000)})
    (path,) = (tmp_path / 'S').iterdir()
    (tmp_path / 'S' / 'notes.txt').touch()
    for size in (500, 0):
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(InputError, match=rf'{path.name}: is damaged .* remove it'):
            kept('first', lambda: pytest.fail('it is there'))
    kept.remove()
    assert [left.name for left in (tmp_path / 'S').iterdir()] == ['notes.txt']


# The parts of a start with two rounds and second lists, by where they are, and how often each is done.
PARTS = {'coarse': initialize, 'assign_corpus': routing, 'assign': routing, 'fine': initialize}
DONE = {'coarse': 1, 'assign_corpus': 1, 'assign': 3, 'fine': 1}


def begin(dataset, workdir):
    run(shrunk_config(dataset), workdir, routing__rounds=2, index__copies=2, train__steps=2)


@pytest.fixture(scope='module')
def uninterrupted(collection, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('whole')
    begin(collection['dataset'], workdir)
    return arrays(workdir)


@pytest.mark.parametrize(('part', 'call'), [('assign_corpus', 1), ('assign', 2), ('assign', 3), ('fine', 1)])
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
    for name, array in arrays(tmp_path / 'W').items():
        np.testing.assert_array_equal(array, uninterrupted[name], err_msg=name)
