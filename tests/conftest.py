import pathlib
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))  # configs/ is read from the checkout

from dvq_jax.prepare import prepare

DOCS, QUERIES, DIM = 1500, 1200, 32


def clustered(rng, count, dim=DIM, clusters=40):
    """Unit-norm vectors around a few centers, as embeddings are."""
    centers = rng.normal(size=(clusters, dim))
    points = centers[rng.integers(clusters, size=count)] + 0.7 * rng.normal(size=(count, dim))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def write_collection(folder):
    """A small collection with one relevant document a query; returns the flags that `prepare` takes."""
    rng = np.random.default_rng(7)
    docs = clustered(rng, DOCS)
    relevant = rng.choice(DOCS, QUERIES, replace=False)
    queries = docs[relevant] + 0.1 * rng.normal(size=(QUERIES, DIM))
    queries = (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32)
    np.save(folder / 'docs.npy', docs)
    np.save(folder / 'queries.npy', queries)
    (folder / 'docs.tsv').write_text(''.join(f'd{row}\n' for row in range(DOCS)))
    (folder / 'queries.tsv').write_text(''.join(f'q{row}\n' for row in range(QUERIES)))
    (folder / 'qrels.txt').write_text(''.join(f'q{q} 0 d{d} 1\n' for q, d in enumerate(relevant)))
    names = {'corpus': 'docs.npy', 'corpus_ids': 'docs.tsv', 'queries': 'queries.npy'}
    names |= {'query_ids': 'queries.tsv', 'qrels': 'qrels.txt'}
    return {key: str(folder / name) for key, name in names.items()}


@pytest.fixture(scope='session')
def collection(tmp_path_factory):
    """Files of a small collection, and its training dataset under 'dataset'."""
    folder = tmp_path_factory.mktemp('collection')
    paths = write_collection(folder)
    prepare(**paths, topk=50, dev_queries=60, out=folder / 'dataset')
    return {**paths, 'dataset': str(folder / 'dataset')}


def shrunk_config(dataset):
    """configs/default.py shrunk to a small collection's dataset."""
    from configs import default

    config = default.get_config()
    config.data.dataset = dataset
    config.data.batch_size = 16
    config.index.lists, config.index.codebooks, config.index.codewords = 16, 4, 16
    config.initialize.opq_iterations = config.initialize.coarse_iterations = 3
    config.initialize.pq_iterations = 2
    config.routing.rounds = 1
    config.codes.queries, config.codes.sweeps = 8, 1
    config.candidates = 'top50:4+ib'
    config.train.steps, config.train.log_every, config.train.checkpoint_every = 20, 5, 10
    config.eval.nprobe = 4
    return config


@pytest.fixture
def small_config(collection):
    """configs/default.py shrunk to the small collection."""
    return shrunk_config(collection['dataset'])
