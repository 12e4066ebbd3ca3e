"""What the loop waits for, and when."""

import json
import types

import jax
import numpy as np

from dvq_jax import train


def run_of(workdir):
    config = types.SimpleNamespace(
        train=types.SimpleNamespace(log_every=2, profile=3), data=types.SimpleNamespace(batch_size=8)
    )
    return types.SimpleNamespace(workdir=workdir, config=config, steps=20)


def test_metrics_are_fetched_together_and_a_step_late(tmp_path, monkeypatch):
    start = types.SimpleNamespace(state=types.SimpleNamespace(step=0), resumed=False)
    fetched, get = [], jax.device_get

    def note(values):
        fetched.append([int(value['loss']) for value in values])
        return get(values)

    monkeypatch.setattr(jax, 'device_get', note)
    log, seen = train._Log(run_of(tmp_path), start), []
    for step in range(1, 6):
        log.add(step, {'loss': np.float32(step)}, ('q',), waited=0.5)
        seen.append(list(fetched))
    log.flush()
    log.flush()
    log.close()
    assert seen == [[], [], [[1, 2]], [[1, 2]], [[1, 2], [3, 4]]]
    assert fetched == [[1, 2], [3, 4], [5]]
    lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    assert [(line['step'], line['loss']) for line in lines] == [(2, 2.0), (4, 4.0), (5, 5.0)]


def test_a_profile_ends_when_its_steps_have(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(jax.profiler, 'start_trace', lambda folder: done.append(folder))
    monkeypatch.setattr(jax.profiler, 'stop_trace', lambda: done.append('stop'))
    monkeypatch.setattr(jax, 'block_until_ready', lambda values: done.append(values))
    for steps in (20, 5):
        trace = train._Trace(run_of(tmp_path))
        for step in range(1, steps + 1):
            trace.before(step)
            trace.after(step, {'step': step})
        trace.close()
    profile = str(tmp_path / 'profile')
    assert done == [profile, {'step': 12}, 'stop', profile, {'step': 5}, 'stop']
