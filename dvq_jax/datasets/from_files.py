"""The user's own collection: texts, labels and embeddings from files, as TFDS."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from dvq_jax import data, files
from dvq_jax.datasets.collection import DOCUMENTS, Collection, Record
from dvq_jax.errors import InputError
from dvq_jax.ids import open_ids
from dvq_jax.texts import Texts

Path = str | os.PathLike
_BLOCK = 1024  # texts read at once


class FromFiles(Collection):
    """The builder `from_files`: documents, and the user's splits of queries.

    With embeddings, examples have `embedding` too, [D], as it is in the file.

    Args:
      collection: its name, a word; TFDS keeps what is built under it and a digest of the files.
      texts: for each split, one of which is `documents`, a .tsv of ids and texts.
      qrels: for splits of queries, TREC qrels.
      embeddings: for every split or none, a file that `data.open_embeddings` knows, a row a text.
      **kwargs: as TFDS's builders take them, `data_dir`.

    Raises:
      InputError: a file cannot be read, or does not fit the others.

    Example:
      builder = FromFiles(collection='mine', data_dir='DATA', qrels={'train': 'train_qrels.txt'},
                          texts={'documents': 'docs.tsv', 'train': 'train_queries.tsv'})
    """

    DESCRIPTION = "A user's own documents and queries."

    def __init__(
        self,
        *,
        collection: str,
        texts: Mapping[str, Path],
        qrels: Mapping[str, Path] | None = None,
        embeddings: Mapping[str, Path] | None = None,
        **kwargs: Any,
    ):
        self._qrels = dict(qrels or {})
        if DOCUMENTS not in texts:
            raise InputError(f'texts of {sorted(texts)} are given; give those of {DOCUMENTS} too.')
        if 'all' in texts:
            raise InputError(
                "texts are given for a split 'all', which is TFDS's word for every split; rename it."
            )
        if unknown := self._qrels.keys() - (texts.keys() - {DOCUMENTS}):
            raise InputError(
                f'qrels are given for {min(unknown)!r}, which has no texts of queries; give both.'
            )
        if embeddings and embeddings.keys() != texts.keys():
            raise InputError(
                f'embeddings are given for {sorted(embeddings)} and texts for {sorted(texts)}; give both for '
                'the same splits, or no embeddings.'
            )
        self._texts = {split: Texts(path) for split, path in texts.items()}
        self._ids = {split: open_ids(texts[split], len(read)) for split, read in self._texts.items()}
        self._relevant = {
            split: data.read_qrels(path, self._ids[split], self._ids[DOCUMENTS])
            for split, path in self._qrels.items()
        }
        self._paths = dict(embeddings or {})
        self._embeddings = self._open()
        super().__init__(config=tfds.core.BuilderConfig(name=f'{collection}_{self._digest()}'), **kwargs)

    def _open(self) -> dict[str, np.ndarray]:
        opened = {split: data.open_embeddings(path) for split, path in self._paths.items()}
        for split, vectors in opened.items():
            data.check_same_dim(opened[DOCUMENTS], vectors, self._paths[split])
            texts = len(self._ids[split])
            if len(vectors) != texts:
                raise InputError(
                    f'{self._paths[split]}: has {len(vectors)} embeddings for {texts} texts of {split}; '
                    'give one for each, in their order.'
                )
        return opened

    def _digest(self) -> str:
        """Tells these files from others: a collection that TFDS keeps is never that of older ones."""
        parts = [(split, 'texts', texts.digest()) for split, texts in self._texts.items()]
        parts += [(split, 'qrels', files.sha256(path)) for split, path in self._qrels.items()]
        parts += [(split, 'embeddings', files.sha256(path)) for split, path in self._paths.items()]
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def features(self) -> dict[str, Any]:
        """What every collection has, and embeddings where they are given."""
        if not self._embeddings:
            return super().features()
        dim = self._embeddings[DOCUMENTS].shape[1]
        embedding = tfds.features.Tensor(shape=(dim,), dtype=self._dtype, encoding='bytes')
        return super().features() | {'embedding': embedding}

    @property
    def _dtype(self) -> np.dtype:
        """Of all embeddings: float16 documents and float32 queries are float32."""
        return np.result_type(*self._embeddings.values())

    def splits(self, downloads: tfds.download.DownloadManager) -> dict[str, Iterable[Record]]:
        """The records of the files."""
        del downloads
        return {split: self._read(split) for split in self._texts}

    def _read(self, split: str) -> Iterator[Record]:
        ids, docs, relevant = self._ids[split], self._ids[DOCUMENTS], self._relevant.get(split)
        for start in range(0, len(ids), _BLOCK):
            rows = slice(start, min(start + _BLOCK, len(ids)))
            for row, text in enumerate(self._texts[split].read(rows), start=start):
                found = () if relevant is None else tuple(docs[doc] for doc in relevant[row])
                yield Record(ids[row], text, relevant=found)

    def examples(self, split: str, found: Iterable[Record]) -> Iterator[dict[str, Any]]:
        """The examples of a split, with embeddings where they are given."""
        for row, example in enumerate(super().examples(split, found)):
            if self._embeddings:
                example['embedding'] = self._embeddings[split][row].astype(self._dtype)
            yield example
