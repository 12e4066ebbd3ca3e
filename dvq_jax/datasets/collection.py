"""Text collections as TensorFlow Datasets: documents, queries, and what answers a query.

Every builder has a split `documents` and one or more of queries, all of one set of features: `id` and `text`;
`title`, of documents, or ''; `relevant`, of queries, the ids of their documents; `answers`, of queries,
strings of which a right document holds one. They are written and read without TensorFlow.

    from dvq_jax.datasets import msmarco_passage
    builder = msmarco_passage.MsmarcoPassage(data_dir='DATA')
    builder.download_and_prepare()
    builder.as_data_source('documents')[0]['text']          # bytes
"""

import abc
import contextlib
import pathlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import tensorflow_datasets as tfds
from tensorflow_datasets.core.dataset_builder import FileReaderBuilder

from dvq_jax import files, records
from dvq_jax.datasets.sources import Source
from dvq_jax.errors import InputError
from dvq_jax.progress import Progress

DOCUMENTS = 'documents'
_BLOCK = 1024  # examples read at once


class Record(NamedTuple):
    """A document or a query.

    Attributes:
      id: a word, unique in its split.
      text: not empty.
      title: a document's, or ''.
      relevant: ids of documents.
      answers: strings, one of which a document must hold.
    """

    id: str
    text: str
    title: str = ''
    relevant: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()


class Collection(FileReaderBuilder, skip_registration=True):
    """What builders of collections share; each says in `splits` where its records come from."""

    VERSION = tfds.core.Version('1.0.0')
    RELEASE_NOTES = {'1.0.0': 'The first.'}  # noqa: RUF012, it is TFDS's name
    DESCRIPTION = ''
    PUBLISHED: ClassVar[tuple[Source, ...]] = ()  # files that it is built from
    MANUAL_DOWNLOAD_INSTRUCTIONS = 'Optional: the published files, under their names.'

    def __init__(self, **kwargs: Any):
        super().__init__(file_format=records.FORMAT, **kwargs)

    @abc.abstractmethod
    def splits(self, downloads: tfds.download.DownloadManager) -> dict[str, Iterable[Record]]:
        """The records of each split, in order; `documents` is one of them."""

    def features(self) -> dict[str, Any]:
        """What an example has, in TFDS's types."""
        text = tfds.features.Text
        return {
            'id': text(),
            'text': text(),
            'title': text(),
            'relevant': tfds.features.Sequence(text()),
            'answers': tfds.features.Sequence(text()),
        }

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            features=tfds.features.FeaturesDict(self.features()),
            disable_shuffling=True,
        )

    def examples(self, _split: str, found: Iterable[Record]) -> Iterator[dict[str, Any]]:
        """The examples of a split, in the order of its records."""
        return (record._asdict() for record in found)

    def _download_and_prepare(self, dl_manager: tfds.download.DownloadManager, download_config: Any) -> None:
        del download_config
        infos = []
        for split, found in self.splits(dl_manager).items():
            examples = _counted(self.examples(split, found), f'build {split}')
            infos.append(records.write(self._get_filename_template(split), self.info.features, examples))
            if not infos[-1].num_examples:
                raise InputError(f'{self.name}: {split} has no texts; leave the split out, or give some.')
        self.info.set_splits(tfds.core.SplitDict(infos))


def _counted(examples: Iterable[dict], label: str) -> Iterator[dict]:
    progress = Progress(label, total=None, unit='texts')
    for example in examples:
        yield example
        progress.add(1)
    progress.done()


def prepare(builder: Collection, *, manual_dir: str | None = None) -> None:
    """Downloads and builds what is not there yet.

    Args:
      builder: of a collection.
      manual_dir: a folder with all published files, under the names that they are published under; None
        downloads.

    Raises:
      InputError: a file cannot be had, is not the one that was published, or has a line that is not of its
        form; a split is empty; or TFDS's folder cannot be written to.
    """
    for source in builder.PUBLISHED if manual_dir else ():
        if not (pathlib.Path(manual_dir) / source.name).is_file():
            raise InputError(
                f'{manual_dir}: has no {source.name}; put it there, or leave --manual_dir out to download it.'
            )
    files.make_folder(builder.data_dir_root)
    # TFDS tells on stdout what it does, where a command's result belongs.
    with contextlib.redirect_stdout(sys.stderr):
        config = tfds.download.DownloadConfig(manual_dir=manual_dir)
        builder.download_and_prepare(download_config=config)


def write_texts(builder: Collection, folder: pathlib.Path) -> None:
    """Writes a built collection as the files that the commands read.

    `docs.tsv` has an id, the title and [SEP] where there is one, and the text a line, by tabs: a BERT then
    sees title and text as a pair. For each split of queries SPLIT_queries.tsv, and, where they have any,
    SPLIT_qrels.txt (TREC) and SPLIT_answers.tsv (an id and its answers). White space in texts is one blank.

    Args:
      builder: prepared.
      folder: exists.
    """
    for split in builder.info.splits:
        found = _read_back(builder.as_data_source(split), f'write {split}')
        if split == DOCUMENTS:
            _write_documents(folder / 'docs.tsv', found)
        else:
            _write_queries(folder, split, found)


def _read_back(source: Sequence, label: str) -> Iterator[Record]:
    """The examples of a split as they were given to the builder."""
    progress = Progress(label, total=len(source), unit='texts')
    for start in range(0, len(source), _BLOCK):
        rows = list(range(start, min(start + _BLOCK, len(source))))
        for example in source.__getitems__(rows):
            words = {name: example[name].decode() for name in ('id', 'text', 'title')}
            lists = {name: tuple(item.decode() for item in example[name]) for name in ('relevant', 'answers')}
            yield Record(**words, **lists)
        progress.add(len(rows))
    progress.done()


def _write_documents(path: pathlib.Path, found: Iterable[Record]) -> None:
    with open(path, 'w', encoding='utf-8') as file:
        for record in found:
            title = [f'{record.title} [SEP]'] if record.title else []
            print(_columns(record.id, *title, record.text), file=file)


def _write_queries(folder: pathlib.Path, split: str, found: Iterable[Record]) -> None:
    paths = [folder / f'{split}_{name}' for name in ('queries.tsv', 'qrels.txt', 'answers.tsv')]
    with contextlib.ExitStack() as stack:
        queries, qrels, answers = (stack.enter_context(open(path, 'w', encoding='utf-8')) for path in paths)
        for record in found:
            print(_columns(record.id, record.text), file=queries)
            qrels.writelines(f'{record.id} 0 {name} 1\n' for name in record.relevant)
            if record.answers:
                print(_columns(record.id, *record.answers), file=answers)
    for path in paths:
        if not path.stat().st_size:
            path.unlink()


def _columns(*columns: str) -> str:
    return '\t'.join(' '.join(column.split()) for column in columns)
