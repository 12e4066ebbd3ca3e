import collections
import itertools

import jax
import numpy as np
import pytest

from dvq_jax.batches import training_batches
from dvq_jax.candidates import parse_mixture
from dvq_jax.dataset import open_dataset

OWN, POOLED = parse_mixture('gt+top50:4'), parse_mixture('gt+top50:4+ib')


def make(collection, held=True, **changes):
    settings = {'mixture': OWN, 'batch_size': 16, 'seed': 3, 'lists': None, **changes}
    dataset = open_dataset(collection['dataset'])
    examples = dataset.train.columns() if held else dataset.train
    return training_batches(dataset.corpus, examples, **settings)


def brought(host):
    """query id -> the documents that it is scored against, of a batch whose queries have their own."""
    ids = host.batch.doc_ids.reshape(-1, OWN.size)
    return dict(zip(host.query_ids, map(tuple, ids), strict=True))


def drawn(batches, count):
    return [brought(host) for host in itertools.islice(batches, count)]


@pytest.fixture
def as_processes(monkeypatch):
    """Makes of this process one of several."""

    def become(process, count):
        monkeypatch.setattr(jax, 'process_index', lambda: process)
        monkeypatch.setattr(jax, 'process_count', lambda: count)

    return become


def test_batches_hold_the_examples(collection):
    dataset = open_dataset(collection['dataset'])
    lists = np.arange(len(dataset.corpus), dtype=np.int32) % 7
    examples = {example['query_id']: example for example in dataset.train}
    host = next(make(collection, lists=lists))
    batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), host.batch)
    for row, (name, ids) in enumerate(brought(host).items()):
        example = examples[name]
        np.testing.assert_array_equal(batch.queries[row], example['embedding'])
        first, *others = ids
        assert first in example['positives'] or (first == -1 and set(example['positives']) & set(others))
        assert set(others) <= set(example['topk_ids'][:50]) and len(set(ids)) == 5
        assert batch.positives[row][0] == example['positives'][0] and batch.positives[row][1] == -1
    real = batch.doc_ids >= 0
    np.testing.assert_array_equal(batch.docs[real], dataset.corpus[batch.doc_ids[real]])
    np.testing.assert_array_equal(batch.lists[real], batch.doc_ids[real] % 7)
    assert not batch.docs[~real].any()


def test_in_batch_documents_are_all_that_the_queries_bring(collection):
    both = (itertools.islice(make(collection, mixture=mixture), 3) for mixture in (OWN, POOLED))
    for own, pooled in zip(*both, strict=True):
        expected = {doc for ids in brought(own).values() for doc in ids} - {-1}
        ids = pooled.batch.doc_ids[pooled.batch.doc_ids >= 0]
        assert sorted(ids) == sorted(expected)
        assert pooled.query_ids == own.query_ids


@pytest.mark.parametrize('mixture', [OWN, POOLED])
def test_records_make_the_batches_that_columns_make(collection, mixture):
    both = (itertools.islice(make(collection, held, mixture=mixture), 3) for held in (True, False))
    for ours, theirs in zip(*both, strict=True):
        assert ours.query_ids == theirs.query_ids
        jax.tree.map(np.testing.assert_array_equal, ours.batch, theirs.batch)


def test_an_epoch_shows_each_query_once_and_the_next_in_another_order(collection):
    size = len(open_dataset(collection['dataset']).train)
    names = [
        name for host in itertools.islice(make(collection, batch_size=size), 2) for name in host.query_ids
    ]
    first, second = names[:size], names[size:]
    assert len(set(first)) == size and set(first) == set(second) and first != second


def test_a_batch_may_hold_more_than_an_epoch(collection):
    size = len(open_dataset(collection['dataset']).train)
    batches = itertools.islice(make(collection, batch_size=size + size // 2, mixture=POOLED), 2)
    names = collections.Counter(name for host in batches for name in host.query_ids)
    assert len(names) == size and names.total() == 2 * (size + size // 2)
    assert max(names.values()) - min(names.values()) <= 1


def test_goes_on_from_its_state(collection):
    batches = make(collection)
    drawn(batches, 3)
    state = batches.get_state()
    expected = drawn(batches, 2)
    again = make(collection)
    again.set_state(state)
    assert drawn(again, 2) == expected


def test_processes_share_the_global_batch(collection, as_processes):
    """The union over two processes, and their state, are those of one."""
    whole = drawn(make(collection), 3)
    parts = []
    for process in range(2):
        as_processes(process, 2)
        parts.append(drawn(make(collection), 3))
    assert [one | two for one, two in zip(*parts, strict=True)] == whole
    assert not set(parts[0][0]) & set(parts[1][0])


@pytest.mark.parametrize('mixture', [OWN, POOLED])
def test_processes_agree_about_shapes(collection, as_processes, mixture):
    parts = []
    for process in range(4):
        as_processes(process, 4)
        parts.append([host.batch for host in itertools.islice(make(collection, mixture=mixture), 5)])
    for batches in zip(*parts, strict=True):
        assert len({tuple(x.shape for x in jax.tree.leaves(batch)) for batch in batches}) == 1
        ids = np.concatenate([batch.doc_ids[batch.doc_ids >= 0] for batch in batches])
        assert mixture is OWN or len(np.unique(ids)) == len(ids)


def test_seeds_differ(collection):
    assert drawn(make(collection, seed=1), 1) != drawn(make(collection, seed=2), 1)
