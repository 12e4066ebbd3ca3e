"""Adds documents to an index that export wrote for ScaNN; the index with both is a folder of its own.

python -m dvq_jax.cli.add --index=INDEX --corpus=new.npy [--corpus_ids=new.tsv] --out=NEW_INDEX
"""

import sys
import time

from absl import flags

from dvq_jax import data, files
from dvq_jax.cli import run
from dvq_jax.ids import open_ids

_INDEX = flags.DEFINE_string('index', None, 'The index: a folder that export wrote for ScaNN.', required=True)
_CORPUS = flags.DEFINE_string(
    'corpus', None, "The new documents' embeddings: .npy, .fvecs, .fbin or .parquet.", required=True
)
_CORPUS_IDS = flags.DEFINE_string(
    'corpus_ids', None, 'Their ids: a .tsv, first column. Else their row numbers in the new index.'
)
_OUT = flags.DEFINE_string('out', None, 'The new index: a folder to create.', required=True)


def main() -> dict:
    """Opens, encodes, writes; says what was written."""
    begin = time.monotonic()
    out = files.check_new(_OUT.value)
    from dvq_jax.export import append

    corpus = data.open_embeddings(_CORPUS.value)
    done = append.append(
        out,
        index=_INDEX.value,
        corpus=corpus,
        doc_ids=open_ids(_CORPUS_IDS.value, len(corpus)) if _CORPUS_IDS.value else None,
        source=_CORPUS.value,
    )
    if done.clipped:
        share = 100 * done.clipped / corpus.size
        print(
            f'{done.clipped} of {corpus.size} numbers ({share:.2g}%) are beyond the range of the vectors in '
            'int8 and are clipped; where that is much, export an index of all documents again.',
            file=sys.stderr,
            flush=True,
        )
    return {
        'index': str(out),
        'documents': done.manifest.documents,
        'added': done.added,
        'clipped': done.clipped,
        'bytes': sum(file['bytes'] for file in done.manifest.files.values()),
        'seconds': round(time.monotonic() - begin, 1),
    }


if __name__ == '__main__':
    run(main)
