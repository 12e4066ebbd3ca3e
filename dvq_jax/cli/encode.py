"""Texts to embeddings, by an encoder in Hugging Face's format (BERT, MiniLM and their kin).

python -m dvq_jax.cli.encode --model=DIR --text=docs.tsv,queries.tsv --out=docs.npy,queries.npy

A .tsv has an id and a text a line, tab-separated; other commands take it as the file of ids. What is
interrupted goes on where it was. On several processes as `train`.
"""

import pathlib
import time

from absl import flags

from dvq_jax import peers
from dvq_jax.cli import encoders, processes, run
from dvq_jax.errors import InputError
from dvq_jax.texts import Texts

_MODEL = flags.DEFINE_string('model', None, "The encoder: a folder in Hugging Face's format.", required=True)
_TEXT = flags.DEFINE_list('text', None, 'A .tsv of ids and texts, or several.', required=True)
_OUT = flags.DEFINE_list('out', None, 'The embeddings, a .npy to write for each.', required=True)
flags.adopt_module_key_flags(encoders)
flags.adopt_module_key_flags(processes)
_DTYPE = flags.DEFINE_enum('dtype', 'float16', ['float16', 'float32'], 'Of the embeddings.')


def main() -> dict:
    """Encodes; says what was written."""
    begin = time.monotonic()
    processes.join()
    if len(_TEXT.value) != len(_OUT.value):
        raise InputError(f'--text names {len(_TEXT.value)} files and --out {len(_OUT.value)}; give as many.')
    for out in _OUT.value:
        if pathlib.Path(out).suffix != '.npy':
            raise InputError(f'--out={out}: embeddings are written as .npy; name it so.')
    from dvq_jax import embed

    with peers.all_or_none():
        encoder = encoders.load(_MODEL.value)
        texts = [Texts(text) for text in _TEXT.value]
    counts = {}
    for text, out in zip(texts, _OUT.value, strict=True):
        counts[out], dim = embed.embed_file(encoder, text, pathlib.Path(out), dtype=_DTYPE.value)
    return {'texts': counts, 'dim': dim, 'seconds': round(time.monotonic() - begin, 1)}


if __name__ == '__main__':
    run(main)
