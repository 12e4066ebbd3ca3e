import os

import numpy as np
import pytest

from dvq_jax import data
from dvq_jax.errors import InputError

RNG = np.random.default_rng(0)
VECTORS = RNG.normal(size=(7, 4)).astype(np.float32)


def write_npy(path, vectors):
    np.save(path, vectors)


def write_fvecs(path, vectors):
    header = np.full((len(vectors), 1), vectors.shape[1], '<i4').view('<f4')
    np.hstack([header, vectors.astype('<f4')]).tofile(path)


def write_fbin(path, vectors):
    path.write_bytes(np.array(vectors.shape, '<i4').tobytes() + vectors.astype('<f4').tobytes())


WRITERS = {'.npy': write_npy, '.fvecs': write_fvecs, '.fbin': write_fbin}


@pytest.mark.parametrize('suffix', WRITERS)
def test_open_embeddings_maps_what_was_written(tmp_path, suffix):
    path = tmp_path / f'docs{suffix}'
    WRITERS[suffix](path, VECTORS)
    found = data.open_embeddings(path)
    np.testing.assert_array_equal(found, VECTORS)
    assert found.dtype == np.float32
    assert isinstance(found, np.memmap)


def test_open_embeddings_keeps_float16(tmp_path):
    np.save(tmp_path / 'docs.npy', VECTORS.astype(np.float16))
    assert data.open_embeddings(tmp_path / 'docs.npy').dtype == np.float16


@pytest.mark.parametrize('suffix', WRITERS)
@pytest.mark.parametrize('keep', [1, 5, 0.5, -1], ids='{}'.format)
def test_open_embeddings_rejects_a_truncated_file(tmp_path, suffix, keep):
    path = tmp_path / f'docs{suffix}'
    WRITERS[suffix](path, VECTORS)
    size = path.stat().st_size
    os.truncate(path, {0.5: size // 2, -1: size - 1}.get(keep, keep))
    with pytest.raises(InputError, match=r'docs.*write it again'):
        data.open_embeddings(path)


@pytest.mark.parametrize('suffix', WRITERS)
def test_open_embeddings_rejects_an_empty_file(tmp_path, suffix):
    path = tmp_path / f'docs{suffix}'
    path.touch()
    with pytest.raises(InputError, match='docs'):
        data.open_embeddings(path)


@pytest.mark.parametrize(
    ('array', 'message'),
    [
        (np.zeros((0, 4), np.float32), 'is empty'),
        (np.zeros((4, 0), np.float32), 'is empty'),
        (np.zeros(4, np.float32), r'shape \[4\]'),
        (np.zeros((2, 3, 4), np.float32), r'shape \[2, 3, 4\]'),
        (np.zeros((3, 4), np.float64), 'holds float64'),
        (np.zeros((3, 4), '>f4'), 'holds >f4'),
        (np.zeros((3, 4), np.int8), 'holds int8'),
        (np.array([['a']], object), 'not a complete .npy'),
    ],
)
def test_open_embeddings_rejects_other_arrays(tmp_path, array, message):
    np.save(tmp_path / 'docs.npy', array, allow_pickle=True)
    with pytest.raises(InputError, match=message):
        data.open_embeddings(tmp_path / 'docs.npy')


@pytest.mark.parametrize(
    ('name', 'message'), [('none.npy', 'no such file'), ('docs.txt', 'unknown kind'), ('.', 'unknown kind')]
)
def test_open_embeddings_rejects_other_paths(tmp_path, name, message):
    with pytest.raises(InputError, match=message):
        data.open_embeddings(tmp_path / name)


def test_open_embeddings_runs_no_pickle(tmp_path):
    (tmp_path / 'docs.npy').write_bytes(b'cos\nsystem\n(S"touch pwned"\ntR.')
    with pytest.raises(InputError, match='not a complete'):
        data.open_embeddings(tmp_path / 'docs.npy')


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_check_finite_names_the_first_bad_row(monkeypatch, bad):
    monkeypatch.setattr(data, '_ROWS', 3)
    vectors = VECTORS.copy()
    data.check_finite(vectors, 'docs.npy')
    vectors[[4, 6], 2] = bad
    with pytest.raises(InputError, match=r'docs\.npy: row 4 '):
        data.check_finite(vectors, 'docs.npy')


def test_check_same_dim():
    data.check_same_dim(VECTORS, VECTORS, 'q.npy')
    with pytest.raises(InputError, match=r'q\.npy: .* 3 dimensions, the corpus has 4'):
        data.check_same_dim(VECTORS, VECTORS[:, :3], 'q.npy')


def test_fingerprint_sees_shape_dtype_and_values():
    changed = VECTORS.copy()
    changed[-1, -1] += 1
    others = [VECTORS[:6], VECTORS.reshape(4, 7), VECTORS.astype(np.float16), changed]
    prints = {data.fingerprint(x) for x in [VECTORS, *others]}
    assert len(prints) == 5
    assert data.fingerprint(np.asfortranarray(VECTORS)) == data.fingerprint(VECTORS)


def test_gather_reads_rows_and_pads_with_zeros():
    rows = np.array([[6, -1, 0], [0, 3, 3]], np.int32)
    found = data.gather(VECTORS.astype(np.float16), rows)
    expected = VECTORS.astype(np.float16)[rows].astype(np.float32)
    expected[0, 1] = 0
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.float32


def test_text_files_that_cannot_be_read(tmp_path):
    (tmp_path / 'latin.txt').write_bytes(b'\xe9 0 d 1\n')
    for name in ('latin.txt', 'none.txt', '.'):
        with pytest.raises(InputError, match=f'{name}: cannot be read'):
            data.read_qrels(tmp_path / name, ['q'], ['d'])


def test_read_qrels_keeps_positives_by_row(tmp_path):
    (tmp_path / 'q.txt').write_text('q1 0 d3 1\nq0 0 d1 0\nq1 0 d0 2\nq1\t0\td3\t1\nq2 0 d2 -1\n')
    found = data.read_qrels(tmp_path / 'q.txt', ['q0', 'q1', 'q2'], ['d0', 'd1', 'd2', 'd3'])
    assert [rows.tolist() for rows in found] == [[], [0, 3], []]
    assert all(rows.dtype == np.int32 for rows in found)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('q0 0 d0 1\nq9 0 d0 1\n', "line 2 names the query 'q9'"),
        ('q0 0 d9 1\n', "line 1 names the document 'd9'"),
        ('q0 0 d0\n', 'line 1 is not'),
        ('q0 0 d0 1\n\n', 'line 2 is not'),
        ('q0 0 d0 high\n', 'line 1 is not'),
    ],
)
def test_read_qrels_rejects(tmp_path, text, message):
    (tmp_path / 'q.txt').write_text(text)
    with pytest.raises(InputError, match=message):
        data.read_qrels(tmp_path / 'q.txt', ['q0'], ['d0'])


def test_write_run(tmp_path):
    score = np.float32(1) / np.float32(3)
    doc_ids, scores = [['a', 'b'], ['c']], [[1.5, score], [-2.0]]
    data.write_run(tmp_path / 'run.trec', query_ids=['q', 'r'], doc_ids=doc_ids, scores=scores)
    lines = [line.split() for line in (tmp_path / 'run.trec').read_text().splitlines()]
    assert [' '.join(line[:4]) for line in lines] == ['q Q0 a 1', 'q Q0 b 2', 'r Q0 c 1']
    assert [np.float32(line[4]) for line in lines] == [1.5, score, -2.0]
    assert {line[5] for line in lines} == {'dvq_jax'}
