"""Probes, numbers of lists, numbers of codebooks: the paper's Tables 4 to 6, on your own data.

python benchmarks/sweep.py --config=configs/msmarco_ar2.py --config.data.dataset=DATASET --workdir=W \
    --queries=dev_queries.npy --query_ids=dev_queries.tsv --qrels=dev_qrels.txt --out=sweep.json \
    --nprobe=1,10,50,100,200 --lists=5000,10000,20000 --codebooks=16,32,64,96

A row is the config with another number of lists or codebooks, measured at each number of probes: what
training starts from, and the best checkpoint. The config's own sizes are always among them. Finished rows
are kept, and a run that was stopped goes on.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))  # configs/ is read from the checkout

import ml_collections
from absl import flags
from ml_collections import config_flags
from tables import markdown

from dvq_jax import cli, evaluate, files, train
from dvq_jax.dataset import open_dataset
from dvq_jax.errors import InputError

_CONFIG = config_flags.DEFINE_config_file('config', None, 'The config file.', lock_config=True)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder for the runs.', required=True)
_QUERIES = flags.DEFINE_string('queries', None, 'Queries to report on, never trained on.', required=True)
_QUERY_IDS = flags.DEFINE_string('query_ids', None, 'Their ids.')
_QRELS = flags.DEFINE_string('qrels', None, 'Their qrels.', required=True)
_NPROBE = flags.DEFINE_list('nprobe', ['1', '10', '100'], 'P.')
_LISTS = flags.DEFINE_list('lists', [], 'Further values of L.')
_CODEBOOKS = flags.DEFINE_list('codebooks', [], 'Further values of M.')
_OUT = flags.DEFINE_string('out', None, 'The numbers, JSON.', required=True)


def _numbers(flag: flags.FlagHolder) -> list[int]:
    try:
        return [int(value) for value in flag.value]
    except ValueError as error:
        raise InputError(f'--{flag.name}={",".join(flag.value)}: give numbers, such as 10,100.') from error


def _sizes(index: ml_collections.ConfigDict) -> list[tuple[int, int]]:
    """(L, M) of each row: the config's own, then one of the two changed."""
    sizes = [(index.lists, index.codebooks)]
    sizes += [(lists, index.codebooks) for lists in _numbers(_LISTS)]
    sizes += [(index.lists, books) for books in _numbers(_CODEBOOKS)]
    return list(dict.fromkeys(sizes))


def _rows(lists: int, codebooks: int, nprobe: list[int], queries: evaluate.Queries) -> dict[str, dict]:
    """The start and the best checkpoint of one size."""
    config = ml_collections.ConfigDict(_CONFIG.value.to_dict())
    config.index.lists, config.index.codebooks = lists, codebooks
    workdir = str(pathlib.Path(_WORKDIR.value) / f'{lists}-{codebooks}')
    done = train.train(config, workdir)
    rows = {}
    for name, step in (('start', 0), ('trained', 'best')):
        measured = evaluate.evaluate_trained(*evaluate.open_trained(workdir, step), queries, nprobe=nprobe)
        label = f'L {lists}, M {codebooks}: {name}'
        rows[label] = {**measured, 'train_seconds': done['seconds'] if step else 0.0}
    return rows


def main() -> None:
    """Runs the rows that are missing, then prints the table."""
    config, out = _CONFIG.value, pathlib.Path(_OUT.value)
    queries = evaluate.read_queries(
        _QUERIES.value,
        query_ids=_QUERY_IDS.value,
        qrels=_QRELS.value,
        dataset=open_dataset(config.data.dataset),
    )
    rows = json.loads(out.read_text(encoding='utf-8')) if out.exists() else {}
    for lists, codebooks in _sizes(config.index):
        if f'L {lists}, M {codebooks}: trained' not in rows:
            nprobe = [probes for probes in _numbers(_NPROBE) if probes <= lists]
            rows |= _rows(lists, codebooks, nprobe, queries)
            with files.atomic_file(out) as aside:
                aside.write_text(json.dumps(rows, indent=1) + '\n', encoding='utf-8')
    print(markdown(rows))


if __name__ == '__main__':
    cli.run(main)
