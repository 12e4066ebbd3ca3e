"""What training queries are worth: the default config with 1 to 100 % of them, codes chosen for them or not.

python benchmarks/few_queries.py --corpus=docs.npy --corpus_ids=docs.tsv --queries=train_queries.npy \
    --query_ids=train_queries.tsv --qrels=train_qrels.txt --dev_queries=dev_queries.npy \
    --dev_query_ids=dev_queries.tsv --dev_qrels=dev_qrels.txt --workdir=W --out=docs/results/few_queries.json

Each share is a draw of the training queries, prepared and trained as if there were no others. Measured, on
the dev queries, is the checkpoint that its own held-out queries chose: as it is, and with the nearest
codewords instead of the chosen ones; and the OPQ start, which sees no query. Finished shares are kept.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))  # configs/ is read from the checkout

import numpy as np
from absl import flags
from tables import markdown

from configs import default, distill_vq
from dvq_jax import cli, data, evaluate, files, towers, train
from dvq_jax.dataset import open_dataset
from dvq_jax.encode import encode_corpus
from dvq_jax.errors import InputError
from dvq_jax.ids import open_ids
from dvq_jax.prepare import prepare

_CORPUS = flags.DEFINE_string('corpus', None, 'Document embeddings.', required=True)
_CORPUS_IDS = flags.DEFINE_string('corpus_ids', None, 'Their ids.', required=True)
_QUERIES = flags.DEFINE_string('queries', None, 'Training queries.', required=True)
_QUERY_IDS = flags.DEFINE_string('query_ids', None, 'Their ids.', required=True)
_QRELS = flags.DEFINE_string('qrels', None, 'Their qrels; codes and lists do not use them.', required=True)
_DEV_QUERIES = flags.DEFINE_string('dev_queries', None, 'Queries to report on.', required=True)
_DEV_QUERY_IDS = flags.DEFINE_string('dev_query_ids', None, 'Their ids.', required=True)
_DEV_QRELS = flags.DEFINE_string('dev_qrels', None, 'Their qrels.', required=True)
_SHARES = flags.DEFINE_list('shares', ['0.01', '0.1', '0.3', '1'], 'Of the training queries.')
_NPROBE = flags.DEFINE_list('nprobe', ['10', '1024'], 'P.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder for datasets and runs.', required=True)
_OUT = flags.DEFINE_string('out', None, 'The numbers, JSON.', required=True)


def _draw(share: float, folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Writes a share of the training queries, drawn by seed 0, as files that `prepare` takes."""
    files.make_folder(folder)
    queries = data.open_embeddings(_QUERIES.value)
    ids = open_ids(_QUERY_IDS.value, len(queries))
    rows = np.sort(np.random.default_rng(0).permutation(len(ids))[: round(share * len(ids))])
    kept = {ids[row] for row in rows}
    judged = pathlib.Path(_QRELS.value).read_text(encoding='utf-8').splitlines()
    names = {'queries': 'queries.npy', 'query_ids': 'queries.tsv', 'qrels': 'qrels.txt'}
    paths = {what: folder / name for what, name in names.items()}
    np.save(paths['queries'], queries[rows])
    paths['query_ids'].write_text(''.join(f'{ids[row]}\n' for row in rows), encoding='utf-8')
    paths['qrels'].write_text(
        ''.join(f'{line}\n' for line in judged if line.split()[0] in kept), encoding='utf-8'
    )
    return paths


def _dataset(share: float) -> str:
    """The dataset of a share, prepared once."""
    folder = pathlib.Path(_WORKDIR.value) / f'{share:g}'
    out = folder / 'dataset'
    if not out.exists():
        prepare(corpus=_CORPUS.value, corpus_ids=_CORPUS_IDS.value, topk=200, out=out, **_draw(share, folder))
    return str(out)


def _trained(config, dataset: str, name: str) -> tuple[str, dict]:
    config.data.dataset = dataset
    workdir = str(pathlib.Path(dataset).with_name(name))
    return workdir, train.train(config, workdir)


def _measure(workdir: str, queries: evaluate.Queries) -> dict[str, dict]:
    """Metrics at each P of the best checkpoint, with its own codes and with the nearest codewords."""
    trained, dataset = evaluate.open_trained(workdir, 'best')
    nprobe = [int(value) for value in _NPROBE.value]
    encodings = {
        'nearest codewords': encode_corpus(trained.params, dataset.corpus, trained.lists),
        'chosen codes': evaluate.encode_trained(trained, dataset),
    }
    transformed = towers.apply(trained.tower, queries.embeddings)
    return {
        name: evaluate.evaluate_index(
            trained.params, encoding, queries, transformed=transformed, nprobe=nprobe
        )
        for name, encoding in encodings.items()
    }


def _rows(share: float) -> dict[str, dict]:
    """The rows of a share; a share of 0 is the OPQ start."""
    dataset = _dataset(share or max(map(float, _SHARES.value)))
    queries = evaluate.read_queries(
        _DEV_QUERIES.value,
        query_ids=_DEV_QUERY_IDS.value,
        qrels=_DEV_QRELS.value,
        dataset=open_dataset(dataset),
    )
    config = default.get_config() if share else distill_vq.get_config()
    if not share:
        config.train.steps = 0
    workdir, done = _trained(config, dataset, 'trained' if share else 'start')
    about = {'queries': len(open_dataset(dataset).train) if share else 0, 'step': done['best_step']}
    about['train_seconds'] = done['seconds']
    results = _measure(workdir, queries)
    if not share:
        return {'no queries: OPQ': {**about, 'nprobe': results['nearest codewords']}}
    return {f'{share:.0%}, {name}': {**about, 'nprobe': values} for name, values in results.items()}


def main() -> None:
    """Runs the shares that are missing, then prints the table."""
    out = pathlib.Path(_OUT.value)
    shares = [float(value) for value in _SHARES.value]
    if not all(0 < share <= 1 for share in shares):
        raise InputError(f'--shares={",".join(_SHARES.value)}: give numbers above 0, up to 1.')
    rows = json.loads(out.read_text(encoding='utf-8')) if out.exists() else {}
    for share in (0.0, *shares):
        stored = [name for name in rows if name.startswith(f'{share:.0%}, ' if share else 'no queries')]
        if not stored:
            rows |= _rows(share)
            with files.atomic_file(out) as aside:
                aside.write_text(json.dumps(rows, indent=1) + '\n', encoding='utf-8')
    print(markdown(rows))


if __name__ == '__main__':
    cli.run(main)
