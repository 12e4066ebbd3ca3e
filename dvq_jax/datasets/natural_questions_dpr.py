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
_CHUNK = 2**20  # characters of JSON read at once; a question has some 10⁵


class NaturalQuestionsDpr(Collection):
    """The builder `natural_questions_dpr`: documents, train, dev, test."""

    DESCRIPTION = 'Natural Questions over 21 million passages of Wikipedia, as DPR has prepared it.'
    MANUAL_DOWNLOAD_INSTRUCTIONS = 'Optional: ' + ', '.join(
        source.name for source in (PASSAGES, *QUESTIONS.values(), TEST)
    )

    def splits(self, downloads: tfds.download.DownloadManager) -> dict[str, Iterable[Record]]:
        """The records, from the published files."""
        documents = _passages(sources.fetch(PASSAGES, downloads))
        judged = {
            split: _questions(sources.fetch(source, downloads), split) for split, source in QUESTIONS.items()
        }
        return {DOCUMENTS: documents, **judged, 'test': _test_questions(sources.fetch(TEST, downloads))}


def _passages(path: pathlib.Path) -> Iterator[Record]:
    """Lines: id, text, title; a text that has quotes is quoted, and its quotes are doubled."""
    for number, line in sources.lines(path):
        columns = next(csv.reader([line], delimiter='\t'))
        if number == 1 and columns[0] == 'id':
            continue
        if len(columns) != 3 or not all(columns):
            raise InputError(f'{path}: line {number} is not an id, a text and a title; get the file again.')
        name, text, title = columns
        yield Record(name, text, title)


def _questions(path: pathlib.Path, split: str) -> Iterator[Record]:
    for number, question in enumerate(_objects(path), start=1):
        try:
            found = dict.fromkeys(passage['passage_id'] for passage in question['positive_ctxs'])
            yield Record(
                f'{split}{number}',
                question['question'],
                relevant=tuple(found),
                answers=tuple(question['answers']),
            )
        except (KeyError, TypeError) as error:
            raise InputError(
                f'{path}: question {number} lacks {error}; get the file again, it is not as DPR writes it.'
            ) from error


def _objects(path: pathlib.Path) -> Iterator[dict]:
    """The objects of a JSON array, one after another: all at once would take 20 GB."""
    decoder, count, text = json.JSONDecoder(), 0, ''
    with sources.reading(path) as file:
        text = file.read(_CHUNK).lstrip().removeprefix('[')
        while (text := text.lstrip(' \n\r\t,')) != ']':
            try:
                value, end = decoder.raw_decode(text)
            except json.JSONDecodeError as error:
                more = file.read(_CHUNK)
                if not more:
                    raise InputError(
                        f'{path}: is cut short or no JSON after question {count} ({error}); get it again.'
                    ) from error
                text += more
                continue
            text, count = text[end:], count + 1
            yield value


def _test_questions(path: pathlib.Path) -> Iterator[Record]:
    """Lines: a question, a tab, a Python list of answers, quoted where it has quotes."""
    for number, line in sources.lines(path):
        try:
            question, listed = next(csv.reader([line], delimiter='\t'))
            answers = ast.literal_eval(listed)
            if not answers or not all(isinstance(answer, str) for answer in answers):
                raise ValueError
        except (ValueError, SyntaxError) as error:
            raise InputError(
                f'{path}: line {number} is not a question and a list of answers; get the file again.'
            ) from error
        yield Record(f'test{number}', question, answers=tuple(answers))
