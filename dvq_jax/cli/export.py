r"""Writes a trained index for a search engine.

python -m dvq_jax.cli.export --workdir=W [--step=latest|best|N] --format=scann --out=INDEX \
    [--reorder=none|float32|bfloat16|int8] [--lookup=auto|float|int8|lut16] [--encoder=DIR]
"""

import functools
import time
from collections.abc import Callable

import numpy as np
from absl import flags

from dvq_jax import evaluate, files, towers
from dvq_jax.cli import encoders, run
from dvq_jax.errors import InputError
from dvq_jax.export.manifest import Manifest
from dvq_jax.ids import open_ids

_WORKDIR = flags.DEFINE_string('workdir', None, 'The folder that train wrote.', required=True)
_STEP = flags.DEFINE_string('step', 'latest', "Which checkpoint: 'latest', 'best' or a step.")
_FORMAT = flags.DEFINE_enum('format', 'scann', ['scann', 'faiss'], 'The search engine.')
_REORDER = flags.DEFINE_enum(
    'reorder',
    'none',
    ['none', 'float32', 'bfloat16', 'int8'],
    'Vectors kept to re-score by; scann only.',
)
_LOOKUP = flags.DEFINE_enum(
    'lookup',
    'auto',
    ['auto', 'float', 'int8', 'lut16'],
    "How codes are scored: exactly, or by tables rounded to 8 bits; 'auto' is 'lut16' for 16 codewords and "
    "else 'int8'; scann only.",
)
_DOCIDS_PICKLE = flags.DEFINE_bool(
    'docids_pickle', False, "Also write scann_docids.pkl, from which ScaNN's own load_searcher takes ids."
)
_ENCODER = flags.DEFINE_string(
    'encoder', None, 'The folder of the text encoder, to go with the index: it can then be searched by text.'
)
_OUT = flags.DEFINE_string('out', None, 'The index: a folder to create.', required=True)
flags.adopt_module_key_flags(encoders)


def main() -> dict:
    """Restores, encodes, writes; says what was written."""
    begin = time.monotonic()
    out = files.check_new(_OUT.value)
    only_scann = (_REORDER.value, _LOOKUP.value, _DOCIDS_PICKLE.value) != ('none', 'auto', False)
    if _FORMAT.value == 'faiss' and only_scann:
        raise InputError('--reorder, --lookup and --docids_pickle are for --format=scann; leave them out.')
    files.make_folder(out.parent)
    encoder = encoders.load(_ENCODER.value) if _ENCODER.value else None
    if encoder is None and (given := encoders.given()):
        raise InputError(f'--{given} is of --encoder, which is not given; give both, or leave it out.')
    trained, source = evaluate.open_trained(_WORKDIR.value, _STEP.value)
    tower = trained.tower
    if towers.reads_text(tower.name):
        if encoder is not None:
            raise InputError(f'--encoder: {_WORKDIR.value} has trained an encoder of its own; leave it out.')
        tower, encoder = towers.Tower(tower.name), towers.encoder(tower)
    elif encoder is not None and source.texts:
        from dvq_jax import embed

        embed.compare(encoder, source.dev)
    doc_ids = open_ids(source.doc_ids_path, len(source.corpus))
    write = _writer(corpus=source.corpus, codewords=trained.params.codebooks.shape[1])
    written = write(
        out,
        params=trained.params,
        encoding=evaluate.encode_trained(trained, source),
        doc_ids=doc_ids,
        tower=tower,
        encoder=encoder,
        step=trained.step,
        config=trained.config,
    )
    return {
        'index': str(out),
        'step': written.step,
        'documents': written.documents,
        'bytes': sum(file['bytes'] for file in written.files.values()),
        'seconds': round(time.monotonic() - begin, 1),
    }


def _writer(*, corpus: np.ndarray, codewords: int) -> Callable[..., Manifest]:
    """The writer of --format, its options checked before the corpus is encoded."""
    if _FORMAT.value == 'faiss':
        from dvq_jax.export import faiss

        return faiss.write
    from dvq_jax.export import scann

    lookup = scann.check_lookup(None if _LOOKUP.value == 'auto' else _LOOKUP.value, codewords)
    return functools.partial(
        scann.write,
        corpus=corpus,
        reorder=_REORDER.value,
        lookup=lookup,
        docids_pickle=_DOCIDS_PICKLE.value,
    )


if __name__ == '__main__':
    run(main)
