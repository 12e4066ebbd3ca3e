"""Answers questions in plain English with functions: what the index of `pydoc_search` is for.

python -m dvq_jax.cli.ask --index=INDEX --data=DIR --question="decode a base64 string" [--k=5] [--nprobe=10]
"""

import pathlib
import time

from absl import flags

import dvq_jax
from dvq_jax.cli import run
from dvq_jax.datasets import lsa
from dvq_jax.errors import InputError

_INDEX = flags.DEFINE_string('index', None, 'The index: a folder that export wrote.', required=True)
_DATA = flags.DEFINE_string('data', None, 'The folder that pydoc_search wrote.', required=True)
_QUESTION = flags.DEFINE_multi_string(
    'question',
    [
        'How do I copy a directory tree recursively?',
        'parse a date string in ISO format',
        'wrap a long paragraph of text to a given width',
    ],
    'A question; may be given several times.',
)
_K = flags.DEFINE_integer('k', 5, 'Answers for each question.', lower_bound=1)
_NPROBE = flags.DEFINE_integer('nprobe', 10, 'Lists to search for each question.', lower_bound=1)


def _read_places(path: pathlib.Path) -> dict[str, tuple[str, str]]:
    """Where each document is, 'file:line', and its summary."""
    try:
        lines = path.read_text(encoding='utf-8').splitlines()
    except OSError as error:
        raise InputError(
            f'{path}: cannot be read ({error.strerror}); give what pydoc_search wrote.'
        ) from error
    columns = [line.split('\t') for line in lines]
    if any(len(line) != 4 for line in columns):
        raise InputError(f'{path}: is not a list of functions; give what pydoc_search wrote.')
    return {name: (f'{file}:{line}', summary) for name, file, line, summary in columns}


def main() -> dict:
    """Embeds the questions, searches, prints the answers for a reader and returns them for a program."""
    questions = _QUESTION.value
    data = pathlib.Path(_DATA.value)
    places = _read_places(data / 'docs.tsv')
    vectors = lsa.load(data / 'lsa').embed_queries(questions)
    for question, vector in zip(questions, vectors, strict=True):
        if not vector.any():
            raise InputError(f'--question={question!r}: no word of it is in the sources; use other words.')
    index = dvq_jax.open_index(_INDEX.value)
    begin = time.monotonic()
    scores, ids = index.search(vectors, k=_K.value, nprobe=_NPROBE.value)
    milliseconds = 1000 * (time.monotonic() - begin) / len(questions)
    answers = {}
    for question, values, names in zip(questions, scores, ids, strict=True):
        print(f'\n{question}')
        answers[question] = []
        for score, name in zip(values.tolist(), names, strict=True):
            if not name:  # the probed lists hold fewer than k functions
                break
            if name not in places:
                raise InputError(f'{name}: is in --index but not in --data; give the data it was built from.')
            place, summary = places[name]
            print(f'  {score:.2f}  {name}  ({place})')
            if summary:
                print(f'        {summary[:100]}')
            answers[question].append({'id': name, 'score': score, 'place': place})
    return {'answers': answers, 'ms_per_query': round(milliseconds, 3)}


if __name__ == '__main__':
    run(main)
