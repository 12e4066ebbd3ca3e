r"""Mines the teacher's Top-K and writes a training dataset.

python -m dvq_jax.cli.prepare --corpus=docs.npy --corpus_ids=docs.tsv --queries=train_queries.npy \
    --query_ids=train_queries.tsv --qrels=train_qrels.txt --topk=200 --out=DATASET

What is interrupted goes on where it was. On several processes as `train`: they share the mining.
"""

from absl import flags

from dvq_jax.cli import processes, run
from dvq_jax.prepare import prepare

_CORPUS = flags.DEFINE_string(
    'corpus', None, 'Document embeddings: .npy, .fvecs, .fbin or .parquet.', required=True
)
_CORPUS_IDS = flags.DEFINE_string('corpus_ids', None, 'Their ids: a .tsv, first column. Else row numbers.')
_QUERIES = flags.DEFINE_string('queries', None, 'Training query embeddings.', required=True)
_QUERY_IDS = flags.DEFINE_string('query_ids', None, 'Their ids: a .tsv, first column. Else row numbers.')
_QRELS = flags.DEFINE_string('qrels', None, 'Relevant documents of the queries, TREC format, if known.')
_TOPK = flags.DEFINE_integer(
    'topk', 200, "How many of the teacher's documents each query gets.", lower_bound=1
)
_DEV_QUERIES = flags.DEFINE_integer(
    'dev_queries', 1000, 'Queries held out to choose a checkpoint by; at most 5 % are.', lower_bound=1
)
_QUERY_TEXTS = flags.DEFINE_bool(
    'query_texts',
    False,
    'Keep the texts of --query_ids, its further columns, for a query tower that reads them.',
)
_OUT = flags.DEFINE_string('out', None, 'The dataset: a folder to create.', required=True)
flags.adopt_module_key_flags(processes)


def main() -> dict:
    """Joins the other processes, if any, and prepares; says what was written."""
    processes.join()
    return prepare(
        corpus=_CORPUS.value,
        queries=_QUERIES.value,
        out=_OUT.value,
        corpus_ids=_CORPUS_IDS.value,
        query_ids=_QUERY_IDS.value,
        qrels=_QRELS.value,
        topk=_TOPK.value,
        dev_queries=_DEV_QUERIES.value,
        query_texts=_QUERY_TEXTS.value,
    )


if __name__ == '__main__':
    run(main)
