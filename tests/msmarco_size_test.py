"""What is measured on a part and said of the whole."""

import functools
import json
import os
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest
from conftest import shrunk_config

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / 'benchmarks'))

import floors
import msmarco_stages
import stopwatch
import synthetic

ROOT = pathlib.Path(__file__).parent.parent
SIZE = msmarco_stages.Size(
    documents=3000, dim=16, queries=2000, topk=20, some_queries=500, some_documents=1000, steps=10
)


def test_a_stopwatch_leaves_out_what_is_watched_too(monkeypatch):
    now = 0.0

    def work(seconds):
        nonlocal now
        now += seconds

    def outer():
        steps.inner(1)
        work(5)
        steps.inner(2)
        return 'done'

    monkeypatch.setattr(stopwatch.time, 'perf_counter', lambda: now)
    steps, watch = types.SimpleNamespace(inner=work, outer=outer), stopwatch.Stopwatch()
    with (
        watch.watch(steps, 'outer', 'all'),
        watch.watch(steps, 'inner', lambda count: f'of {count}', lambda count: 10 * count),
    ):
        assert steps.outer() == 'done'
    assert steps.inner is work
    steps.inner(1)  # nobody looks
    assert watch.calls == {'of 1': [(10, 1.0)], 'of 2': [(20, 2.0)], 'all': [(1, 5.0)]}


def test_the_first_call_counts_for_what_it_took_beyond_the_others():
    stage = stopwatch.Stage('train', 'steps', [(10, 7.0), (10, 2.0), (20, 4.0)], total=1000)
    assert stage.seconds == (2 + 4) / (10 + 20)
    assert stage.projected == pytest.approx((7 - 10 * 0.2) + 1000 * 0.2)
    once = stopwatch.Stage('train', 'OPQ', [(1, 3.0)], total=1, floor=floors.Floor(flops=6.0))
    assert once.projected == 3.0
    peaks = {'measured': {'float32': 4.0, 'bfloat16': 8.0, 'bytes': 1.0}}
    assert once.row(peaks)['fractions'] == {'measured': {'float32': 0.5, 'bfloat16': 0.25}}


def test_stages_grow_with_what_they_are_of():
    config = shrunk_config('')
    config.data.batch_size, config.train.passes, config.train.checkpoint_every = 16, 3.0, 100
    calls = {
        'mining': [(500, 1.0)],
        'k-means': [(1, 5.0)],
        'centroids by queries': [(30, 1.0), (30, 1.0)],
        'steps': [(2, 1.0)] * 5,
        'encoding': [(1000, 1.0)] * 2,
        'dev metrics': [(1, 2.0)] * 2,
        'export': [(1, 4.0)],
    }
    stages = {stage.name: stage for stage in msmarco_stages.project(calls, config, SIZE)}
    left, some_left = 2000 - 2000 // 20, 500 - 500 // 20  # after the queries that are held out
    steps = -(-3 * left // 16)
    saves = 1 + -(-steps // 100)
    assert stages['mining'].total == 2000 and stages['steps'].total == steps
    assert stages['encoding'].total == saves * 3000 and stages['dev metrics'].total == saves == 5
    assert stages['centroids by queries'].total == pytest.approx(60 * left / some_left)
    assert stages['k-means'].total == stages['export'].total == 1
    commands = [stages[name].command for name in ('mining', 'steps', 'export')]
    assert commands == ['prepare', 'train', 'export']
    mined = floors.mining(documents=3000, queries=500, dim=16, topk=20, width=2)
    assert stages['mining'].floor.flops == pytest.approx(mined.flops / 500)
    assert {name for name, stage in stages.items() if stage.floor} == {
        'mining',
        'k-means',
        'steps',
        'encoding',
    }


def test_vectors_are_those_of_their_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, '_BLOCK', 64)
    for name, seed in (('a', 0), ('b', 0), ('c', 1)):
        synthetic.write_vectors(tmp_path / f'{name}.npy', rows=200, dim=16, seed=seed)
    a, b, c = (np.load(tmp_path / f'{name}.npy') for name in 'abc')
    np.testing.assert_array_equal(a, b)
    assert a.dtype == np.float16 and a.shape == (200, 16) and np.mean(a == c) < 0.1
    assert len(np.unique(a[:, 0])) > 100  # blocks do not repeat
    np.testing.assert_allclose(np.linalg.norm(a.astype(np.float32), axis=1), 1, atol=1e-3)


def test_some_is_measured_and_all_is_said(tmp_path):
    sizes = {'documents': 3000, 'dim': 16, 'lists': 16, 'codebooks': 4, 'nprobe': 4, 'queries': 2000}
    sizes |= {'topk': 20, 'batch_size': 16, 'some_queries': 500, 'some_documents': 1000, 'steps': 10}
    settings = {'index.codewords': 16, 'initialize.opq_iterations': 2, 'initialize.coarse_iterations': 2}
    settings |= {'initialize.pq_iterations': 1, 'routing.rounds': 1, 'codes.queries': 8, 'train.passes': 0.5}
    out = tmp_path / 'out.json'
    command = [sys.executable, 'benchmarks/msmarco_size.py', f'--workdir={tmp_path / "W"}', f'--out={out}']
    command += [f'--{name}={value}' for name, value in sizes.items()]
    command += [f'--config.{name}={value}' for name, value in settings.items()]
    env = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}
    run = functools.partial(subprocess.run, cwd=ROOT, env=env, text=True, capture_output=True, timeout=300)
    done = run(command)
    assert done.returncode == 0, done.stderr[-2000:]
    stored = json.loads(out.read_text())
    watched = {stage for _, _, stage, *_ in msmarco_stages._WATCHED if isinstance(stage, str)}
    found = {row['name'] for row in stored['stages']}
    watched |= {'k-means', 'OPQ', 'first lists', 'sums by list', 'export'}
    assert found >= watched - {'encoding for few'}
    assert {'steps', 'encoding'} <= found and 'encoding for few' not in found
    assert list(stored['projected_seconds']) == ['prepare', 'train', 'export']
    assert done.stdout.count('\n') == len(found) + 2 + 1 + 2 + 4
    assert run([*command[:2], f'--out={out}', '--report_only']).stdout == done.stdout

    kept = tmp_path / 'W' / 'measured.json'  # as it is when training is interrupted
    measured = json.loads(kept.read_text())
    for stage in ('the rest of train', 'encoding'):
        del measured['calls'][stage]
    kept.write_text(json.dumps({**measured, 'finished': False}))
    some = run([*command, '--unfinished'])
    assert some.stdout.startswith('Interrupted') and some.returncode == 0
    known = {row['name'] for row in json.loads(out.read_text())['stages']}
    assert known == found - {'the rest of train', 'encoding', 'export'}
    other = run([*command, '--unfinished', '--steps=11'])
    assert other.returncode == 2 and '--unfinished' in other.stderr
