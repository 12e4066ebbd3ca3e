import numpy as np
import pytest
from jax.experimental import multihost_utils

from dvq_jax import blocks, peers
from dvq_jax.errors import InputError


@pytest.fixture
def told(monkeypatch):
    """What this process tells the two others; they have failed or not."""
    told = []

    def all_gather(failed):
        told.append(bool(failed))
        return np.array([failed, others, others])

    def meet(state):
        nonlocal others
        others = state
        return told

    others = False
    monkeypatch.setattr(multihost_utils, 'process_allgather', all_gather)
    return meet


def fail(error):
    raise error


def test_all_come_through(told):
    said = told(False)
    with peers.all_or_none():
        assert said == []
    assert said == [False]


@pytest.mark.parametrize('others', [False, True])
@pytest.mark.parametrize('error', [InputError('mine'), OSError('disk')])
def test_what_fails_here_is_told_and_raised_as_it_is(told, others, error):
    said = told(others)
    with pytest.raises(type(error)) as raised, peers.all_or_none():
        fail(error)
    assert raised.value is error and said == [True]


def test_who_fails_elsewhere_is_named(told):
    told(True)
    with pytest.raises(InputError, match='process 1 of 3 '), peers.all_or_none():
        pass


def test_one_process_is_alone():
    with peers.all_or_none():
        pass
    with pytest.raises(OSError, match='disk'), peers.all_or_none():
        fail(OSError('disk'))


def test_blocks_that_are_shared_fail_together(told, tmp_path):
    class Work:
        label, unit, blocks = 'fail', 'rows', (slice(0, 1),)

        def size(self, number):
            return 1

        def __call__(self, number, progress):
            fail(OSError('disk'))

    said = told(False)
    with pytest.raises(OSError, match='disk'):
        blocks.finish(Work())
    assert said == []
    with pytest.raises(OSError, match='disk'):
        blocks.finish(Work(), blocks.Parts(tmp_path))
    assert said == [True]
