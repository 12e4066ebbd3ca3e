"""Embeddings in parquet files; the one place that needs pyarrow."""

import pathlib
import tempfile
from collections.abc import Iterator

import numpy as np

from dvq_jax.errors import InputError

_COLUMN = 'embedding'
_BATCH = 8192  # rows decoded at once


def open_parquet(path: pathlib.Path) -> np.ndarray:
    """Streams the column `embedding` into an unnamed temporary file (in TMPDIR) and maps that.

    Args:
      path: a parquet file; the column holds lists of one length, float16, float32 or float64.

    Returns:
      [rows, D] float16, or float32 where the column is wider, memory-mapped.

    Raises:
      InputError: pyarrow is missing, the file is damaged, or the column is missing, ragged or holds nulls.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(f'{path}: reading parquet needs pyarrow; pip install "dvq_jax[parquet]".') from error
    try:
        source = parquet.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise InputError(f'{path}: not a complete parquet file ({error}); write it again.') from error
    with source, tempfile.TemporaryFile() as file:
        schema, rows = source.schema_arrow, source.metadata.num_rows
        kind = schema.field(_COLUMN).type if _COLUMN in schema.names else pa.null()
        dtype = getattr(kind, 'value_type', None)
        if dtype not in (pa.float16(), pa.float32(), pa.float64()):
            raise InputError(f'{path}: has no column {_COLUMN!r} of float lists; rename the column.')
        dtype = np.float16 if dtype == pa.float16() else np.float32
        if not rows:
            return np.empty((0, 0), dtype)
        out, start = None, 0
        for batch in _batches(source, path):
            vectors = _vectors(batch.column(0), path, start=start, dim=out.shape[1] if start else None)
            if out is None:
                out = np.memmap(file, dtype, 'w+', shape=(rows, vectors.shape[1]))
            out[start : start + len(vectors)] = vectors
            start += len(vectors)
        return out


def _batches(source, path: pathlib.Path) -> Iterator:
    import pyarrow as pa

    try:
        yield from source.iter_batches(batch_size=_BATCH, columns=[_COLUMN])
    except pa.ArrowInvalid as error:  # some versions do not read a null among lists of fixed size
        raise InputError(f'{path}: column {_COLUMN!r} cannot be read ({error}); write it again.') from error


def _vectors(column, path: pathlib.Path, *, start: int, dim: int | None) -> np.ndarray:
    """[rows, dim] of a batch that begins at row `start`; `dim` None takes the first row's."""
    lengths = column.value_lengths().fill_null(0).to_numpy()
    dim = int(lengths[0]) if dim is None else dim
    wrong = np.flatnonzero((lengths != dim) | (lengths == 0))
    values = column.flatten()
    if len(wrong):
        row = int(wrong[0])
        raise InputError(
            f'{path}: row {start + row} (from 0) has {lengths[row]} dimensions, not {dim or "one or more"}; '
            'fix it or drop it.'
        )
    if values.null_count:
        row = int(values.is_null().to_numpy(zero_copy_only=False).argmax()) // dim
        raise InputError(f'{path}: row {start + row} (from 0) holds a null; fix it or drop it.')
    return values.to_numpy(zero_copy_only=False).reshape(-1, dim)
