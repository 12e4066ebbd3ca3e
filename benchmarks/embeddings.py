"""The default config on embeddings of other kinds: any dimension, even norms or not.

python benchmarks/embeddings.py --collection=FOLDER --name=pydoc --lists=128 --codebooks=48 --workdir=W \
    --out=docs/results/embeddings.json

The folder holds docs.npy and docs.tsv, and for train and dev queries .npy, .tsv and qrels .txt, as
`pydoc_search` writes them. Its embeddings are taken as they are, and with uneven norms: every document times
20·exp(0.3·z), every query times exp(0.5·z), z standard normal. Of each, on the dev queries: exact search, the
start (k-means and OPQ, nearest lists and codewords) and what the default config makes of it. Finished rows
are kept.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))  # configs/ is read from the checkout

import ml_collections
import numpy as np
from absl import flags
from tables import markdown

from configs import default, distill_vq
from dvq_jax import cli, data, evaluate, files, train
from dvq_jax.dataset import open_dataset
from dvq_jax.prepare import prepare

_COLLECTION = flags.DEFINE_string('collection', None, 'Folder with embeddings, ids and qrels.', required=True)
_NAME = flags.DEFINE_string('name', None, 'What rows call it.', required=True)
_LISTS = flags.DEFINE_integer('lists', 1024, 'L.')
_CODEBOOKS = flags.DEFINE_integer('codebooks', 16, 'M.')
_NPROBE = flags.DEFINE_integer('nprobe', 10, 'P.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder for datasets and runs.', required=True)
_OUT = flags.DEFINE_string('out', 'docs/results/embeddings.json', 'The numbers, JSON.')

_SCALE, _SIGMA, _QUERY_SIGMA = 20.0, 0.3, 0.5


def _as_they_are(vectors: np.ndarray, _name: str) -> np.ndarray:
    return vectors


def _uneven(vectors: np.ndarray, name: str) -> np.ndarray:
    scale, sigma = (_SCALE, _SIGMA) if name == 'docs' else (1.0, _QUERY_SIGMA)
    normal = np.random.default_rng(len(vectors)).normal(size=(len(vectors), 1))
    return (vectors * scale * np.exp(sigma * normal)).astype(np.float32)


_KINDS = {'as they are': _as_they_are, 'uneven norms': _uneven}


def _dataset(kind: str, folder: pathlib.Path) -> tuple[str, str]:
    """The prepared dataset of a kind, made once, and its dev queries."""
    source, out = pathlib.Path(_COLLECTION.value), folder / 'dataset'
    files.make_folder(folder)
    for name in ('docs', 'train_queries', 'dev_queries'):
        if not (folder / f'{name}.npy').exists():
            vectors = _KINDS[kind](data.open_embeddings(source / f'{name}.npy'), name)
            with files.atomic_file(folder / f'{name}.npy') as aside, open(aside, 'wb') as file:
                np.save(file, vectors)
    if not out.exists():
        prepare(
            corpus=str(folder / 'docs.npy'),
            corpus_ids=str(source / 'docs.tsv'),
            queries=str(folder / 'train_queries.npy'),
            query_ids=str(source / 'train_queries.tsv'),
            qrels=str(source / 'train_qrels.txt'),
            topk=200,
            out=out,
        )
    return str(out), str(folder / 'dev_queries.npy')


def _config(trained: bool) -> ml_collections.ConfigDict:
    config = default.get_config() if trained else distill_vq.get_config()
    if not trained:
        config.train.steps = 0
    config.index.lists, config.index.codebooks = _LISTS.value, _CODEBOOKS.value
    config.eval.nprobe = _NPROBE.value
    return config


def _rows(kind: str) -> dict[str, dict]:
    """Exact search, the start and the trained index."""
    folder = pathlib.Path(_WORKDIR.value) / _NAME.value / kind.replace(' ', '-')
    dataset, path = _dataset(kind, folder)
    source, nprobe = pathlib.Path(_COLLECTION.value), [_NPROBE.value, _LISTS.value]
    queries = evaluate.read_queries(
        path,
        query_ids=str(source / 'dev_queries.tsv'),
        qrels=str(source / 'dev_qrels.txt'),
        dataset=open_dataset(dataset),
    )
    rows = {}
    for name, trained in (('start', False), ('default', True)):
        config = _config(trained)
        config.data.dataset = dataset
        workdir = str(folder / name)
        done = train.train(config, workdir)
        result = evaluate.evaluate_trained(*evaluate.open_trained(workdir, 'best'), queries, nprobe=nprobe)
        rows[name] = {'nprobe': result['nprobe'], 'train_seconds': done['seconds']}
    exact = {**result['dense'], **{name: 1.0 for name in evaluate.teacher_metrics(queries)}}
    rows = {'exact': {'nprobe': {str(p): exact for p in nprobe}, 'train_seconds': 0.0}, **rows}
    dim = open_dataset(dataset).dim
    about = {'documents': result['documents'], 'dim': dim, 'bytes': result['bytes_per_document']}
    return {f'{_NAME.value}, D {dim}, {kind}: {name}': {**about, **row} for name, row in rows.items()}


def main() -> None:
    """Runs the kinds that are missing, then prints the table."""
    out = pathlib.Path(_OUT.value)
    rows = json.loads(out.read_text(encoding='utf-8')) if out.exists() else {}
    for kind in _KINDS:
        if not any(name.startswith(f'{_NAME.value}, ') and f', {kind}: ' in name for name in rows):
            rows |= _rows(kind)
            with files.atomic_file(out) as aside:
                aside.write_text(json.dumps(rows, indent=1) + '\n', encoding='utf-8')
    print(markdown({name: row for name, row in rows.items() if name.startswith(f'{_NAME.value}, ')}))


if __name__ == '__main__':
    cli.run(main)
