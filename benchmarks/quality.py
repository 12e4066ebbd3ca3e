"""The quality of an index against its peers' at equal bytes and equal lists probed, on one dataset.

python benchmarks/quality.py --dataset=DATASET --workdir=W --queries=dev_queries.npy \
    --query_ids=dev_queries.tsv --qrels=dev_qrels.txt --out=docs/results/quality.json --plots=docs/results

Each row, a method at so many bytes, codewords and a seed, is stored when it is finished and not run again.
What a peer leaves open is tuned on held-out queries of the dataset at the first size and seed that run; as
ours was tuned at 16 bytes and K 256 alone, these come first. The queries given here are neither trained nor
tuned on. The tables go to stdout as Markdown; with --report_only they and the plots are made of
what is stored. The methods are in `quality_methods.py`.
"""

import dataclasses
import itertools
import json
import pathlib
from typing import Any

import quality_report
from absl import flags
from quality_methods import METHODS, OURS, Bench, Job, recipe, run

from dvq_jax import cli, evaluate, files
from dvq_jax.dataset import open_dataset
from dvq_jax.errors import InputError

_DATASET = flags.DEFINE_string('dataset', None, 'What `prepare` wrote.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder for trained indexes.')
_QUERIES = flags.DEFINE_string('queries', None, 'Queries to report on, never trained on.')
_QUERY_IDS = flags.DEFINE_string('query_ids', None, 'Their ids.')
_QRELS = flags.DEFINE_string('qrels', None, 'Their qrels.')
_BYTES = flags.DEFINE_list('bytes', ['16', '8', '32', '48'], 'Bytes a document, in order.')
_CODEWORDS = flags.DEFINE_list('codewords', ['256', '16'], 'K.')
_NPROBE = flags.DEFINE_list('nprobe', ['1', '10', '100', 'all'], 'P.')
_LISTS = flags.DEFINE_integer('lists', 1024, 'L.')
_SEEDS = flags.DEFINE_list('seeds', ['0'], 'A row for each.')
_METHODS = flags.DEFINE_list('methods', None, 'Run these alone; all by default.')
_OUT = flags.DEFINE_string('out', 'docs/results/quality.json', 'The numbers, JSON.')
_PLOTS = flags.DEFINE_string('plots', 'docs/results', 'Folder for the plots.')
_REPORT_ONLY = flags.DEFINE_bool('report_only', False, 'Run nothing.')


def _jobs(methods: list[str], dim: int, rows: dict[str, dict]) -> list[Job]:
    """The rows that are asked for and not finished."""
    unknown = [method for method in methods if method not in METHODS]
    if unknown:
        raise InputError(f'--methods: {unknown[0]!r} is unknown; use some of {", ".join(METHODS)}.')
    sizes = itertools.product(*(map(int, flag.value) for flag in (_BYTES, _CODEWORDS, _SEEDS)))
    jobs = [Job(method, *size) for size in sizes for method in methods if method != quality_report.DENSE]
    if quality_report.DENSE in methods:
        jobs.insert(0, Job(quality_report.DENSE, 4 * dim, 0, 0))
    done = {
        name
        for name, row in rows.items()
        if row['method'] not in OURS or row['changes'] == recipe(row['method'])
    }
    return [job for job in jobs if job.name not in done]


def _chosen(job: Job, rows: dict[str, dict]) -> dict[str, Any] | None:
    """What the method was tuned to, for as many codewords or else for others, by the row that ran first."""
    tuned = [row for row in rows.values() if row['method'] == job.method and 'chosen' in row]
    tuned.sort(key=lambda row: row['codewords'] != job.codewords)
    return tuned[0]['chosen'] if tuned else None


def _open_bench() -> Bench:
    for flag in (_DATASET, _WORKDIR, _QUERIES, _QRELS):
        if not flag.value:
            raise InputError(f'--{flag.name} is not given; give it, or --report_only.')
    dataset = open_dataset(_DATASET.value)
    return Bench(
        dataset=dataset,
        queries=evaluate.read_queries(
            _QUERIES.value, query_ids=_QUERY_IDS.value, qrels=_QRELS.value, dataset=dataset
        ),
        dev=evaluate.held_out_queries(dataset),
        nprobe=tuple(_LISTS.value if value == 'all' else int(value) for value in _NPROBE.value),
        lists=_LISTS.value,
        workdir=pathlib.Path(_WORKDIR.value),
    )


def _run_missing(stored: dict[str, Any], out: pathlib.Path) -> None:
    """Runs the rows that are missing, and stores each."""
    bench = _open_bench()
    settings = {
        'documents': len(bench.dataset.corpus),
        'dim': bench.dataset.dim,
        'fingerprint': bench.dataset.fingerprint,
        'queries': len(bench.queries.ids),
        'lists': bench.lists,
        'nprobe': list(bench.nprobe),
    }
    if stored.setdefault('settings', settings) != settings:
        raise InputError(f'{out}: was measured with {stored["settings"]}; give another --out.')
    rows = quality_report.rows_of(stored)
    for job in _jobs(_METHODS.value or list(METHODS), bench.dataset.dim, rows):
        job = dataclasses.replace(job, chosen=_chosen(job, quality_report.rows_of(stored)))
        stored[job.name] = run(bench, job)
        with files.atomic_file(out) as aside:
            aside.write_text(json.dumps(stored, indent=1) + '\n', encoding='utf-8')


def _in_order(stored: dict[str, Any]) -> dict[str, Any]:
    """What is stored, methods in the order of `METHODS` and not of when they ran."""
    places = {method: place for place, method in enumerate(METHODS)}
    rows = quality_report.rows_of(stored)
    return {'settings': stored['settings']} | {
        name: rows[name] for name in sorted(rows, key=lambda name: places[rows[name]['method']])
    }


def main() -> None:
    """Runs what is missing, then prints the tables and draws the plots."""
    out = pathlib.Path(_OUT.value)
    stored = json.loads(out.read_text(encoding='utf-8')) if out.exists() else {}
    if not _REPORT_ONLY.value:
        _run_missing(stored, out)
    if not quality_report.rows_of(stored):
        raise InputError(f'{out}: holds no results; run without --report_only.')
    stored = _in_order(stored)
    print(quality_report.markdown(stored))
    quality_report.draw(stored, pathlib.Path(_PLOTS.value))


if __name__ == '__main__':
    cli.run(main)
