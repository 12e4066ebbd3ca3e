"""The commands export and search, as a user runs them, on a small trained index."""

import json
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

import dvq_jax
from dvq_jax import evaluate
from dvq_jax.export import manifest
from dvq_jax.prepare import prepare

DOCS, DIM, QUERIES, LISTS = 600, 16, 50, 8
ROOT = pathlib.Path(dvq_jax.__file__).parents[1]


def command(name, **flags):
    return [
        sys.executable,
        '-m',
        f'dvq_jax.cli.{name}',
        *(f'--{key}={value}' for key, value in flags.items()),
    ]


def run(name, **flags):
    """Runs a command; returns what it says on stdout's last line."""
    done = subprocess.run(command(name, **flags), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def refused(name, **flags):
    """Runs a command that must end with one sentence and exit code 2; returns the sentence."""
    done = subprocess.run(command(name, **flags), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert 'Traceback' not in done.stderr
    return done.stderr.splitlines()[-1]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with inputs, a dataset, and a run of two training steps with a linear query tower."""
    path = tmp_path_factory.mktemp('export')
    rng = np.random.default_rng(0)
    docs = rng.normal(size=(DOCS, DIM))
    docs /= np.linalg.norm(docs, axis=1, keepdims=True)
    np.save(path / 'docs.npy', docs.astype(np.float16))
    np.save(path / 'queries.npy', (docs[:QUERIES] + 0.2 * rng.normal(size=(QUERIES, DIM))).astype(np.float32))
    (path / 'docs.tsv').write_text(''.join(f'd{row}\ttext\n' for row in range(DOCS)))
    (path / 'queries.tsv').write_text(''.join(f'q{row}\n' for row in range(QUERIES)))
    (path / 'qrels.txt').write_text(''.join(f'q{row} 0 d{row} 1\n' for row in range(QUERIES)))
    names = {
        'corpus': 'docs.npy',
        'corpus_ids': 'docs.tsv',
        'queries': 'queries.npy',
        'query_ids': 'queries.tsv',
    }
    given = {key: str(path / name) for key, name in names.items()}
    prepare(**given, qrels=str(path / 'qrels.txt'), topk=20, out=path / 'dataset')
    settings = {
        'data.dataset': path / 'dataset',
        'data.batch_size': 16,
        'index.lists': LISTS,
        'index.codebooks': 8,
        'index.codewords': 16,
        'initialize.opq_iterations': 2,
        'routing.rounds': 1,
        'codes.queries': 4,
        'candidates': 'top20:4+ib',
        'tower.name': 'linear',
        'train.steps': 2,
        'train.checkpoint_every': 2,
        'eval.nprobe': 2,
    }
    flags = {f'config.{key}': value for key, value in settings.items()}
    run('train', config='configs/default.py', workdir=path / 'run', **flags)
    run('export', workdir=path / 'run', lookup='float', out=path / 'index')
    return path


def search_flags(folder, **changes):
    flags = {'index': 'index', 'queries': 'queries.npy', 'query_ids': 'queries.tsv', 'qrels': 'qrels.txt'}
    return {key: folder / name for key, name in flags.items()} | {'k': 100, 'nprobe': 3} | changes


def test_search_reproduces_evaluate(folder, tmp_path):
    trained, source = evaluate.open_trained(folder / 'run', 'latest')
    queries = evaluate.read_queries(
        folder / 'queries.npy', query_ids=folder / 'queries.tsv', qrels=folder / 'qrels.txt', dataset=source
    )
    expected = evaluate.evaluate_trained(trained, source, queries, nprobe=[3], run_prefix=f'{tmp_path}/')
    said = run('search', **search_flags(folder, out=tmp_path / 'found.trec'))
    for name in ('RR@10', 'R@10', 'R@50', 'R@100', 'nDCG@10'):
        assert said[name] == pytest.approx(expected['nprobe']['3'][name], abs=1e-9)
    found, wanted = (
        [line.split() for line in (tmp_path / name).read_text().splitlines()]
        for name in ('found.trec', '3.trec')
    )
    assert [(line[0], line[3]) for line in found] == [(line[0], line[3]) for line in wanted]
    np.testing.assert_allclose(
        [float(line[4]) for line in found], [float(line[4]) for line in wanted], rtol=1e-4, atol=1e-6
    )
    # Documents of one list and code tie; which comes first is each engine's own affair.
    scores = {(line[0], line[2]): float(line[4]) for line in wanted}
    both = [line for line in found if (line[0], line[2]) in scores]
    assert len(both) > 0.99 * len(found)
    expected_scores = [scores[line[0], line[2]] for line in both]
    np.testing.assert_allclose([float(line[4]) for line in both], expected_scores, rtol=1e-4, atol=1e-6)


def test_faiss_finds_the_same(folder, tmp_path):
    said = run('export', workdir=folder / 'run', format='faiss', step=2, out=tmp_path / 'index')
    assert (said['step'], said['documents']) == (2, DOCS)
    queries = np.load(folder / 'queries.npy')
    one, two = (
        dvq_jax.open_index(path).search(queries, k=10, nprobe=3)
        for path in (folder / 'index', tmp_path / 'index')
    )
    np.testing.assert_allclose(one[0], two[0], atol=1e-5)
    np.testing.assert_array_equal(one[1], two[1])


def test_killed_export_runs_again_to_the_same_bytes(folder, tmp_path):
    flags = {'workdir': folder / 'run', 'lookup': 'float', 'out': tmp_path / 'index'}
    aside = tmp_path / '.index.partial'
    killed = subprocess.Popen(command('export', **flags), cwd=ROOT, stderr=subprocess.DEVNULL)
    while not (aside / 'hashed_dataset.npy').exists():
        assert killed.poll() is None
        time.sleep(0.005)
    killed.kill()
    killed.wait()
    assert aside.exists()
    assert not (tmp_path / 'index').exists()
    run('export', **flags)
    one, two = (
        {p.name: p.read_bytes() for p in path.iterdir()} for path in (folder / 'index', tmp_path / 'index')
    )
    assert one == two
    assert not aside.exists()


def test_export_refuses_in_one_sentence(folder, tmp_path):
    assert 'exists already' in refused('export', workdir=folder / 'run', out=folder / 'index')
    missing = refused('export', workdir=tmp_path / 'nowhere', out=tmp_path / 'index')
    assert str(tmp_path / 'nowhere') in missing
    assert '--lookup' in refused(
        'export', workdir=folder / 'run', out=tmp_path / 'i', format='faiss', lookup='int8'
    )
    assert '/proc' in refused('export', workdir=folder / 'run', out='/proc/index')
    assert not list(tmp_path.iterdir())


def test_search_refuses_in_one_sentence(folder, tmp_path):
    out = tmp_path / 'found.trec'
    (tmp_path / 'in').mkdir()
    np.save(tmp_path / 'in' / 'narrow.npy', np.ones((QUERIES, DIM - 1), np.float32))
    (tmp_path / 'in' / 'qrels.txt').write_text('q1 0 nobody 1\n')
    half = tmp_path / 'in' / 'index'
    half.mkdir()
    for path in (folder / 'index').iterdir():
        if path.name != manifest.NAME:
            (half / path.name).write_bytes(path.read_bytes())
    for changes, message in (
        ({'queries': tmp_path / 'in' / 'narrow.npy'}, f'[50, {DIM - 1}]'),
        ({'qrels': tmp_path / 'in' / 'qrels.txt'}, "'nobody'"),
        ({'index': half}, 'not a finished index'),
        ({'nprobe': LISTS + 1}, 'nprobe is 9'),
    ):
        assert message in refused('search', **search_flags(folder, out=out, **changes))
    assert not out.exists()
