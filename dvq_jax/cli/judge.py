r"""Judges a run by answers, as open-domain question answering does: a passage is right where it holds one.

python -m dvq_jax.cli.judge --run=run.trec --documents=docs.tsv --answers=test_answers.tsv [--out=qrels.txt]

Says MRR@10 and Success@k, the share of queries with a right passage among the first k.
"""

from absl import flags

from dvq_jax import data, files, metrics, texts
from dvq_jax.cli import run
from dvq_jax.datasets import answers, sources
from dvq_jax.errors import InputError

_RUN = flags.DEFINE_string('run', None, 'A TREC run, as search writes it.', required=True)
_DOCUMENTS = flags.DEFINE_string(
    'documents',
    None,
    'docs.tsv, as collection writes it: an id, further columns, and the text.',
    required=True,
)
_ANSWERS = flags.DEFINE_string('answers', None, "A .tsv of query ids and each one's answers.", required=True)
_OUT = flags.DEFINE_string('out', None, 'TREC qrels of what the run found, a file to write.')


def _read_answers(path: str) -> dict[str, list[str]]:
    found = {}
    for number, line in sources.lines(path):
        query, *given = line.split('\t')
        if not query or not any(given):
            raise InputError(f'{path}: line {number} has no answer after an id and a tab; write one.')
        if query in found:
            raise InputError(f'{path}: line {number} repeats the id {query!r}; put all answers on one line.')
        found[query] = given
    return found


def main() -> dict:
    """Judges and measures; says how good the run is."""
    if _OUT.value:
        files.check_output(_OUT.value)
    found, wanted = data.read_run(_RUN.value), _read_answers(_ANSWERS.value)
    found = {query: docs for query, docs in found.items() if query in wanted}
    if not found:
        raise InputError(f'{_ANSWERS.value}: has no query of {_RUN.value}; give the answers to its queries.')
    columns = texts.find(_DOCUMENTS.value, {name for docs in found.values() for name in docs})
    passages = {name: values[-1] for name, values in columns.items()}
    qrels = answers.judge(found, wanted, passages)
    if _OUT.value:
        with files.atomic_file(_OUT.value) as aside, open(aside, 'w', encoding='utf-8') as file:
            file.writelines(
                f'{query} 0 {name} {grade}\n' for query, docs in qrels.items() for name, grade in docs.items()
            )
    # Success@100 of ten documents would read like one of a hundred.
    depth = max(map(len, found.values()))
    measured = answers.measure(qrels, found)
    shown = {name: value for name, value in measured.items() if metrics.depth(name) <= depth}
    return {'queries': len(qrels), **shown}


if __name__ == '__main__':
    run(main)
