"""The training dataset: what `prepare` writes and training reads.

A folder with the TFDS splits `train` and `dev` (array_record, read and written without TensorFlow) and
`corpus.json`, which says where the corpus is and what it looked like.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from dvq_jax import columns, files, records
from dvq_jax.blocks import cut
from dvq_jax.columns import Columns
from dvq_jax.data import fingerprint, open_embeddings
from dvq_jax.errors import InputError
from dvq_jax.progress import Progress

_NAME = 'dvq_training'
_CORPUS = 'corpus.json'
_READ = 4096  # examples at a time


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A training dataset, opened.

    Attributes:
      folder: where it is.
      corpus: [N, D] float16 or float32, memory-mapped.
      doc_ids_path: the corpus's ids, or None where they are row numbers.
      dim: D.
      topk: how many of the teacher's documents each query has.
      train: the examples to train on, `len()` and `[i]` -> dict with
        `query_id` str, `embedding` [D] float32, `topk_ids` [topk] int32, `topk_scores` [topk] float32,
        `positives` [any] int32, and `text` str where it was prepared with texts. Ids are rows of the corpus.
      dev: examples held out to choose a checkpoint by, of the same form.
      labelled: how many training examples have positives.
      texts: whether examples have `text`.
      fingerprint: of the corpus.
      digest: of the examples.
    """

    folder: pathlib.Path
    corpus: np.ndarray
    doc_ids_path: pathlib.Path | None
    dim: int
    topk: int
    train: 'Examples'
    dev: 'Examples'
    labelled: int
    texts: bool
    fingerprint: str
    digest: str


class Examples(Sequence):
    """Random access to the examples of a split; can be pickled, so that data workers can hold it.

    Args:
      source: a TFDS data source.
    """

    def __init__(self, source: Sequence):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f'example {index} of {len(self)}')
        return _tidy(self._source[int(index)])

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Many examples at once."""
        return [_tidy(example) for example in self._source.__getitems__([int(i) for i in indices])]

    def take(self, rows: Sequence[int]) -> Columns:
        """Reads some of the examples, one or more."""
        return columns.from_examples(self.__getitems__(rows))

    def columns(self) -> Columns:
        """Reads all of them, one or more; memory is about n·(4·D + 8·K) bytes."""
        progress = Progress('read', total=len(self), unit='queries')
        parts = []
        for block in cut(len(self), _READ):
            parts.append(self.take(range(block.start, block.stop)))
            progress.add(len(parts[-1]))
        progress.end()
        return columns.joined(parts)


def _tidy(example: dict[str, Any]) -> dict[str, Any]:
    query_id = example['query_id'].decode()
    tidy = {**example, 'query_id': query_id, 'positives': np.asarray(example['positives'], np.int32)}
    return tidy | ({'text': example['text'].decode()} if 'text' in example else {})


def held_out(query_ids: Sequence[str], count: int) -> np.ndarray:
    """Chooses queries by the hash of their ids, so that the choice does not depend on their order.

    Args:
      query_ids: Q ids.
      count: how many to hold out; at most 5 % of them are, and at least one if there are two.

    Returns:
      [Q] bool.
    """
    count = min(count, max(len(query_ids) // 20, 1), len(query_ids) - 1)
    hashes = [hashlib.sha256(name.encode()).digest() for name in query_ids]
    chosen = np.zeros(len(query_ids), bool)
    chosen[sorted(range(len(hashes)), key=hashes.__getitem__)[:count]] = True
    return chosen


def write_dataset(
    folder: pathlib.Path,
    *,
    corpus: np.ndarray,
    corpus_path: str,
    doc_ids_path: str | None,
    queries: np.ndarray,
    query_ids: Sequence[str],
    topk_ids: np.ndarray,
    topk_scores: np.ndarray,
    positives: Sequence[np.ndarray],
    texts: Sequence[str] | None,
    dev: np.ndarray,
) -> None:
    """Fills an empty folder with a training dataset.

    Args:
      folder: exists and is empty, or holds the corpus.
      corpus: [N, D] float16 or float32.
      corpus_path: where readers find it; absolute, or relative to the folder.
      doc_ids_path: its ids, absolute, or None.
      queries: [Q, D] float.
      query_ids: Q ids.
      topk_ids: [Q, K] int32.
      topk_scores: [Q, K] float32.
      positives: for each query, [any] int32.
      texts: the queries' texts, or None.
      dev: [Q] bool, the queries that go to the split `dev`.
    """
    topk = topk_ids.shape[1]
    rows = {'train': np.flatnonzero(~dev), 'dev': np.flatnonzero(dev)}

    def example(row: int) -> dict[str, Any]:
        text = {} if texts is None else {'text': texts[row]}
        return text | {
            'query_id': query_ids[row],
            'embedding': np.asarray(queries[row], np.float32),
            'topk_ids': topk_ids[row],
            'topk_scores': topk_scores[row],
            'positives': positives[row],
        }

    _write_splits(folder, _features(queries.shape[1], topk, texts=texts is not None), rows, example)
    written = sorted(folder.glob(f'*.{records.FORMAT}-*'))
    about = {
        'corpus': corpus_path,
        'corpus_ids': doc_ids_path,
        'rows': corpus.shape[0],
        'dim': corpus.shape[1],
        'dtype': str(corpus.dtype),
        'fingerprint': fingerprint(corpus),
        'topk': topk,
        'train': len(rows['train']),
        'dev': len(rows['dev']),
        'texts': texts is not None,
        'labelled': sum(len(positives[row]) > 0 for row in rows['train']),
        'examples': hashlib.sha256(''.join(map(files.sha256, written)).encode()).hexdigest(),
        'files': {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
    }
    (folder / _CORPUS).write_text(json.dumps(about, indent=2) + '\n', encoding='utf-8')


def _features(dim: int, topk: int, *, texts: bool) -> tfds.features.FeaturesDict:
    def tensor(size, dtype):  # as bytes: encoded 3 times and decoded twice as fast as the default
        return tfds.features.Tensor(shape=(size,), dtype=dtype, encoding='bytes')

    return tfds.features.FeaturesDict(
        {
            **({'text': tfds.features.Text()} if texts else {}),
            'query_id': tfds.features.Text(),
            'embedding': tensor(dim, np.float32),
            'topk_ids': tensor(topk, np.int32),
            'topk_scores': tensor(topk, np.float32),
            'positives': tfds.features.Sequence(np.int32),
        }
    )


def _write_splits(
    folder: pathlib.Path,
    features: tfds.features.FeaturesDict,
    rows: dict[str, np.ndarray],
    example: Callable[[int], dict[str, Any]],
) -> None:
    """Writes the examples and the metadata that TFDS reads."""
    infos = []
    for split in rows:
        template = tfds.core.ShardedFileTemplate(
            folder, dataset_name=_NAME, split=split, filetype_suffix=records.FORMAT
        )
        infos.append(records.write(template, features, map(example, rows[split])))
    info = tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(
            name=_NAME, version=tfds.core.Version('1.0.0'), data_dir=str(folder), module_name=__name__
        ),
        features=features,
        description="Queries with the teacher's Top-K.",
    )
    info.set_file_format(records.FORMAT)
    info.set_splits(tfds.core.SplitDict(infos))
    info.write_to_directory(folder)


def open_dataset(path: str | os.PathLike) -> Dataset:
    """Opens what `prepare` wrote.

    Args:
      path: the folder.

    Returns:
      The dataset; the corpus is memory-mapped.

    Raises:
      InputError: no dataset there, files missing or cut short, or another corpus under the path than then.

    Example:
      dataset = open_dataset('DATASET')
      dataset.train[0]['topk_ids']          # [topk] int32
    """
    folder = pathlib.Path(path)
    try:
        about = json.loads((folder / _CORPUS).read_text(encoding='utf-8'))
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(
            f'{folder}: not a training dataset, {_CORPUS} cannot be read; write it with dvq_jax.cli.prepare.'
        ) from error
    if 'texts' not in about:
        raise InputError(f'{folder}: was prepared by an earlier version of dvq_jax; prepare it again.')
    for name, size in about['files'].items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != size:
            raise InputError(f'{file}: missing or not {size} bytes long; run dvq_jax.cli.prepare again.')
    corpus_path = folder / about['corpus']
    if not corpus_path.is_file():
        raise InputError(
            f'{corpus_path}: the corpus of {folder} is not there any more; put it back, correct its path in '
            f'{folder / _CORPUS}, or prepare again.'
        )
    corpus = open_embeddings(corpus_path)
    if fingerprint(corpus) != about['fingerprint']:
        raise InputError(f'{corpus_path}: the corpus has changed since {folder} was made; prepare it again.')
    return Dataset(
        folder=folder,
        corpus=corpus,
        doc_ids_path=pathlib.Path(about['corpus_ids']) if about['corpus_ids'] else None,
        dim=about['dim'],
        topk=about['topk'],
        train=_open_split(folder, 'train', about['train']),
        dev=_open_split(folder, 'dev', about['dev']),
        labelled=about['labelled'],
        texts=about['texts'],
        fingerprint=about['fingerprint'],
        digest=about['examples'],
    )


def _open_split(folder: pathlib.Path, split: str, count: int) -> Examples:
    if not count:
        return Examples(())
    return Examples(tfds.builder_from_directory(folder).as_data_source(split))
