"""MS MARCO passages (Bajaj et al., 2016, arXiv 1611.09268): 8.8 million passages and search engine queries.

The texts, the training queries, of which six in ten have a label, and the 6 980 queries of `dev.small`, by
which results are reported. For non-commercial research, see its terms.
"""

import pathlib
from collections.abc import Iterable, Iterator

import tensorflow_datasets as tfds

from dvq_jax.datasets import sources
from dvq_jax.datasets.collection import DOCUMENTS, Collection, Record
from dvq_jax.errors import InputError

ARCHIVE = sources.Source(
    url='https://msmarco.z22.web.core.windows.net/msmarcoranking/collectionandqueries.tar.gz',
    md5='31644046b18952c1386cd4564ba2ae69',
)
_QUERIES = {'train': 'train', 'dev': 'dev.small'}


class MsmarcoPassage(Collection):
    """The builder `msmarco_passage`: documents, train, dev."""

    DESCRIPTION = 'MS MARCO passage ranking: passages, queries, and which passage answers which query.'
    PUBLISHED = (ARCHIVE,)

    def splits(self, downloads: tfds.download.DownloadManager) -> dict[str, Iterable[Record]]:
        """The records, read from the archive."""
        folder = sources.fetch(ARCHIVE, downloads)
        documents = (Record(*columns) for _, columns in _rows(folder / 'collection.tsv', 2))
        return {DOCUMENTS: documents} | {
            split: _queries(folder / f'queries.{name}.tsv', folder / f'qrels.{name}.tsv')
            for split, name in _QUERIES.items()
        }


def _rows(path: pathlib.Path, count: int) -> Iterator[tuple[int, list[str]]]:
    for number, line in sources.lines(path):
        columns = line.split('\t')
        if len(columns) != count or not all(columns):
            raise InputError(
                f'{path}: line {number} has not {count} columns, tab-separated; get the file again.'
            )
        yield number, columns


def _queries(texts: pathlib.Path, qrels: pathlib.Path) -> Iterator[Record]:
    relevant: dict[str, list[str]] = {}
    for number, (query, _, document, grade) in _rows(qrels, 4):
        if not grade.isdigit():
            raise InputError(
                f'{qrels}: line {number} has the relevance {grade!r}, not a number; get the file again.'
            )
        if int(grade):
            relevant.setdefault(query, []).append(document)
    for _, (name, text) in _rows(texts, 2):
        yield Record(name, text, relevant=tuple(relevant.get(name, ())))
