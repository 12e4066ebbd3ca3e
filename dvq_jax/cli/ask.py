r"""Answers questions in plain English: prints the texts that an index finds.

python -m dvq_jax.cli.ask --index=INDEX --documents=docs.tsv --question="how do I ..." [--k=5] [--nprobe=10]
python -m dvq_jax.cli.ask --index=INDEX --data=DIR      # of the functions and the embedding of pydoc_search
"""

import pathlib
import time
from collections.abc import Callable, Collection

import numpy as np
from absl import flags

from dvq_jax import texts
from dvq_jax.cli import run
from dvq_jax.datasets import lsa
from dvq_jax.errors import InputError
from dvq_jax.index import Index, open_index

_INDEX = flags.DEFINE_string('index', None, 'The index: a folder that export wrote.', required=True)
_DOCUMENTS = flags.DEFINE_string(
    'documents', None, 'A .tsv of ids and texts, where the index has a text encoder.'
)
_DATA = flags.DEFINE_string('data', None, 'Instead, the folder that pydoc_search wrote.')
_QUESTION = flags.DEFINE_multi_string('question', [], 'A question; may be given several times.')
_K = flags.DEFINE_integer('k', 5, 'Answers for each question.', lower_bound=1)
_NPROBE = flags.DEFINE_integer('nprobe', 10, 'Lists to search for each question.', lower_bound=1)

_SHOWN = 100  # characters of a text
_OF_PYDOC_SEARCH = [
    'How do I copy a directory tree recursively?',
    'parse a date string in ISO format',
    'wrap a long paragraph of text to a given width',
]


def _embed_by_lsa(questions: list[str]) -> np.ndarray:
    vectors = lsa.load(pathlib.Path(_DATA.value) / 'lsa').embed_queries(questions)
    for question, vector in zip(questions, vectors, strict=True):
        if not vector.any():
            raise InputError(f'--question={question!r}: no word of it is in the sources; use other words.')
    return vectors


def _find_functions(ids: Collection[str]) -> dict[str, tuple[str, str]]:
    """Of each function where it is, 'file:line', and its summary."""
    path = pathlib.Path(_DATA.value) / 'docs.tsv'
    columns = texts.find(path, ids)
    if any(len(values) != 3 for values in columns.values()):
        raise InputError(f'{path}: is not a list of functions; give what pydoc_search wrote.')
    return {name: (f'{file}:{line}', summary) for name, (file, line, summary) in columns.items()}


def _find_texts(ids: Collection[str]) -> dict[str, tuple[str, str]]:
    """Of each document its title, or nothing, and its text."""
    columns = texts.find(_DOCUMENTS.value, ids)
    return {name: (' '.join(values[:-1]), values[-1]) for name, values in columns.items()}


def _sides(index: Index) -> tuple[Callable, Callable]:
    """What embeds questions, and what tells of documents a place and a text."""
    if (_DOCUMENTS.value is None) == (_DATA.value is None):
        raise InputError('give --documents, of an index with a text encoder, or --data, of pydoc_search.')
    return (_embed_by_lsa, _find_functions) if _DATA.value else (index.embed, _find_texts)


def main() -> dict:
    """Embeds the questions, searches, prints the answers for a reader and returns them for a program."""
    questions = _QUESTION.value or (_OF_PYDOC_SEARCH if _DATA.value else [])
    if not questions:
        raise InputError('--question is not given; ask one.')
    index = open_index(_INDEX.value)
    embed, find = _sides(index)
    vectors = embed(questions)
    begin = time.monotonic()
    scores, ids = index.search(vectors, k=_K.value, nprobe=_NPROBE.value)
    milliseconds = 1000 * (time.monotonic() - begin) / len(questions)
    documents = find(set(ids[ids != ''].tolist()))
    answers = {}
    for question, values, names in zip(questions, scores, ids, strict=True):
        print(f'\n{question}')
        answers[question] = []
        for score, name in zip(values.tolist(), names, strict=True):
            if not name:  # the probed lists hold fewer than k documents
                break
            place, text = documents[name]
            print(f'  {score:.2f}  {name}' + (f'  ({place})' if place else ''))
            if text:
                print(f'        {text[:_SHOWN]}')
            answers[question].append({'id': name, 'score': score, 'place': place, 'text': text})
    return {'answers': answers, 'ms_per_query': round(milliseconds, 3)}


if __name__ == '__main__':
    run(main)
