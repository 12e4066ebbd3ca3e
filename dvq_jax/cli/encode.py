"""Texts to embeddings, by an encoder in Hugging Face's format (BERT, MiniLM and their kin).

python -m dvq_jax.cli.encode --model=DIR --text=docs.tsv --out=docs.npy

The .tsv has an id and a text a line, tab-separated; other commands take it as the file of ids. What is
interrupted goes on where it was. On several processes as `train`.
"""

import pathlib
import time

from absl import flags

from dvq_jax.cli import processes, run

_MODEL = flags.DEFINE_string('model', None, "The encoder: a folder in Hugging Face's format.", required=True)
_TEXT = flags.DEFINE_string('text', None, 'A .tsv of ids and texts.', required=True)
_OUT = flags.DEFINE_string('out', None, 'The embeddings: a .npy to write.', required=True)
_PREFIX = flags.DEFINE_string('prefix', '', "Before each text, where the model wants it, such as 'query: '.")
_POOLING = flags.DEFINE_enum(
    'pooling', None, ['cls', 'mean', 'max'], "Hidden states to one vector; else the folder's."
)
_NORMALIZE = flags.DEFINE_bool('normalize', None, 'Vectors to unit norm; else as the folder says.')
_MAX_LENGTH = flags.DEFINE_integer('max_length', None, "Of a text, in tokens; else the folder's.")
_COMPUTE = flags.DEFINE_enum('compute', 'float32', ['float32', 'bfloat16'], 'Of the arithmetic.')
_DTYPE = flags.DEFINE_enum('dtype', 'float16', ['float16', 'float32'], 'Of the embeddings.')


def main() -> dict:
    """Encodes; says what was written."""
    begin = time.monotonic()
    processes.join()
    from dvq_jax import embed, huggingface
    from dvq_jax.texts import Texts

    encoder = huggingface.load(
        _MODEL.value,
        pooling=_POOLING.value,
        normalize=_NORMALIZE.value,
        max_length=_MAX_LENGTH.value,
        dtype=_COMPUTE.value,
    )
    out = pathlib.Path(_OUT.value)
    count, dim = embed.embed_file(encoder, Texts(_TEXT.value), out, prefix=_PREFIX.value, dtype=_DTYPE.value)
    seconds = time.monotonic() - begin
    return {'out': str(out), 'texts': count, 'dim': dim, 'seconds': round(seconds, 1)}


if __name__ == '__main__':
    run(main)
