import os
import signal

import numpy as np
import pytest
from jax.experimental import multihost_utils

from dvq_jax import checkpoint, preemption
from dvq_jax.train_step import TrainState


def test_who_watches_is_told_of_sigterm_and_nobody_else():
    before = signal.getsignal(signal.SIGTERM)
    with preemption.watch():
        preemption.leave_if_noticed()
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.noticed()
        with pytest.raises(preemption.Preempted):
            preemption.leave_if_noticed()
    assert not preemption.noticed() and signal.getsignal(signal.SIGTERM) is before
    with preemption.watch():
        assert not preemption.noticed()


def test_jax_is_asked_about_one_place_after_the_other_and_by_nobody_else(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(multihost_utils, 'reached_preemption_sync_point', lambda place: asked.append(place))
    checkpoints = checkpoint.Checkpoints(tmp_path, metric='RR@10')
    state = TrainState(step=np.int32(7), params={'a': np.ones(2)}, opt_state={'b': np.ones(2)})
    preemption.leave_if_noticed()  # nobody watches
    with preemption.watch():
        preemption.leave_if_noticed()
        checkpoints.save(state, about={}, metrics={})
        preemption.leave_if_noticed()
    checkpoints.close()
    assert checkpoint.available_steps(tmp_path) == [7]
    assert asked == [asked[0], asked[0] + 1]
