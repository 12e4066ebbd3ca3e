import functools
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / 'benchmarks'))

import processes
import speed_choosing
import speed_clustering
import speed_corpus
import speed_floors
import speed_input
import speed_report
import speed_scaling
import speed_search
import speed_step
import speed_timing
from conftest import clustered

DOCS, DIM, LISTS = 1500, 32, 16
MACHINE = {'cpu': 'a processor', 'jax': '1.2.3'}
PEAKS = {'float32': 1e9, 'bfloat16': 1e9, 'bytes': 1e9}
FLOORS = {'step', 'large_step', 'mining', 'large_mining', 'encoding', 'choosing', 'clustering'}


@pytest.fixture(autouse=True)
def quick_compilation(monkeypatch):
    """Here and in processes of their own: compiling is most of the time, and none is measured."""
    monkeypatch.setenv('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
    before = jax.config.read('jax_disable_most_optimizations')
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', before)


@pytest.fixture(scope='module')
def vectors():
    points = clustered(np.random.default_rng(3), DOCS + 40, DIM)
    return points[:DOCS], points[DOCS:]


def report(part, rows):
    """The lines of a part's table, without its head."""
    measured = {'cores': 2, 'repeats': 3, 'peaks': {'measured': PEAKS}, 'rows': rows}
    stored = json.loads(json.dumps({'machine': MACHINE, part: measured}))
    first, title, *table = speed_report.markdown(stored).split('\n\n')
    assert first == 'a processor; jax 1.2.3.' and title.endswith('(2 cores, 3 rounds)')
    assert (len(table) > 1) == (part in FLOORS)
    if part in FLOORS:
        shares = table[2].splitlines()
        assert '% | ' in shares[-1] and len({line.count('|') for line in shares}) == 1
    lines = table[0].splitlines()
    assert len({line.count('|') for line in lines}) == 1
    return lines[2:]


def test_sides_take_turns_and_the_first_round_does_not_count():
    called = []
    seconds = speed_timing.in_turn({name: lambda name=name: called.append(name) for name in 'ab'}, 2)
    assert called == list('ababab') and set(seconds) == {'a', 'b'}


def test_a_process_apart_gets_its_cores_and_its_environment():
    before = os.sched_getaffinity(0), dict(os.environ)
    assert len(processes.apart(functools.partial(os.sched_getaffinity, 0), cores=1)) == 1
    assert processes.apart(functools.partial(os.getenv, 'DVQ_SPEED'), environment={'DVQ_SPEED': 'x'}) == 'x'
    assert (os.sched_getaffinity(0), dict(os.environ)) == before


def test_memory_is_looked_at_while_work_goes_on():
    def work():
        held = np.ones(2**24)
        return float(held.sum())

    before = processes.anonymous_memory(os.getpid())
    result, peak = processes.with_peak(work)
    assert result == 2**24 and peak >= before > 0
    assert processes.anonymous_memory(2**30) == 0


def test_step():
    pytest.importorskip('torch')
    rows = speed_step.measure(dims=[32], books=[4], candidates=[2], batch_size=8, repeats=1)
    assert len(report('step', rows)) == 1 and rows[0]['peer_over_ours']['hard'] > 0


def test_a_large_step_is_ours_alone():
    sizes = {'dim': 32, 'codebooks': 4, 'lists': 40, 'candidates': 6, 'batch_size': 8}
    rows = speed_step.measure_large(**sizes, repeats=1)
    assert set(rows[0]['seconds']) == {'float32', 'bfloat16'} and len(report('large_step', rows)) == 1
    reached = [found for _, found in speed_floors.reached({'large_step': {'cores': 2, 'rows': rows}})]
    assert [found.path for found in reached] == ['step, float32', 'step, bfloat16']
    assert int(speed_step.make_batch(batch_size=8, candidates=6, dim=32, lists=40).lists.max()) < 40


def test_corpus(vectors):
    docs, queries = vectors
    mined = speed_corpus.mining(docs, queries, topk=5, repeats=1)
    encoded = speed_corpus.encoding(docs, lists=LISTS, codebooks=4, repeats=1)
    assert mined['same'] > 0.99 and encoded['same'] > 0.99
    assert 'ours' in encoded['seconds'] and len(report('mining', [mined])) == 1
    assert len(report('encoding', [encoded])) == 1


def test_large_mining_is_of_blocks_that_find_the_corpus_there(monkeypatch):
    mined = []
    monkeypatch.setattr(
        speed_corpus.teacher.Mining, '__call__', lambda _, number, progress: mined.append(number)
    )
    row = speed_corpus.large_mining(documents=600, dim=16, queries=30, topk=5, repeats=2)
    assert mined == [0, 1, 2] and len(report('large_mining', [row])) == 1


def test_a_perturbed_corpus_is_the_documents_and_others_near_them(vectors):
    docs = vectors[0] / np.linalg.norm(vectors[0], axis=1, keepdims=True)
    first, second, third = speed_corpus.perturbed(docs, 3).reshape(3, *docs.shape)
    np.testing.assert_allclose(first, docs, rtol=1e-6)
    near, less_near = (np.sum(docs * copy, axis=1).mean() for copy in (second, third))
    assert 0.5 < less_near < near < 1
    np.testing.assert_allclose(np.linalg.norm(third, axis=1), 1, rtol=1e-6)


def test_choosing_codes(small_config):
    row = speed_choosing.measure(small_config, repeats=1)
    assert set(row['seconds']) == {'chosen', 'nearest'} and len(report('choosing', [row])) == 1
    assert 0 < row['wanted'] <= row['documents'] and row['wanted'] <= row['pairs']


def test_clustering_does_equal_work(vectors):
    sizes = {'lists': LISTS, 'codebooks': 4, 'iterations': 6, 'pq_iterations': 3}
    rows = speed_clustering.measure(vectors[0], **sizes, repeats=1)
    assert [row['fit'] for row in rows] == ['k-means', 'OPQ'] and len(report('clustering', rows)) == 2
    assert all(0.8 < row['distortion_ratio'] < 1.25 for row in rows)


def test_search_finds_the_same_by_every_engine(vectors):
    sizes = {'lists': LISTS, 'codebooks': 8, 'codewords': 16, 'nprobe': [4, LISTS], 'k': 20}
    rows = speed_search.measure(*vectors, **sizes, cores=[1], repeats=1)
    assert [row['nprobe'] for row in rows] == [4, LISTS] and len(report('search', rows)) == 2 * 6
    for row in rows:
        recall = row['teacher@10']
        assert set(recall) == set(row['queries_per_second']) == set(speed_report._ENGINES)
        assert all(abs(value - recall['reference']) < 0.1 for value in recall.values()), recall
    assert set(rows[1]['documents_scanned'].values()) == {DOCS}


def test_scaling():
    rows = speed_scaling.scaling(sizes=[2000], dim=16, repeats=1)
    assert len(report('scaling', rows)) == 1 and rows[0]['documents'] == 2000
    assert rows[0]['anonymous_mib']['peak'] >= rows[0]['anonymous_mib']['before'] > 0


def test_devices_agree_on_the_loss():
    rows = speed_scaling.devices(counts=[1, 2], dim=32, batch_size=8, repeats=1)
    assert [row['devices'] for row in rows] == [1, 2] and len(report('devices', rows)) == 2
    assert rows[1]['loss_difference'] < 1e-4 and len(rows[1]['losses']) == 2


def test_input(small_config):
    row = speed_input.measure(small_config, batches=2, repeats=1)
    assert set(row['seconds']) == {'input', 'ids', 'step', 'both'} and len(report('input', [row])) == 1
    assert small_config.codes.queries  # the caller's config is as it was


def test_what_several_queries_bring(small_config):
    rows = [speed_input.measure_once(small_config, text, repeats=1) for text in ('top1+ib', 'top50+ib')]
    assert 0 <= rows[0]['brought_again'] < rows[1]['brought_again'] < 1
    assert (
        all(set(row['seconds']) == {'once', 'each_time'} for row in rows) and len(report('once', rows)) == 2
    )


def test_the_command_leaves_out_what_it_cannot_measure_and_prints_what_is_stored(tmp_path):
    out = tmp_path / 'speed.json'
    seconds = {'input': 0.1, 'ids': 0.02, 'step': 0.2, 'both': 0.25}
    sizes = {'documents': 9, 'dim': 4, 'batch_size': 2, 'candidates': 3}

    def command(*flags):
        call = [sys.executable, speed_report.__file__.replace('_report', ''), f'--out={out}', *flags]
        return subprocess.run(call, capture_output=True, text=True, check=False)

    done = command('--parts=input')
    assert done.returncode == 0 and 'it needs --dataset' in done.stderr
    rows = [{**sizes, 'seconds': seconds}]
    out.write_text(json.dumps({'machine': MACHINE, 'input': {'cores': 2, 'repeats': 3, 'rows': rows}}))
    assert '| 10.0 | 50.0 | 5.00 | 4.00 | 2.00 × |' in command('--report_only').stdout
