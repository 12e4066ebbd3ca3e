r"""Searches an exported index and writes a TREC run; measures it where qrels are given.

python -m dvq_jax.cli.search --index=INDEX --queries=q.npy --query_ids=q.tsv --k=100 --nprobe=10 \
    --out=run.trec [--qrels=q.txt]

With --text=q.tsv instead of --queries and --query_ids the index embeds the queries itself.
"""

import sys
import time
from collections.abc import Sequence

import numpy as np
from absl import flags

from dvq_jax import data, files, metrics, towers
from dvq_jax.cli import run
from dvq_jax.errors import InputError
from dvq_jax.export import beside
from dvq_jax.ids import open_ids
from dvq_jax.index import Index, open_index
from dvq_jax.texts import Texts

_INDEX = flags.DEFINE_string('index', None, 'The index: a folder that export wrote.', required=True)
_QUERIES = flags.DEFINE_string('queries', None, 'Query embeddings: .npy, .fvecs, .fbin or .parquet.')
_TEXT = flags.DEFINE_string(
    'text', None, 'Instead, a .tsv of query ids and texts, where the index has a text encoder.'
)
_QUERY_IDS = flags.DEFINE_string('query_ids', None, 'Their ids: a .tsv, first column. Else row numbers.')
_QRELS = flags.DEFINE_string(
    'qrels', None, 'Relevant documents of the queries, TREC format, to measure with.'
)
_K = flags.DEFINE_integer('k', 100, 'Documents for each query.')
_NPROBE = flags.DEFINE_integer('nprobe', 10, 'Lists to search for each query.')
_OUT = flags.DEFINE_string('out', None, 'The run: a file to write.', required=True)

_TIMED = 4096  # queries of the second pass


def _read_queries(index: Index) -> tuple[np.ndarray, Sequence[str]]:
    """Embeddings and ids, of files or of texts."""
    if (_QUERIES.value is None) == (_TEXT.value is None) or (_TEXT.value and _QUERY_IDS.value):
        raise InputError('give --queries, perhaps with --query_ids, or --text, which has both.')
    if _QUERIES.value:
        if towers.reads_text(index.manifest.tower):
            print(
                f'{_INDEX.value}: its query encoder was trained with it, embeddings of another find less; '
                f'give --text, or embed the queries by {_INDEX.value}/{beside.ENCODER}',
                file=sys.stderr,
                flush=True,
            )
        queries = data.open_embeddings(_QUERIES.value)
        return queries, open_ids(_QUERY_IDS.value, len(queries))
    texts = Texts(_TEXT.value)
    ids = open_ids(_TEXT.value, len(texts))
    return index.embed(texts.all()), ids


def main() -> dict:
    """Opens, searches, writes; says where the run is, how long a query took, and how good it is."""
    files.check_output(_OUT.value)
    index = open_index(_INDEX.value)
    queries, query_ids = _read_queries(index)
    positives = data.read_qrels(_QRELS.value, query_ids, index.ids) if _QRELS.value else None
    scores, rows = index.search_rows(queries, k=_K.value, nprobe=_NPROBE.value)
    timed = queries[:_TIMED]
    begin = time.monotonic()
    index.search_rows(timed, k=_K.value, nprobe=_NPROBE.value)
    seconds = time.monotonic() - begin
    found = (rows >= 0).sum(axis=1)
    docs = [names[:count].tolist() for names, count in zip(index.ids.take(rows), found, strict=True)]
    scores = [values[:count].tolist() for values, count in zip(scores, found, strict=True)]
    data.write_run(_OUT.value, query_ids=query_ids, doc_ids=docs, scores=scores)
    result = {
        'run': _OUT.value,
        'queries': len(queries),
        'nprobe': _NPROBE.value,
        'bytes_per_document': index.manifest.bytes_per_document,
        # Of a second pass, when everything is loaded and compiled.
        'ms_per_query': round(1000 * seconds / len(timed), 4),
    }
    if positives is None:
        return result
    names = [dict.fromkeys(index.ids.take(relevant), 1) for relevant in positives]
    qrels = dict(zip(query_ids, names, strict=True))
    measured = metrics.measure(qrels, metrics.to_run(query_ids, docs, scores))
    # R@100 of ten documents would read like one of a hundred.
    return result | {name: value for name, value in measured.items() if metrics.depth(name) <= _K.value}


if __name__ == '__main__':
    run(main)
