"""What the user brings: embedding files (memory-mapped) and qrels; and the runs that go back."""

import hashlib
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from dvq_jax import files, host
from dvq_jax.blocks import cut
from dvq_jax.errors import InputError
from dvq_jax.parquet import open_parquet

_ROWS = 8192  # rows that a thread of a scan looks at together
_SAMPLE = 1024  # rows that a fingerprint reads


def open_embeddings(path: str | os.PathLike) -> np.ndarray:
    """Opens a file of embeddings without reading it.

    The format goes by the suffix: `.npy`; `.fvecs` (each row an int32 D, then D float32); `.fbin` (int32
    rows, int32 D, then float32); `.parquet` (a list column `embedding`, copied to a temporary file).

    Args:
      path: the file.

    Returns:
      [rows, D] float16 or float32, memory-mapped.

    Raises:
      InputError: no such file, an unknown suffix, a damaged file, no rows, another rank or dtype.

    Example:
      docs = open_embeddings('docs.npy')
    """
    path = pathlib.Path(path)
    readers = {'.npy': _open_npy, '.fvecs': _open_fvecs, '.fbin': _open_fbin, '.parquet': open_parquet}
    if path.suffix not in readers:
        raise InputError(f'{path}: unknown kind of embedding file; give one of {", ".join(readers)}.')
    if not path.is_file():
        raise InputError(f'{path}: no such file; give the path of an embedding file.')
    embeddings = readers[path.suffix](path)
    if embeddings.ndim != 2:
        raise InputError(f'{path}: has shape {list(embeddings.shape)}; embeddings must be [rows, D].')
    if embeddings.dtype not in (np.float16, np.float32):
        raise InputError(f'{path}: holds {embeddings.dtype}; convert it to float16 or float32.')
    if 0 in embeddings.shape:
        raise InputError(f'{path}: is empty, shape {list(embeddings.shape)}; give at least one embedding.')
    return embeddings


def _open_npy(path: pathlib.Path) -> np.ndarray:
    try:
        with open(path, 'rb') as file:
            np.lib.format.read_magic(file)  # np.load would take an unknown file for a pickle
        return np.load(path, mmap_mode='r')
    except (ValueError, OSError) as error:
        raise InputError(f'{path}: not a complete .npy file ({error}); write it again.') from error


def _open_fvecs(path: pathlib.Path) -> np.ndarray:
    size = path.stat().st_size
    if not size:
        return np.empty((0, 0), np.float32)
    dim = int(np.fromfile(path, '<i4', 1)[0]) if size >= 4 else 0
    if dim <= 0 or size % (4 * (dim + 1)):
        raise InputError(
            f'{path}: {size} bytes are not rows of {dim} floats, as the header says; write it again.'
        )
    return np.memmap(path, '<f4', 'r').reshape(-1, dim + 1)[:, 1:]


def _open_fbin(path: pathlib.Path) -> np.ndarray:
    size = path.stat().st_size
    rows, dim = np.fromfile(path, '<i4', 2).tolist() if size >= 8 else (0, 0)
    if size != 8 + 4 * rows * dim:
        raise InputError(
            f'{path}: {size} bytes are not {rows} rows of {dim} floats, as the header says; write it again.'
        )
    if not rows * dim:
        return np.empty((rows, dim), np.float32)
    return np.memmap(path, '<f4', 'r', offset=8, shape=(rows, dim))


def check_finite(embeddings: np.ndarray, path: str | os.PathLike) -> None:
    """Scans embeddings, block by block, for NaN and infinity.

    Args:
      embeddings: [rows, D] float.
      path: where they came from, for the message.

    Raises:
      InputError: names the first bad row.
    """
    kind = np.dtype(f'u{embeddings.itemsize}')
    infinity, unsigned = np.array(np.inf, embeddings.dtype).view(kind), kind.type(np.iinfo(kind).max >> 1)

    def first_bad(rows: slice) -> int | None:
        # Bits without the sign: those of NaN and infinity are the largest, and integers are quick to compare.
        bits = np.ascontiguousarray(embeddings[rows]).view(kind)
        bad = np.max(bits & unsigned, axis=1, initial=0) >= infinity
        return rows.start + int(bad.argmax()) if bad.any() else None

    for row in host.on_threads(first_bad, cut(len(embeddings), _ROWS)):
        if row is not None:
            raise InputError(f'{path}: row {row} (from 0) holds NaN or infinity; encode it again or drop it.')


def check_same_dim(corpus: np.ndarray, queries: np.ndarray, path: str | os.PathLike) -> None:
    """Checks that queries, read from `path`, have the corpus's D; raises InputError otherwise."""
    if corpus.shape[1] != queries.shape[1]:
        raise InputError(
            f'{path}: embeddings have {queries.shape[1]} dimensions, the corpus has {corpus.shape[1]}; '
            'encode both with the same model.'
        )


def fingerprint(embeddings: np.ndarray) -> str:
    """A SHA-256 of shape, dtype and up to 1024 evenly spaced rows: tells one array from another, quickly."""
    rows = np.unique(np.linspace(0, len(embeddings) - 1, _SAMPLE).astype(np.int64))
    digest = hashlib.sha256(f'{embeddings.shape} {embeddings.dtype}'.encode())
    digest.update(np.ascontiguousarray(embeddings[rows]).tobytes())
    return digest.hexdigest()


def gather(
    corpus: np.ndarray, rows: np.ndarray, *, copy: bool = True, kind: np.typing.DTypeLike = np.float32
) -> np.ndarray:
    """Reads documents by row.

    Args:
      corpus: [N, D] float, usually memory-mapped.
      rows: [...] int, -1 pads.
      copy: whether the result may be written to; else it may be the corpus itself.
      kind: what it is made of.

    Returns:
      [..., D] of `kind`; zeros where padded.
    """
    flat = rows.reshape(-1)
    if len(flat) and flat[0] >= 0 and np.all(np.diff(flat) == 1):  # a run, which needs no second copy
        run = corpus[flat[0] : flat[-1] + 1]
        return np.array(run, kind, copy=copy or None).reshape(*rows.shape, -1)
    if len(flat) and flat[0] >= 0 and np.all(np.diff(flat) > 0):
        return np.asarray(corpus[flat], kind).reshape(*rows.shape, -1)
    order = np.argsort(flat)  # a disk is read in one direction
    vectors = np.empty((len(flat), corpus.shape[1]), kind)
    vectors[order] = corpus[np.maximum(flat[order], 0)]
    vectors[flat < 0] = 0
    return vectors.reshape(*rows.shape, -1)


def read_qrels(path: str | os.PathLike, query_ids: Sequence[str], doc_ids: Sequence[str]) -> list[np.ndarray]:
    """Reads TREC qrels, lines `query 0 document relevance`; relevance above 0 is a positive.

    Args:
      path: the file.
      query_ids: ids of the queries, in row order.
      doc_ids: ids of the corpus, in row order.

    Returns:
      For each query its positives: [any] int32, ascending rows of the corpus.

    Raises:
      InputError: no such file, a line that is not of this form, an id that is not known, nothing relevant.
    """
    judged = []
    for number, line in enumerate(_lines(path), start=1):
        try:
            query, _, doc, relevance = line.split()
            judged.append((query, doc, int(relevance)))
        except ValueError as error:
            raise InputError(
                f"{path}: line {number} is not 'query 0 document relevance'; write TREC qrels."
            ) from error
    query_rows = {name: row for row, name in enumerate(query_ids)}
    named = {doc for _, doc, _ in judged}  # few: no table of the whole corpus is made
    doc_rows = {name: row for row, name in enumerate(doc_ids) if name in named}
    positives: list[set[int]] = [set() for _ in query_ids]
    for number, (query, doc, relevance) in enumerate(judged, start=1):
        for name, known, what in ((query, query_rows, 'query'), (doc, doc_rows, 'document')):
            if name not in known:
                raise InputError(
                    f'{path}: line {number} names the {what} {name!r}, which is not among the ids; drop the '
                    f'line, or give the {what} ids that belong to it.'
                )
        if relevance > 0:
            positives[query_rows[query]].add(doc_rows[doc])
    if not any(positives):
        raise InputError(f'{path}: names no relevant document; leave it out, or give one with some.')
    return [np.array(sorted(rows), np.int32) for rows in positives]


def write_run(
    path: str | os.PathLike,
    *,
    query_ids: Sequence[str],
    doc_ids: Sequence[Sequence[str]],
    scores: Sequence[Sequence[float]],
    tag: str = 'dvq_jax',
) -> None:
    """Writes a TREC run, lines `query Q0 document rank score tag`, ranks from 1.

    Args:
      path: the file to create or replace.
      query_ids: Q ids.
      doc_ids: for each query, the ids found, best first.
      scores: for each query, their scores.
      tag: the run's name.

    Raises:
      InputError: the file cannot be written.
    """
    with files.atomic_file(path) as aside, open(aside, 'w', encoding='utf-8') as file:
        for query, docs, values in zip(query_ids, doc_ids, scores, strict=True):
            for rank, (doc, score) in enumerate(zip(docs, values, strict=True), start=1):
                file.write(f'{query} Q0 {doc} {rank} {score:.9g} {tag}\n')


def read_run(path: str | os.PathLike) -> dict[str, list[str]]:
    """Reads a TREC run, lines `query Q0 document rank score tag`.

    Args:
      path: the file.

    Returns:
      Query id -> documents, by rank.

    Raises:
      InputError: no such file, no line in it, one that is not of this form, or one that repeats a document.
    """
    run: dict[str, dict[str, int]] = {}
    for number, line in enumerate(_lines(path), start=1):
        try:
            query, _, doc, rank, _, _ = line.split()
            found, rank = run.setdefault(query, {}), int(rank)
        except ValueError as error:
            raise InputError(
                f"{path}: line {number} is not 'query Q0 document rank score tag'; give a TREC run."
            ) from error
        if doc in found:
            raise InputError(f'{path}: line {number} repeats the document {doc!r} of {query!r}; drop one.')
        found[doc] = rank
    if not run:
        raise InputError(f'{path}: is empty; give a TREC run, as search writes it.')
    return {query: sorted(ranks, key=ranks.__getitem__) for query, ranks in run.items()}


def _lines(path: str | os.PathLike) -> Iterator[str]:
    try:
        with open(path, encoding='utf-8') as file:
            yield from file
    except OSError as error:
        raise InputError(f'{path}: cannot be read ({error.strerror}); give a text file.') from error
    except UnicodeDecodeError as error:
        raise InputError(f'{path}: cannot be read as UTF-8 text ({error}); give a text file.') from error
