"""Natural Questions as dense passage retrieval has it (Karpukhin et al., 2020, arXiv 2004.04906).

21 million passages of 100 words from Wikipedia, the questions to train on with passages that answer them, and
the 3 610 test questions with their answers alone: a passage is right where it holds one, see `answers`.
"""

import ast
import csv
import json
import pathlib
from collections.abc import Iterable, Iterator

import tensorflow_datasets as tfds

from dvq_jax.datasets import sources
from dvq_jax.datasets.collection import DOCUMENTS, Collection, Record
from dvq_jax.errors import InputError

_DPR = 'https://dl.fbaipublicfiles.com/dpr'
PASSAGES = sources.Source(f'{_DPR}/wikipedia_split/psgs_w100.tsv.gz', '612fe66e0b6b41ee28f806140226c563')
QUESTIONS = {
    'train': sources.Source(
        f'{_DPR}/data/retriever/biencoder-nq-train.json.gz', 'a1c927b5adae71388eb064329387709f'
    ),
    'dev': sources.Source(
        f'{_DPR}/data/retriever/biencoder-nq-dev.json.gz', '2640483dbe0df7ae29c6da419c551a80'
    ),
}
TEST = sources.Source(f'{_DPR}/data/retriever/nq-test.qa.csv')
_TEST_QUESTIONS = 3610
_CHUNK, _LONGEST = 2**20, 2**26  # characters of JSON: read at once, and of a question, which has some 10⁵


class NaturalQuestionsDpr(Collection):
    """The builder `natural_questions_dpr`: documents, train, dev, test."""

    DESCRIPTION = 'Natural Questions over 21 million passages of Wikipedia, as DPR has prepared it.'
    PUBLISHED = (PASSAGES, *QUESTIONS.values(), TEST)

    def splits(self, downloads: tfds.download.DownloadManager) -> dict[str, Iterable[Record]]:
        """The records, from the published files."""
        documents = _passages(sources.fetch(PASSAGES, downloads))
        judged = {
            split: _questions(sources.fetch(source, downloads), split) for split, source in QUESTIONS.items()
        }
        return {DOCUMENTS: documents, **judged, 'test': _test_questions(sources.fetch(TEST, downloads))}


def _columns(path: pathlib.Path, number: int, line: str) -> list[str]:
    """A tab-separated line; a column that has quotes is quoted, and its quotes are doubled."""
    try:
        return next(csv.reader([line], delimiter='\t'))
    except csv.Error as error:
        raise InputError(
            f'{path}: line {number} is no line of columns ({error}); get the file again.'
        ) from error


def _passages(path: pathlib.Path) -> Iterator[Record]:
    """Lines: id, text, title, below a line that says so."""
    for number, line in sources.lines(path):
        columns = _columns(path, number, line)
        if number == 1 and columns[:1] == ['id']:
            continue
        if len(columns) != 3 or not all(columns):
            raise InputError(f'{path}: line {number} is not an id, a text and a title; get the file again.')
        name, text, title = columns
        yield Record(name, text, title)


def _questions(path: pathlib.Path, split: str) -> Iterator[Record]:
    for number, question in enumerate(_objects(path), start=1):
        try:
            text, answers = question['question'], question['answers']
            found = [passage['passage_id'] for passage in question['positive_ctxs']]
        except (KeyError, TypeError) as error:
            raise InputError(
                f'{path}: question {number} lacks {error}; get the file again, it is not as DPR writes it.'
            ) from error
        if not text or not _are_words(answers) or not _are_words(found):
            raise InputError(
                f'{path}: question {number} has no text, or answers or passages that are no strings; get the '
                'file again, it is not as DPR writes it.'
            )
        yield Record(f'{split}{number}', text, relevant=tuple(dict.fromkeys(found)), answers=tuple(answers))


def _are_words(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) and value for value in values)


def _objects(path: pathlib.Path) -> Iterator[dict]:
    """The objects of a JSON array, one after another: all at once would take 20 GB."""
    decoder, count = json.JSONDecoder(), 0
    with sources.reading(path) as file:
        text = file.read(_CHUNK).lstrip().removeprefix('[')
        while not (text := text.lstrip(' \n\r\t,')).startswith(']'):
            try:
                value, end = decoder.raw_decode(text)
            except json.JSONDecodeError as error:
                more = file.read(_CHUNK) if len(text) < _LONGEST else ''
                if not more:
                    raise InputError(
                        f'{path}: is cut short or no JSON after question {count} ({error}); get it again.'
                    ) from error
                text += more
                continue
            text, count = text[end:], count + 1
            yield value


def _test_questions(path: pathlib.Path) -> Iterator[Record]:
    """Lines: a question, and a Python list of answers."""
    number = 0
    for number, line in sources.lines(path):
        columns = _columns(path, number, line)
        try:
            question, listed = columns
            answers = ast.literal_eval(listed)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            question, answers = '', None
        if not question or not answers or not _are_words(answers):
            raise InputError(
                f'{path}: line {number} is not a question and a list of answers; get the file again.'
            )
        yield Record(f'test{number}', question, answers=tuple(answers))
    if number != _TEST_QUESTIONS:  # no checksum is published
        raise InputError(
            f'{path}: has {number} questions and not {_TEST_QUESTIONS}; remove it, to download it again.'
        )
