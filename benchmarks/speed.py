"""How fast we are, against those who do the same; ratios within one run.

python benchmarks/speed.py --corpus=docs.npy --queries=queries.npy --out=docs/results/speed.json

Needs PyTorch for the training step of the peers. Every part that is finished is stored; --parts runs some.
"""

import json
import os
import pathlib
from typing import Any

import numpy as np
import speed_corpus
import speed_step
from absl import flags

from dvq_jax import cli, files
from dvq_jax.data import gather, open_embeddings

_CORPUS = flags.DEFINE_string('corpus', None, 'Document embeddings.', required=True)
_QUERIES = flags.DEFINE_string('queries', None, 'Query embeddings.', required=True)
_PARTS = flags.DEFINE_list('parts', ['step', 'mining', 'encoding'], 'What to measure.')
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Of each side.')
_LISTS = flags.DEFINE_integer('lists', 1024, 'L.')
_OUT = flags.DEFINE_string('out', None, 'The numbers, JSON.', required=True)


def _read(path: str) -> Any:
    vectors = open_embeddings(path)
    return gather(vectors, np.arange(len(vectors)))


def _measure(part: str) -> list[dict[str, Any]]:
    repeats = _REPEATS.value
    if part == 'step':
        return speed_step.measure(dims=[384, 768], books=[16, 48, 96], candidates=[8, 32], repeats=repeats)
    docs = _read(_CORPUS.value)
    if part == 'mining':
        return [speed_corpus.mining(docs, _read(_QUERIES.value), topk=200, repeats=repeats)]
    sizes = (16, 48)
    return [
        speed_corpus.encoding(docs, lists=_LISTS.value, codebooks=books, repeats=repeats) for books in sizes
    ]


def main() -> dict[str, Any]:
    """Measures the parts asked for, stores each, and prints all."""
    out = pathlib.Path(_OUT.value)
    stored = json.loads(out.read_text(encoding='utf-8')) if out.exists() else {}
    for part in _PARTS.value:
        stored[part] = {'cores': os.cpu_count(), 'rows': _measure(part)}
        with files.atomic_file(out) as aside:
            aside.write_text(json.dumps(stored, indent=1) + '\n', encoding='utf-8')
    return stored


if __name__ == '__main__':
    cli.run(main)
