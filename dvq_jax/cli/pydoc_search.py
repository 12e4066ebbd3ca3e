"""Writes the data of *search the Python standard library*: documents, queries, labels, the embedding.

python -m dvq_jax.cli.pydoc_search --out=DIR [--source=ROOT ...] [--dim=512]
"""

import json
import pathlib
import sys
import time
from collections.abc import Sequence

import numpy as np
from absl import flags

from dvq_jax import files, metrics, teacher
from dvq_jax.cli import run
from dvq_jax.datasets import lsa, pydoc_search

_OUT = flags.DEFINE_string('out', None, 'The folder to write; it must not exist.', required=True)
_SOURCE = flags.DEFINE_multi_string(
    'source', [], "Folders of Python sources; the running interpreter's standard library where none is given."
)
_DIM = flags.DEFINE_integer('dim', 512, 'Dimensions of the embeddings.', lower_bound=1)


def _write_docs(
    folder: pathlib.Path, functions: Sequence[pydoc_search.Function], vectors: np.ndarray
) -> None:
    np.save(folder / 'docs.npy', vectors)
    with open(folder / 'docs.tsv', 'w', encoding='utf-8') as file:
        for function in functions:
            print(function.name, function.path, function.line, function.summary, sep='\t', file=file)


def _write_queries(
    folder: pathlib.Path,
    split: str,
    queries: Sequence[pydoc_search.Query],
    vectors: np.ndarray,
    functions: Sequence[pydoc_search.Function],
) -> None:
    np.save(folder / f'{split}_queries.npy', vectors)
    with open(folder / f'{split}_queries.tsv', 'w', encoding='utf-8') as file:
        for query in queries:
            print(query.id, query.text, sep='\t', file=file)
    with open(folder / f'{split}_qrels.txt', 'w', encoding='utf-8') as file:
        for query in queries:
            for row in query.rows:
                print(query.id, 0, functions[row].name, 1, file=file)


def _measure(
    queries: Sequence[pydoc_search.Query],
    vectors: np.ndarray,
    functions: Sequence[pydoc_search.Function],
    docs: np.ndarray,
) -> dict[str, float]:
    """How good the embedding itself is: exact search over all documents."""
    rows, scores = teacher.mine(docs, vectors, min(100, len(docs)))
    begin = time.monotonic()
    teacher.mine(docs, vectors, min(100, len(docs)))  # again, now that it is compiled
    seconds = time.monotonic() - begin
    ids = [query.id for query in queries]
    qrels = {query.id: {functions[row].name: 1 for row in query.rows} for query in queries}
    found = [[functions[row].name for row in top] for top in rows]
    return {
        **metrics.measure(qrels, metrics.to_run(ids, found, scores)),
        'bytes_per_document': docs.dtype.itemsize * docs.shape[1],
        'ms_per_query': round(1000 * seconds / len(ids), 4),
    }


def main() -> dict:
    """Reads the sources, fits the embedding, writes everything, and measures the embedding itself."""
    begin = time.monotonic()
    with files.atomic_folder(_OUT.value) as folder:
        functions, train, dev, skipped = pydoc_search.read_contents(_SOURCE.value)
        print(f'{len(functions)} functions, {skipped} files skipped', file=sys.stderr, flush=True)
        texts = [function.text for function in functions]
        pairs = [(query.text, row) for query in train for row in query.rows]
        embedding = lsa.fit(texts, *zip(*pairs, strict=True), dim=_DIM.value)
        embedding.save(folder / 'lsa')
        docs = embedding.embed(texts)
        _write_docs(folder, functions, docs)
        for split, queries in (('train', train), ('dev', dev)):
            vectors = embedding.embed_queries([query.text for query in queries])
            _write_queries(folder, split, queries, vectors, functions)
        dense = _measure(dev, vectors, functions, docs)
        (folder / 'dense.json').write_text(json.dumps(dense, indent=2) + '\n', encoding='utf-8')
    return {
        'docs': len(functions),
        'train_queries': len(train),
        'dev_queries': len(dev),
        'dim': _DIM.value,
        'files_skipped': skipped,
        'dense': dense,
        'seconds': round(time.monotonic() - begin, 1),
    }


if __name__ == '__main__':
    run(main)
