import numpy as np
import pytest

from dvq_jax import evaluate
from dvq_jax.dataset import open_dataset
from dvq_jax.encode import encode_corpus
from dvq_jax.errors import InputError
from dvq_jax.initialize import initialize


@pytest.fixture(scope='module')
def dataset(collection):
    return open_dataset(collection['dataset'])


def test_queries_come_from_the_dev_split_or_from_files(collection, dataset):
    held = evaluate.held_out_queries(dataset)
    everything = evaluate.read_queries(
        collection['queries'], query_ids=collection['query_ids'], qrels=collection['qrels'], dataset=dataset
    )
    assert len(held.ids) == 60 and len(everything.ids) == 1200
    assert held.teacher.shape == (60, 50) and everything.teacher.shape == (1200, 100)
    rows = [everything.ids.index(name) for name in held.ids]
    np.testing.assert_array_equal(held.embeddings, everything.embeddings[rows])
    np.testing.assert_array_equal(held.teacher, everything.teacher[rows, :50])
    assert [list(x) for x in held.positives] == [list(everything.positives[row]) for row in rows]
    assert [held.doc_ids[5], everything.doc_ids[5]] == ['5', 'd5']


def test_teacher_metrics_reach_as_far_as_the_teacher(dataset):
    assert evaluate.teacher_metrics(evaluate.held_out_queries(dataset)) == ('teacher@10',)


def test_an_exact_index_reaches_the_dense_metrics(collection, dataset):
    """One centroid and one codeword a document: nothing is lost, and dense search is what is left."""
    queries = evaluate.held_out_queries(dataset)
    docs = dataset.corpus[:200]
    index = initialize(docs, lists=200, codebooks=1, codewords=2, rotation='identity', coarse_iterations=30)
    index = index.replace(centroids=np.asarray(docs, np.float32), codebooks=0 * index.codebooks)
    encoding = encode_corpus(index, docs, np.arange(200, dtype=np.int32))
    order = np.argsort(-queries.embeddings @ docs.T, axis=1, kind='stable')[:, :100].astype(np.int32)
    positives = [order[row, [row % 30]] for row in range(len(order))]
    exact = evaluate.Queries(
        ids=queries.ids,
        embeddings=queries.embeddings,
        positives=positives,
        teacher=order,
        doc_ids=[f'd{row}' for row in range(200)],
    )
    values = evaluate.evaluate_index(index, encoding, exact, transformed=queries.embeddings, nprobe=[200])[
        '200'
    ]
    dense = evaluate.dense_metrics(exact)
    assert {name: values[name] for name in dense} == pytest.approx(dense)
    assert dense['R@10'] == pytest.approx(np.mean([row % 30 < 10 for row in range(len(order))]))
    assert values['teacher@10'] == pytest.approx(1.0) and values['docs_scanned'] == 200


def test_without_labels_only_agreement_is_reported(collection, dataset):
    queries = evaluate.read_queries(collection['queries'], query_ids=None, qrels=None, dataset=dataset)
    assert queries.positives is None and evaluate.dense_metrics(queries) == {}


def test_queries_of_another_dimension_are_refused(dataset, tmp_path):
    np.save(tmp_path / 'q.npy', np.ones((3, 31), np.float32))
    with pytest.raises(InputError, match='31 dimensions'):
        evaluate.read_queries(tmp_path / 'q.npy', query_ids=None, qrels=None, dataset=dataset)
