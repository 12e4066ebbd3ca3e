"""What the query encoder gains by learning along with the index, against towers that take its embeddings.

python benchmarks/joint.py --dataset=DATASET --model=ENCODER --workdir=W --queries=dev_queries.npy \
    --query_ids=dev_queries.tsv --qrels=dev_qrels.txt --out=docs/results/joint.json

The default config with each query tower, same steps and seed; the dataset is prepared with `--query_texts`,
and queries are reported on that are not in it. Finished rows are kept.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))  # configs/ is read from the checkout

import ml_collections
import numpy as np
from absl import flags
from tables import markdown

from configs import default
from dvq_jax import cli, evaluate, files, huggingface, train
from dvq_jax.dataset import open_dataset
from dvq_jax.errors import InputError

_DATASET = flags.DEFINE_string('dataset', None, 'What `prepare` wrote, with texts of queries.', required=True)
_MODEL = flags.DEFINE_string('model', None, "The teacher: a folder in Hugging Face's format.", required=True)
_LENGTH = flags.DEFINE_integer('max_length', 32, 'Of a query in training, in tokens.')
_RATES = flags.DEFINE_list('rates', ['2e-5'], "The encoder's learning rates, a row for each.")
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder for runs.', required=True)
_QUERIES = flags.DEFINE_string('queries', None, 'Queries to report on.', required=True)
_QUERY_IDS = flags.DEFINE_string('query_ids', None, 'Their ids and texts.', required=True)
_QRELS = flags.DEFINE_string('qrels', None, 'Their qrels.', required=True)
_OUT = flags.DEFINE_string('out', 'docs/results/joint.json', 'The numbers, JSON.')


def _configs() -> dict[str, ml_collections.ConfigDict]:
    """A config for each row."""
    configs = {}
    for name in ('linear', 'mlp', *(f'transformer, {rate}' for rate in _RATES.value)):
        config = default.get_config()
        config.data.dataset = _DATASET.value
        config.train.checkpoint_every = 250
        config.tower.name, _, rate = name.partition(', ')
        if rate:
            config.tower.transformer.model = _MODEL.value
            config.tower.transformer.max_length = _LENGTH.value
            config.optimizer.rates.tower = float(rate)
        configs[name] = config
    return configs


def _times(workdir: pathlib.Path, batch_size: int) -> dict[str, float]:
    """Seconds from the first measurement to the last, and the median of a step's; of a resumed run too."""
    lines = [
        json.loads(line) for line in (workdir / 'metrics.jsonl').read_text(encoding='utf-8').splitlines()
    ]
    rates = [line['examples_per_second'] for line in lines if 'examples_per_second' in line]
    return {
        'train_seconds': lines[-1]['time'] - lines[0]['time'],
        'step_seconds': batch_size / float(np.median(rates)),
    }


def main() -> None:
    """Runs the rows that are missing, then prints the table."""
    out = pathlib.Path(_OUT.value)
    dataset = open_dataset(_DATASET.value)
    weights = files.sha256(pathlib.Path(_MODEL.value) / huggingface.WEIGHTS)
    about = {'examples': dataset.digest, 'encoder': weights, 'max_length': _LENGTH.value}
    stored = json.loads(out.read_text(encoding='utf-8')) if out.exists() else {'of': about, 'rows': {}}
    if stored['of'] != about:
        raise InputError(f'{out}: was measured with {stored["of"]}, this is {about}; give another --out.')
    rows = stored['rows']
    queries = evaluate.read_queries(
        _QUERIES.value,
        query_ids=_QUERY_IDS.value,
        qrels=_QRELS.value,
        dataset=dataset,
        texts=True,
    )
    for name, config in _configs().items():
        if name in rows:
            continue
        workdir = str(pathlib.Path(_WORKDIR.value) / name.replace(', ', '_'))
        train.train(config, workdir)
        measured = evaluate.evaluate_trained(
            *evaluate.open_trained(workdir, 'best'), queries, nprobe=[config.eval.nprobe, config.index.lists]
        )
        rows[name] = {'nprobe': measured['nprobe'], **_times(pathlib.Path(workdir), config.data.batch_size)}
        with files.atomic_file(out) as aside:
            aside.write_text(json.dumps(stored, indent=1) + '\n', encoding='utf-8')
    print(markdown(rows))


if __name__ == '__main__':
    cli.run(main)
