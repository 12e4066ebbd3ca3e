"""Which lists a run puts its documents into."""

import numpy as np
import pytest

from dvq_jax import checkpoint, quantizer, start
from dvq_jax.errors import InputError
from dvq_jax.prepare import prepare
from dvq_jax.run import open_run
from tests.runs import arrays, run


def test_dynamic_assignment_keeps_no_lists(small_config, tmp_path):
    dynamic = {'quantizer__assignment': 'dynamic', 'quantizer__estimator': 'softmax'}
    with pytest.raises(InputError, match=r'set routing\.rounds=0'):
        run(small_config.copy_and_resolve_references(), tmp_path, **dynamic)
    run(small_config, tmp_path, routing__rounds=0, **dynamic)
    trained = checkpoint.load(tmp_path)
    assert trained.lists is None and not (tmp_path / 'lists.npy').exists()


def test_documents_in_two_lists(collection, small_config, tmp_path):
    from dvq_jax import evaluate

    done = run(small_config, tmp_path / 'two', index__copies=2)
    trained, dataset = evaluate.open_trained(tmp_path / 'two', 'latest')
    encoding = evaluate.encode_trained(trained, dataset)
    assert encoding.copies == 2 and len(encoding.codes) == 2 * len(dataset.corpus)
    first, second = np.asarray(encoding.lists).reshape(2, -1)
    assert (first != second).all()
    queries = evaluate.held_out_queries(dataset)
    again = evaluate.evaluate_trained(trained, dataset, queries, nprobe=[4])
    assert again['nprobe']['4']['teacher@10'] == pytest.approx(done['last']['teacher@10'])
    assert again['bytes_per_document'] == 2 * 4 / 2
    with pytest.raises(InputError, match=r'use its index\.copies'):
        run(small_config, tmp_path / 'one', init_from=str(tmp_path / 'two'), index__copies=1)


def test_another_corpus_goes_to_the_nearest_lists_of_this_index(collection, small_config, tmp_path):
    run(small_config, tmp_path / 'first', routing__rounds=0, train__steps=0)
    docs = np.load(collection['corpus'])[::-1]
    np.save(tmp_path / 'docs.npy', docs)
    paths = {'corpus': str(tmp_path / 'docs.npy'), 'queries': collection['queries']}
    prepare(**paths, topk=50, dev_queries=60, out=tmp_path / 'dataset')
    small_config.data.dataset, small_config.init_from = str(tmp_path / 'dataset'), str(tmp_path / 'first')
    # An interrupted start from what was there before has left its lists.
    opened, index = open_run(small_config, str(tmp_path / 'W')), checkpoint.load(tmp_path / 'first').params
    other = index.replace(centroids=index.centroids[::-1].copy())
    start._nearest_lists(other, docs, start.stages_of(opened, other))
    run(small_config, tmp_path / 'W')
    np.testing.assert_array_equal(checkpoint.load(tmp_path / 'W', 0).lists, quantizer.assign(index, docs))


def test_the_scale_of_the_embeddings_does_not_matter(collection, small_config, tmp_path):
    for name in ('corpus', 'queries'):
        np.save(tmp_path / f'{name}.npy', 8 * np.load(collection[name]))
    paths = {name: str(tmp_path / f'{name}.npy') for name in ('corpus', 'queries')}
    names = {key: collection[key] for key in ('corpus_ids', 'query_ids', 'qrels')}
    prepare(**paths, **names, topk=50, dev_queries=60, out=tmp_path / 'dataset')
    ours = run(small_config.copy_and_resolve_references(), tmp_path / 'W')
    scaled = run(small_config, tmp_path / 'scaled', data__dataset=str(tmp_path / 'dataset'))
    for when in ('first', 'last'):
        assert scaled[when]['teacher@10'] == pytest.approx(ours[when]['teacher@10'], abs=0.02)
    one, other = arrays(tmp_path / 'W'), arrays(tmp_path / 'scaled')
    assert np.mean(one['lists'] == other['lists']) > 0.98
    assert np.linalg.norm(other['centroids'] / 8 - one['centroids']) < 0.02 * np.linalg.norm(one['centroids'])
