r"""Writes what there is to see of a trained index, as one HTML page and its pictures.

python -m dvq_jax.cli.report --workdir=W [--step=best] [--queries=q.npy --query_ids=q.tsv --qrels=q.txt] \
    [--nprobe=1,3,10,30,100] [--baselines=results.json] [--out=W/report]
"""

import pathlib
import time

from absl import flags

from dvq_jax import evaluate, report
from dvq_jax.cli import run
from dvq_jax.errors import InputError
from dvq_jax.ids import open_ids

_WORKDIR = flags.DEFINE_string('workdir', None, 'The folder that train wrote.', required=True)
_STEP = flags.DEFINE_string('step', 'best', "Which checkpoint: 'latest', 'best' or a step.")
_QUERIES = flags.DEFINE_string('queries', None, "Query embeddings; the dataset's dev split without it.")
_QUERY_IDS = flags.DEFINE_string('query_ids', None, 'Their ids: a .tsv, first column; the rest is shown.')
_QRELS = flags.DEFINE_string('qrels', None, 'TREC qrels; without them agreement with the teacher alone.')
_NPROBE = flags.DEFINE_list(
    'nprobe', None, 'Numbers of lists to probe; 1,3,10,30,100 without it, as far as there are lists.'
)
_BASELINES = flags.DEFINE_string('baselines', None, 'Results of other indexes, JSON, to draw beside.')
_OUT = flags.DEFINE_string('out', None, 'The folder to create; WORKDIR/report without it.')


def _nprobe(lists: int) -> list[int]:
    if _NPROBE.value is None:
        return [value for value in (1, 3, 10, 30, 100) if value <= lists]
    try:
        return sorted({int(value) for value in _NPROBE.value or ['']})
    except ValueError as error:
        raise InputError(f'--nprobe={",".join(_NPROBE.value)}: give numbers, such as 1,10,100.') from error


def main() -> dict:
    """Measures, draws, writes."""
    begin = time.monotonic()
    try:
        from dvq_jax import report_page
    except ImportError as error:
        raise InputError("a report needs matplotlib; pip install '.[report]'.") from error
    if _QUERIES.value is None and (_QUERY_IDS.value or _QRELS.value):
        raise InputError('--query_ids and --qrels describe --queries; give that too.')
    out = report_page.may_write(_OUT.value or pathlib.Path(_WORKDIR.value) / 'report', _WORKDIR.value)
    trained, dataset = evaluate.open_trained(_WORKDIR.value, _STEP.value)
    nprobe = _nprobe(len(trained.params.centroids))
    if _QUERIES.value is None:
        source = "the dataset's dev split, which chooses the best step"
        queries = evaluate.held_out_queries(dataset, open_ids(dataset.doc_ids_path, len(dataset.corpus)))
    else:
        source, ids, qrels = _QUERIES.value, _QUERY_IDS.value, _QRELS.value
        queries = evaluate.read_queries(source, query_ids=ids, qrels=qrels, dataset=dataset)
    measured = report.measure(
        _WORKDIR.value, trained, dataset, queries,
        nprobe=nprobe, source=source, query_ids_path=_QUERY_IDS.value, baselines=_BASELINES.value,
    )  # fmt: skip
    path = report_page.write(measured, out)
    return {'report': str(path), 'step': trained.step, 'seconds': round(time.monotonic() - begin, 1)}


if __name__ == '__main__':
    run(main)
