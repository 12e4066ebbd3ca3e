"""From the user's files to a training dataset: check, mine, write."""

import os
import pathlib
import shutil
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from dvq_jax import data, dataset, files, peers, teacher
from dvq_jax.errors import InputError
from dvq_jax.ids import open_ids
from dvq_jax.texts import Texts

Path = str | os.PathLike


class Inputs(NamedTuple):
    """What the user's files hold, checked.

    Attributes:
      corpus: [N, D] float16 or float32, memory-mapped.
      queries: [Q, D] float16 or float32, memory-mapped.
      query_ids: Q ids.
      positives: for each query, [any] int32, its relevant rows of the corpus.
      texts: the queries' texts, where they are wanted.
    """

    corpus: np.ndarray
    queries: np.ndarray
    query_ids: Sequence[str]
    positives: list[np.ndarray]
    texts: list[str] | None = None


def new_dataset(out: Path) -> pathlib.Path:
    """The absolute path of a dataset to create; raises InputError where it exists."""
    return files.check_new(out).absolute()


def mining_folder(out: pathlib.Path) -> pathlib.Path:
    """Where the finished mining of a dataset is kept until the dataset is written."""
    return out.with_name(f'.{out.name}.mining')


def read_inputs(
    *,
    corpus: Path,
    queries: Path,
    topk: int,
    corpus_ids: Path | None = None,
    query_ids: Path | None = None,
    qrels: Path | None = None,
    query_texts: bool = False,
) -> Inputs:
    """Opens and checks what `prepare` is given; writes nothing.

    Args:
      corpus: document embeddings, a file that `data.open_embeddings` knows.
      queries: query embeddings, likewise.
      topk: how many of the teacher's documents each query is to get.
      corpus_ids: a `.tsv` whose first column is the documents' ids; None takes row numbers.
      query_ids: the queries' ids, likewise.
      qrels: TREC qrels, or None.
      query_texts: read the queries' texts from `query_ids` too.

    Returns:
      The inputs.

    Raises:
      InputError: any of them cannot be used.
    """
    docs, vectors = data.open_embeddings(corpus), data.open_embeddings(queries)
    data.check_same_dim(docs, vectors, queries)
    names = open_ids(query_ids, len(vectors))
    positives = [np.empty(0, np.int32)] * len(vectors)
    if corpus_ids or qrels:
        doc_ids = open_ids(corpus_ids, len(docs))
        if qrels:
            positives = data.read_qrels(qrels, names, doc_ids)
    data.check_finite(vectors, queries)
    data.check_finite(docs, corpus)
    if len(vectors) < 2:
        raise InputError(f'{queries}: holds a single query; give at least 2, one is held out to choose by.')
    if topk > len(docs):
        raise InputError(f'{corpus}: has {len(docs)} documents, topk is {topk}; lower topk.')
    texts = None
    if query_texts:
        if query_ids is None:
            raise InputError(
                'texts of queries are wanted and --query_ids is not given; give it, ids and texts.'
            )
        texts = Texts(query_ids).all()
    return Inputs(docs, vectors, names, positives, texts)


def prepare(
    *,
    corpus: Path,
    queries: Path,
    out: Path,
    corpus_ids: Path | None = None,
    query_ids: Path | None = None,
    qrels: Path | None = None,
    topk: int = 200,
    dev_queries: int = 1000,
    query_texts: bool = False,
) -> dict:
    """Mines the teacher's Top-K of each query and writes a training dataset.

    A killed call leaves its finished mining in `.OUT.mining` beside `out`; the same call goes on from there
    and ends with the same bytes. The processes of a `jax.distributed` run that see `out` share the mining.

    Args:
      corpus, queries, corpus_ids, query_ids, qrels, query_texts: as `read_inputs` takes them.
      out: the dataset, a folder to create.
      topk: how many of the teacher's documents each query gets, at most N.
      dev_queries: queries held out to choose a checkpoint by; at most 5 % are.

    Returns:
      What was written: `dataset`, `documents`, `train`, `dev`, `topk`, `seconds`.

    Raises:
      InputError: a file cannot be used, topk exceeds N, `out` cannot be created, or another process failed.

    Example:
      prepare(corpus='docs.npy', queries='queries.npy', out='DATASET', topk=200)
    """
    begin = time.monotonic()
    with peers.all_or_none():
        out = new_dataset(out)
        inputs = read_inputs(
            corpus=corpus,
            queries=queries,
            topk=topk,
            corpus_ids=corpus_ids,
            query_ids=query_ids,
            qrels=qrels,
            query_texts=query_texts,
        )
        files.make_folder(out.parent)
    mined = teacher.mine(inputs.corpus, inputs.queries, topk, cache=mining_folder(out))
    dev = dataset.held_out(inputs.query_ids, dev_queries)
    with peers.all_or_none():
        if jax.process_index() == 0:
            _write(out, inputs, mined, dev, corpus=corpus, corpus_ids=corpus_ids)
    if jax.process_index() == 0:  # only now has everybody read it
        shutil.rmtree(mining_folder(out))
    return {
        'dataset': str(out),
        'documents': len(inputs.corpus),
        'train': int((~dev).sum()),
        'dev': int(dev.sum()),
        'topk': topk,
        'seconds': round(time.monotonic() - begin, 1),
    }


def _write(
    out: pathlib.Path,
    inputs: Inputs,
    mined: tuple[np.ndarray, np.ndarray],
    dev: np.ndarray,
    *,
    corpus: Path,
    corpus_ids: Path | None,
) -> None:
    with files.atomic_folder(out) as folder:
        corpus_path = pathlib.Path(corpus).absolute()
        if corpus_path.suffix == '.parquet':  # cannot be memory-mapped: the dataset keeps a copy that can
            corpus_path = pathlib.Path('docs.npy')
            np.save(folder / corpus_path, inputs.corpus)
        topk_ids, topk_scores = mined
        dataset.write_dataset(
            folder,
            corpus=inputs.corpus,
            corpus_path=str(corpus_path),
            doc_ids_path=str(pathlib.Path(corpus_ids).absolute()) if corpus_ids else None,
            queries=inputs.queries,
            query_ids=inputs.query_ids,
            topk_ids=topk_ids,
            topk_scores=topk_scores,
            positives=inputs.positives,
            texts=inputs.texts,
            dev=dev,
        )
