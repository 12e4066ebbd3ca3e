"""Ablations on your own data: loss (the paper's eqs. 7 to 11), candidates (its Table 3), matrix products.

python benchmarks/ablation.py --table=losses --dataset=DATASET --workdir=W --out=docs/results/losses.json \
    --queries=dev_queries.npy --query_ids=dev_queries.tsv --qrels=dev_qrels.txt

Every row starts from the same index and takes the same number of steps; it differs in one config value. The
table goes to stdout as Markdown, the numbers to --out. Rows that are finished are kept and not run again.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))  # configs/ is read from the checkout

from absl import app, flags, logging
from tables import markdown

from configs import distill_vq
from dvq_jax import evaluate, files, train
from dvq_jax.dataset import open_dataset

TABLES = {
    'losses': [
        {'loss.name': 'mse'},
        {'loss.name': 'margin_mse'},
        {'loss.name': 'ranknet'},
        {'loss.name': 'kl'},
        {'loss.name': 'listnet'},
        {'candidates': 'gt+ib', 'loss.name': 'contrastive'},
    ],
    'candidates': [
        {'candidates': 'gt+ib'},
        {'candidates': 'top200:1+ib'},
        {'candidates': 'top200:10'},
        {'candidates': 'top200:10+ib'},
        {'candidates': 'top200'},
        {'candidates': 'top200+ib'},
        {'candidates': 'gt+top200:10'},
        {'candidates': 'gt+top200:10+ib'},
        {'candidates': 'gt+top200'},
        {'candidates': 'gt+top200+ib'},
    ],
    'products': [{'train.products': 'float32'}, {'train.products': 'bfloat16'}],
}

_TABLE = flags.DEFINE_enum('table', None, list(TABLES), 'Which table.', required=True)
_DATASET = flags.DEFINE_string('dataset', None, 'What `prepare` wrote.', required=True)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder for the runs.', required=True)
_OUT = flags.DEFINE_string('out', None, 'The numbers, JSON.', required=True)
_QUERIES = flags.DEFINE_string('queries', None, 'Queries to report on, never trained on.', required=True)
_QUERY_IDS = flags.DEFINE_string('query_ids', None, 'Their ids.')
_QRELS = flags.DEFINE_string('qrels', None, 'Their qrels.', required=True)
_STEPS = flags.DEFINE_integer('steps', 600, 'Steps of each run.')
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 64, 'B of each run.')
_NPROBE = flags.DEFINE_list('nprobe', ['10', '1024'], 'Lists probed.')


def _run(name: str, changes: dict, *, init_from: str, steps: int, dataset, queries) -> dict:
    """Trains one row and measures its last checkpoint."""
    config = distill_vq.get_config()
    config.data.dataset = _DATASET.value
    config.data.batch_size = _BATCH_SIZE.value
    config.init_from = init_from
    config.train.steps, config.train.checkpoint_every = steps, max(steps, 1)
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    workdir = str(pathlib.Path(_WORKDIR.value) / name)
    done = train.train(config, workdir)
    trained, _ = evaluate.open_trained(workdir, 'latest')
    nprobe = [int(value) for value in _NPROBE.value]
    result = evaluate.evaluate_trained(trained, dataset, queries, nprobe=nprobe)
    settings = {'changes': changes, 'steps': steps, 'batch_size': _BATCH_SIZE.value}
    return {**settings, 'train_seconds': done['seconds'], **result}


def main(_argv: list[str]) -> None:
    """Runs the rows that are missing, then prints the table."""
    logging.set_verbosity(logging.ERROR)
    dataset = open_dataset(_DATASET.value)
    queries = evaluate.read_queries(
        _QUERIES.value, query_ids=_QUERY_IDS.value, qrels=_QRELS.value, dataset=dataset
    )
    out = pathlib.Path(_OUT.value)
    rows = json.loads(out.read_text(encoding='utf-8')) if out.exists() else {}
    start = str(pathlib.Path(_WORKDIR.value) / 'start')
    todo = {'start': ({}, '', 0)}
    todo |= {' '.join(row.values()): (row, start, _STEPS.value) for row in TABLES[_TABLE.value]}
    for name, (changes, init_from, steps) in todo.items():
        if name not in rows:
            rows[name] = _run(
                name, changes, init_from=init_from, steps=steps, dataset=dataset, queries=queries
            )
            with files.atomic_file(out) as aside:
                aside.write_text(json.dumps(rows, indent=1) + '\n', encoding='utf-8')
    print(markdown(rows))


if __name__ == '__main__':
    app.run(main)
