import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from dvq_jax import dataset
from dvq_jax.errors import InputError
from dvq_jax.prepare import prepare

N, D = 300, 8


def write_inputs(folder, queries=60):
    """Embeddings, ids and qrels in a folder; returns them as `prepare` takes them."""
    rng = np.random.default_rng(0)
    np.save(folder / 'docs.npy', rng.normal(size=(N, D)).astype(np.float16))
    np.save(folder / 'queries.npy', rng.normal(size=(queries, D)).astype(np.float32))
    (folder / 'docs.tsv').write_text(''.join(f'd{i}\ttext\n' for i in range(N)))
    (folder / 'queries.tsv').write_text(''.join(f'q{i}\n' for i in range(queries)))
    (folder / 'qrels.txt').write_text(''.join(f'q{i} 0 d{i % N} 1\n' for i in range(queries)))
    named = {'corpus': 'docs.npy', 'corpus_ids': 'docs.tsv', 'queries': 'queries.npy'}
    named |= {'query_ids': 'queries.tsv', 'qrels': 'qrels.txt'}
    return {key: str(folder / name) for key, name in named.items()}


def command(out, **flags):
    module = [sys.executable, '-m', 'dvq_jax.cli.prepare', f'--out={out}']
    return [*module, *(f'--{key}={value}' for key, value in flags.items())]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_prepares_a_dataset(tmp_path):
    given = write_inputs(tmp_path)
    result = prepare(**given, topk=20, out=tmp_path / 'OUT')
    assert {key: result[key] for key in ('documents', 'train', 'dev', 'topk')} == {
        'documents': N, 'train': 57, 'dev': 3, 'topk': 20
    }  # fmt: skip
    opened = dataset.open_dataset(tmp_path / 'OUT')
    docs, queries = np.load(given['corpus']).astype(np.float32), np.load(given['queries'])
    scores = queries @ docs.T
    for split in (opened.train, opened.dev):
        for example in split:
            row = int(example['query_id'].removeprefix('q'))
            np.testing.assert_array_equal(example['embedding'], queries[row])
            np.testing.assert_array_equal(example['topk_ids'], np.argsort(-scores[row])[:20])
            np.testing.assert_allclose(example['topk_scores'], np.sort(scores[row])[::-1][:20], rtol=1e-5)
            assert example['positives'].tolist() == [row]
    assert str(opened.doc_ids_path) == given['corpus_ids']
    assert not [path for path in tmp_path.iterdir() if path.name.startswith('.')]


def test_prepares_without_ids_and_qrels_and_from_parquet(tmp_path):
    pa, pq = pytest.importorskip('pyarrow'), pytest.importorskip('pyarrow.parquet')
    given = write_inputs(tmp_path)
    docs = np.load(given['corpus'])
    pq.write_table(pa.table({'embedding': list(docs)}), tmp_path / 'docs.parquet')
    prepare(corpus=tmp_path / 'docs.parquet', queries=given['queries'], topk=5, out=tmp_path / 'OUT')
    moved = (tmp_path / 'OUT').rename(tmp_path / 'MOVED')
    opened = dataset.open_dataset(moved)
    np.testing.assert_array_equal(opened.corpus, docs)
    assert opened.doc_ids_path is None
    assert {example['query_id'] for example in opened.train} < {str(i) for i in range(60)}
    assert all(not len(example['positives']) for example in opened.train)


def nan_row(path):
    vectors = np.load(path)
    vectors[5, 1] = np.nan
    np.save(path, vectors)


def cut(path):
    os.truncate(path, path.stat().st_size - 1)


def append(line):
    return lambda path: path.write_text(path.read_text() + line)


def repeat_first_line(path):
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(''.join([*lines[:-1], lines[0]]))


def save(shape):
    return lambda path: np.save(path, np.ones(shape, np.float32))


BAD = {
    'wrong dimension': ('queries.npy', save((60, D + 1)), r'queries\.npy: .* 9 dimensions'),
    'NaN in corpus': ('docs.npy', nan_row, r'docs\.npy: row 5 '),
    'NaN in queries': ('queries.npy', nan_row, r'queries\.npy: row 5 '),
    'truncated corpus': ('docs.npy', cut, r'docs\.npy: not a complete'),
    'truncated queries': ('queries.npy', cut, r'queries\.npy: not a complete'),
    'empty corpus': ('docs.npy', save((0, D)), r'docs\.npy: is empty'),
    'no corpus': ('docs.npy', pathlib.Path.unlink, r'docs\.npy: no such file'),
    'duplicate document ids': ('docs.tsv', repeat_first_line, r"docs\.tsv: line 300 repeats the id 'd0'"),
    'duplicate query ids': ('queries.tsv', repeat_first_line, r"queries\.tsv: line 60 repeats the id 'q0'"),
    'too many ids': ('docs.tsv', append('more\n'), r'docs\.tsv: has 301 ids for 300 embeddings'),
    'unknown query': ('qrels.txt', append('q99 0 d1 1\n'), r"qrels\.txt: line 61 names the query 'q99'"),
    'unknown document': ('qrels.txt', append('q1 0 dx 1\n'), r"line 61 names the document 'dx'"),
    'malformed qrels': ('qrels.txt', append('q1 d1\n'), r'qrels\.txt: line 61 is not'),
}


@pytest.mark.parametrize(('name', 'damage', 'message'), BAD.values(), ids=BAD)
def test_bad_input_is_one_sentence_and_leaves_nothing(tmp_path, name, damage, message):
    given = write_inputs(tmp_path)
    damage(tmp_path / name)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=message) as raised:
        prepare(**given, topk=20, out=tmp_path / 'below' / 'OUT')
    assert '\n' not in str(raised.value)
    assert sorted(tmp_path.iterdir()) == before


def test_bad_options_leave_nothing(tmp_path):
    given = write_inputs(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match='has 300 documents, topk is 301'):
        prepare(**given, topk=301, out=tmp_path / 'OUT')
    with pytest.raises(InputError, match=r'docs\.npy: exists already'):
        prepare(**given, topk=20, out=tmp_path / 'docs.npy')
    with pytest.raises(InputError, match='cannot write there'):
        prepare(**given, topk=20, out='/proc/OUT')
    with pytest.raises(InputError, match='cannot write there'):
        prepare(**given, topk=20, out=tmp_path / 'docs.npy' / 'below' / 'OUT')
    assert sorted(tmp_path.iterdir()) == before


def test_the_command_prints_json_or_one_sentence(tmp_path):
    given = write_inputs(tmp_path)
    good = command(tmp_path / 'OUT', **given, topk=20, dev_queries=2)
    done = subprocess.run(good, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result['train'], result['dev']) == (58, 2)
    assert 'mine: 18000/18000 scores (100%)' in done.stderr
    before = contents(tmp_path / 'OUT')
    done = subprocess.run(good, capture_output=True, text=True)
    assert done.returncode == 2
    assert f'error: {tmp_path}/OUT: exists already; remove it or give another output.\n' in done.stderr
    assert 'Traceback' not in done.stderr
    assert done.stdout == ''
    assert contents(tmp_path / 'OUT') == before


def kill_when(process, happened):
    """Sends SIGKILL as soon as `happened()`; the process must still run by then."""
    deadline = time.monotonic() + 120
    while not happened():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()


def test_killed_twice_and_run_again_ends_with_the_same_bytes(tmp_path):
    given = write_inputs(tmp_path, queries=20_000)  # three blocks of mining
    prepare(**given, topk=30, out=tmp_path / 'WHOLE')
    out, mining, aside = (tmp_path / name for name in ('OUT', '.OUT.mining', '.OUT.partial'))

    def start():
        return subprocess.Popen(command(out, **given, topk=30), stderr=subprocess.PIPE, text=True)

    kill_when(start(), lambda: any(mining.glob('*.npz')))
    assert not out.exists()
    finished = {path: path.stat().st_mtime_ns for path in mining.glob('*.npz')}
    kill_when(start(), lambda: any(aside.glob('*-train.*')))
    assert not out.exists()
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert len(list(mining.glob('*.npz'))) == 3
    subprocess.run(command(out, **given, topk=30), capture_output=True, check=True)
    assert contents(out) == contents(tmp_path / 'WHOLE')
    assert not [path for path in tmp_path.iterdir() if path.name.startswith('.')]


def end_of_two(given, *, of_the_second=None):
    """Runs the command as two processes; their exit codes, results and standard errors."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        run = {'coordinator': f'127.0.0.1:{probe.getsockname()[1]}', 'num_processes': 2}
    env = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
    started = [
        subprocess.Popen(
            command(**{**given, **run, 'process_id': number, **changes}),
            env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for number, changes in enumerate([{}, of_the_second or {}])
    ]  # fmt: skip
    said = [process.communicate(timeout=120) for process in started]
    return [(process.returncode, *both) for process, both in zip(started, said, strict=True)]


def test_two_processes_share_the_mining_and_write_the_dataset_of_one(tmp_path):
    given = write_inputs(tmp_path, queries=20_000)  # three blocks of mining
    one = prepare(**given, topk=30, out=tmp_path / 'ONE')
    mined = []
    for code, out, err in end_of_two({**given, 'topk': 30, 'out': tmp_path / 'TWO'}):
        assert code == 0, err
        result = json.loads(out.splitlines()[-1])
        assert result | {'seconds': 0} == one | {'dataset': str(tmp_path / 'TWO'), 'seconds': 0}
        mined += [int(scores) for scores in re.findall(r'mine: \d+/(\d+) scores \(100%\)', err)]
    assert len(mined) == 2 and min(mined) > 0 and sum(mined) == 20_000 * N
    assert contents(tmp_path / 'TWO') == contents(tmp_path / 'ONE')
    assert not [path for path in tmp_path.iterdir() if path.name.startswith('.')]


def test_both_processes_end_where_one_finds_bad_input(tmp_path):
    given = {**write_inputs(tmp_path), 'topk': 20, 'out': tmp_path / 'OUT'}
    begin = time.monotonic()
    first, second = end_of_two(given, of_the_second={'queries': tmp_path / 'none.npy'})
    assert time.monotonic() - begin < 60  # JAX alone would wait for five minutes
    assert first[0] == second[0] == 2
    assert first[2].splitlines()[-1].startswith('error: process 1 of 2 has failed')
    assert 'none.npy: no such file' in second[2].splitlines()[-1]
    assert not [path for path in tmp_path.iterdir() if 'OUT' in path.name]
