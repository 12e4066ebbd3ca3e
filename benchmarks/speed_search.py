"""Queries a second of an index that we wrote for ScaNN, against ScaNN's own training and FAISS.

All have the same lists and bytes, and none re-scores. They are compared at the same probes, and at the fewest
with which they find as much as ScaNN's own training does. Ours are starts, for what an index has learned does
not change what its search costs: by OPQ, and without a rotation, as ScaNN's own are. Indexes are written to a
temporary folder and opened by processes that are bound to so many cores: an engine may start whatever threads
it likes.
"""

import bisect
import functools
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import baselines
import faiss
import numpy as np
from processes import apart
from scann.scann_ops.py import scann_ops_pybind
from speed_timing import in_turn

import dvq_jax
from dvq_jax import encode, initialize, metrics, search, teacher
from dvq_jax.export import faiss as faiss_export
from dvq_jax.export import scann as scann_export
from dvq_jax.types import Encoding, IndexParams

AGREED = 10  # of the teacher's documents, that recall counts
_SLOW = 'reference'
_MORE = 12  # times as many rounds of the compiled engines, whose calls are short and differ by little;
_FEWER = 4  # at equal recall they do not

Engine = Callable[[np.ndarray, int], np.ndarray]
Searched = Callable[..., np.ndarray]  # (queries, *, nprobe) -> documents that each meets


def _export(folder: pathlib.Path, docs: np.ndarray, **settings: Any) -> tuple[IndexParams, Encoding]:
    params = initialize.initialize(docs, **settings)
    encoding = encode.encode_corpus(params, docs)
    scann_export.write(folder, params=params, encoding=encoding, doc_ids=map(str, range(len(docs))))
    return params, encoding


def _build(folder: pathlib.Path, docs: np.ndarray, shape: dict[str, int]) -> dict[str, Searched]:
    """Writes every engine's index into the folder; returns what tells the documents that a search meets."""
    params, encoding = _export(folder / 'exported', docs, **shape)
    plain = _export(folder / 'exported_plain', docs, rotation='identity', **shape)
    np.savez(folder / 'ours.npz', lists=encoding.lists, codes=encoding.codes, **vars(params))
    whole = faiss_export.build(params, encoding, nprobe=1)
    faiss.write_index(whole, str(folder / 'faiss.index'))
    if shape['codewords'] == 16:
        rotation, pq = faiss.downcast_VectorTransform(whole.chain.at(0)), faiss.downcast_index(whole.index)
        fast = faiss.IndexPreTransform(rotation, faiss.IndexIVFPQFastScan(pq))
        faiss.write_index(fast, str(folder / 'faiss_fast_scan.index'))
    native = baselines.train_scann(docs, **shape)
    (folder / 'native').mkdir()
    native.searcher.serialize(str(folder / 'native'))
    np.save(folder / 'native_rows.npy', native.rows)
    return {
        'exported': functools.partial(search.documents_scanned, params, encoding),
        'exported_plain': functools.partial(search.documents_scanned, *plain),
        'native': native.documents_scanned,
    }


def _exported_engine(folder: pathlib.Path, k: int) -> Engine:
    index = dvq_jax.open_index(folder)
    return lambda queries, nprobe: index.search_rows(queries, k=k, nprobe=nprobe)[1]


def _scann_engine(folder: pathlib.Path, k: int) -> Engine:
    searcher = scann_ops_pybind.load_searcher(str(folder))

    def run(queries: np.ndarray, nprobe: int) -> np.ndarray:
        return searcher.search_batched_parallel(queries, final_num_neighbors=k, leaves_to_search=nprobe)[0]

    return run


def _faiss_engine(path: pathlib.Path, k: int) -> Engine:
    whole = faiss.read_index(str(path))

    def run(queries: np.ndarray, nprobe: int) -> np.ndarray:
        faiss.downcast_index(whole.index).nprobe = nprobe
        return whole.search(queries, k)[1]

    return run


def _reference_engine(params: IndexParams, encoding: Encoding, k: int) -> Engine:
    inverted = search.invert(encoding, len(params.centroids))
    return lambda queries, nprobe: search.search(params, inverted, queries, k=k, nprobe=nprobe)[1]


def _open(folder: pathlib.Path, k: int) -> dict[str, Engine]:
    """What searches the folder's indexes."""
    with np.load(folder / 'ours.npz') as stored:
        arrays = dict(stored)
    encoding = Encoding(lists=arrays.pop('lists'), codes=arrays.pop('codes'))
    engines = {name: _exported_engine(folder / name, k) for name in ('exported', 'exported_plain')}
    engines |= {
        'native': _scann_engine(folder / 'native', k),
        _SLOW: _reference_engine(IndexParams(**arrays), encoding, k),
    }
    for path in sorted(folder.glob('*.index')):
        engines[path.stem] = _faiss_engine(path, k)
    return engines


def _time(folder: pathlib.Path, *, nprobe: list[int], k: int, repeats: int) -> list[dict[str, Any]]:
    """In a process of its own: for each P, seconds and recall of each engine."""
    faiss.omp_set_num_threads(len(os.sched_getaffinity(0)))
    engines = _open(folder, k)
    queries, wanted = np.load(folder / 'queries.npy'), np.load(folder / 'teacher.npy')
    native_rows = np.load(folder / 'native_rows.npy')
    slow = {_SLOW: engines.pop(_SLOW)}

    def found(name: str, probes: int) -> float:
        documents = (engines | slow)[name](queries, probes)
        rows = native_rows[documents] if name == 'native' else documents
        return metrics.teacher_agreement(rows, wanted, AGREED)

    def per_second(some: dict[str, Engine], rounds: int, probes: dict[str, int]) -> dict[str, float]:
        calls = {name: functools.partial(run, queries, probes[name]) for name, run in some.items()}
        return {name: len(queries) / value for name, value in in_turn(calls, rounds).items()}

    rows = []
    for probes in nprobe:
        same = dict.fromkeys(engines | slow, probes)
        speed = per_second(engines, _MORE * repeats, same) | per_second(slow, repeats, same)
        recall = {name: found(name, probes) for name in same}
        fewest = {name: _fewest(functools.partial(found, name), recall['native'], probes) for name in engines}
        reached = {name: count for name, count in fewest.items() if count is not None}
        at_equal = per_second({name: engines[name] for name in reached}, _FEWER * repeats, reached)
        equal = {name: {'nprobe': reached[name], 'queries_per_second': at_equal[name]} for name in reached}
        rows.append(
            {'nprobe': probes, 'queries_per_second': speed, 'teacher@10': recall, 'at_native_recall': equal}
        )
    return rows


def _fewest(recall: Callable[[int], float], wanted: float, most: int) -> int | None:
    """The least P with such a recall, which grows with P; None where `most` is not enough."""
    if recall(most) < wanted:
        return None
    return 1 + bisect.bisect_left(range(1, most), wanted, key=recall)


def measure(
    docs: np.ndarray,
    queries: np.ndarray,
    *,
    lists: int,
    codebooks: int,
    codewords: int,
    nprobe: list[int],
    cores: list[int],
    k: int,
    repeats: int,
) -> list[dict[str, Any]]:
    """Builds every engine's index of the documents and times its search.

    Args:
      docs: [N, D] float32.
      queries: [Q, D] float32.
      lists: L.
      codebooks: M.
      codewords: K, 16 or 256.
      nprobe: P.
      cores: that a search has.
      k: documents that a query gets.
      repeats: of the reference search; of the others twelve times as many, and four times at equal recall.

    Returns:
      A row for each number of cores and P: the sizes, 'queries_per_second' and 'teacher@10' of each engine,
      'documents_scanned' for a query of ours and of ScaNN's own, 'over_native' at the same P, and
      'at_native_recall': the least P with which an engine finds as much as ScaNN's own training does with the
      row's, its queries a second there and 'over_native', of engines that do. Engines are 'exported'
      and 'exported_plain' (what `open_index` returns, with a rotation and without), 'native' (ScaNN's own
      training), 'reference', 'faiss' and for 16 codewords 'faiss_fast_scan', the last three with our
      rotation, lists and codes.
    """
    about = {'documents': len(docs), 'queries': len(queries), 'dim': docs.shape[1], 'k': k}
    shape = {'lists': lists, 'codebooks': codebooks, 'codewords': codewords}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        np.save(folder / 'queries.npy', queries)
        np.save(folder / 'teacher.npy', teacher.mine(docs, queries, AGREED)[0])
        searched = _build(folder, docs, shape)
        rows = []
        for count in cores:
            timed = functools.partial(_time, folder, nprobe=nprobe, k=k, repeats=repeats)
            for row in apart(timed, cores=count):
                scanned = {
                    name: float(documents(queries, nprobe=row['nprobe']).mean())
                    for name, documents in searched.items()
                }
                speed = row['queries_per_second']
                ratios = {name: speed[name] / speed['native'] for name in ('exported', 'exported_plain')}
                row |= {'documents_scanned': scanned, 'over_native': ratios}
                equal = row['at_native_recall']
                for there in equal.values():
                    there['over_native'] = there['queries_per_second'] / equal['native']['queries_per_second']
                rows.append({**about, **shape, 'cores': count, **row})
    return rows
