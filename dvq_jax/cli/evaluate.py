"""Measures a checkpoint, or each checkpoint of a running training.

python -m dvq_jax.cli.evaluate --workdir=W --queries=q.npy --query_ids=q.tsv --qrels=q.txt --nprobe=1,10,100
"""

import json
import pathlib

from absl import flags

from dvq_jax import checkpoint, cli, evaluate, files, towers
from dvq_jax.dataset import Dataset
from dvq_jax.errors import InputError
from dvq_jax.ids import open_ids

_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.')
_STEP = flags.DEFINE_string('step', 'latest', "'latest', 'best' or a number.")
_WATCH = flags.DEFINE_bool('watch', False, 'Measure each checkpoint as training writes it, until it ends.')
_QUERIES = flags.DEFINE_string('queries', None, "Query embeddings; the dataset's dev split without it.")
_QUERY_IDS = flags.DEFINE_string(
    'query_ids',
    None,
    'Their ids: a .tsv, first column; the others are their texts, where the tower reads them.',
)
_QRELS = flags.DEFINE_string('qrels', None, 'TREC qrels; without them agreement with the teacher alone.')
_NPROBE = flags.DEFINE_list('nprobe', ['10'], 'Numbers of lists to probe.')
_OUT = flags.DEFINE_string('out', None, 'Write the result here, as JSON.')
_RUN_PREFIX = flags.DEFINE_string('run_prefix', None, 'Write TREC runs to PREFIX + nprobe + .trec.')
flags.mark_flag_as_required('workdir')


def _nprobe() -> list[int]:
    try:
        return [int(value) for value in _NPROBE.value or ['']]
    except ValueError as error:
        raise InputError(f'--nprobe={",".join(_NPROBE.value)}: give numbers, such as 1,10,100.') from error


def _queries(dataset: Dataset, tower: towers.Tower) -> evaluate.Queries:
    if _QUERIES.value is None:
        return evaluate.held_out_queries(dataset, open_ids(dataset.doc_ids_path, len(dataset.corpus)))
    return evaluate.read_queries(
        _QUERIES.value,
        query_ids=_QUERY_IDS.value,
        qrels=_QRELS.value,
        dataset=dataset,
        texts=towers.reads_text(tower.name),
    )


def _measure(
    step: str | int, nprobe: list[int], queries: evaluate.Queries | None
) -> tuple[dict, evaluate.Queries]:
    trained, dataset = evaluate.open_trained(_WORKDIR.value, step)
    queries = queries or _queries(dataset, trained.tower)
    result = evaluate.evaluate_trained(trained, dataset, queries, nprobe=nprobe, run_prefix=_RUN_PREFIX.value)
    if _OUT.value:
        with files.atomic_file(_OUT.value) as aside:
            aside.write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')
    return result, queries


def main() -> dict | None:
    """Measures one checkpoint, or prints each of a run as it appears."""
    nprobe = _nprobe()
    if _QUERIES.value is None and (_QUERY_IDS.value or _QRELS.value):
        raise InputError('--query_ids and --qrels describe --queries; give that too.')
    if _WATCH.value and _STEP.value != 'latest':
        raise InputError('--watch measures every step; leave --step out.')
    if _OUT.value:
        files.check_output(_OUT.value)
    if not _WATCH.value:
        return _measure(_STEP.value, nprobe, None)[0]
    queries = None
    for step in evaluate.follow(_WORKDIR.value):
        try:
            result, queries = _measure(step, nprobe, queries)
        except InputError:
            if step in checkpoint.available_steps(pathlib.Path(_WORKDIR.value)):
                raise
            continue  # training keeps the latest and the best; this one was neither any more
        print(json.dumps(result), flush=True)
    return None


if __name__ == '__main__':
    cli.run(main)
