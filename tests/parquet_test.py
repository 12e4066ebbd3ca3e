import builtins
import os

import numpy as np
import pytest

from dvq_jax import parquet
from dvq_jax.data import open_embeddings
from dvq_jax.errors import InputError

pa = pytest.importorskip('pyarrow')
pq = pytest.importorskip('pyarrow.parquet')
VECTORS = np.random.default_rng(0).normal(size=(23, 4)).astype(np.float16)


def write(path, lists, kind):
    table = pa.table({'id': range(len(lists)), 'embedding': pa.array(lists, kind)})
    pq.write_table(table, path, row_group_size=10)


@pytest.mark.parametrize('dtype', [np.float16, np.float32, np.float64])
@pytest.mark.parametrize('width', [-1, 4], ids=['list', 'fixed'])
def test_maps_the_column(tmp_path, monkeypatch, dtype, width):
    monkeypatch.setattr(parquet, '_BATCH', 5)
    kind = pa.list_(pa.from_numpy_dtype(dtype), width)
    write(tmp_path / 'docs.parquet', list(VECTORS.astype(dtype)), kind)
    found = open_embeddings(tmp_path / 'docs.parquet')
    np.testing.assert_array_equal(found, VECTORS)
    assert found.dtype == (np.float16 if dtype == np.float16 else np.float32)
    assert isinstance(found, np.memmap)


FLOATS = pa.list_(pa.float32())


@pytest.mark.parametrize(
    ('lists', 'kind', 'message'),
    [
        ([[1.0, 2.0]] * 8 + [[1.0]], FLOATS, r'row 8 .* 1 dimensions, not 2'),
        ([[1.0, 2.0]] * 3 + [None], FLOATS, r'row 3 .* 0 dimensions, not 2'),
        ([[1.0, 2.0]] * 6 + [[1.0, None]], FLOATS, r'row 6 .* null'),
        ([[1.0, 2.0], None], pa.list_(pa.float32(), 2), r'row 1 |cannot be read'),
        ([[], []], FLOATS, r'row 0 .* not one or more'),
        ([], FLOATS, 'is empty'),
        ([[1, 2]], pa.list_(pa.int32()), 'no column'),
        ([1.0], pa.float32(), 'no column'),
    ],
)
def test_rejects_other_columns(tmp_path, monkeypatch, lists, kind, message):
    monkeypatch.setattr(parquet, '_BATCH', 5)
    write(tmp_path / 'docs.parquet', lists, kind)
    with pytest.raises(InputError, match=message):
        open_embeddings(tmp_path / 'docs.parquet')


def test_rejects_a_table_without_the_column(tmp_path):
    pq.write_table(pa.table({'vector': [[1.0]]}), tmp_path / 'docs.parquet')
    with pytest.raises(InputError, match="no column 'embedding'"):
        open_embeddings(tmp_path / 'docs.parquet')


@pytest.mark.parametrize('keep', [0, 3, 100])
def test_rejects_a_truncated_file(tmp_path, keep):
    write(tmp_path / 'docs.parquet', list(VECTORS), pa.list_(pa.float16()))
    os.truncate(tmp_path / 'docs.parquet', keep)
    with pytest.raises(InputError, match='not a complete parquet file'):
        open_embeddings(tmp_path / 'docs.parquet')


def test_says_when_pyarrow_is_missing(tmp_path, monkeypatch):
    (tmp_path / 'docs.parquet').touch()
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith('pyarrow'):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, '__import__', without)
    with pytest.raises(InputError, match='needs pyarrow'):
        open_embeddings(tmp_path / 'docs.parquet')
