import itertools

import jax
import numpy as np

from dvq_jax.batches import training_batches
from dvq_jax.candidates import parse_mixture
from dvq_jax.dataset import open_dataset

MIXTURE = parse_mixture('gt+top50:4+ib')


def make(collection, held=True, **changes):
    settings = {'mixture': MIXTURE, 'batch_size': 16, 'seed': 3, 'lists': None, **changes}
    dataset = open_dataset(collection['dataset'])
    examples = dataset.train.columns() if held else dataset.train
    return training_batches(dataset.corpus, examples, **settings)


def drawn(batches, count):
    """query id -> its candidates, of each of the next batches."""
    taken = list(itertools.islice(batches, count))
    return [
        dict(zip(host.query_ids, map(tuple, host.batch.doc_ids.reshape(-1, MIXTURE.size)), strict=True))
        for host in taken
    ]


def test_batches_hold_the_examples(collection):
    dataset = open_dataset(collection['dataset'])
    lists = np.arange(len(dataset.corpus), dtype=np.int32) % 7
    examples = {example['query_id']: example for example in dataset.train}
    host = next(make(collection, lists=lists))
    batch = jax.tree.map(lambda x: x.reshape(16, *x.shape[2:]), host.batch)
    for row, name in enumerate(host.query_ids):
        example, ids = examples[name], batch.doc_ids[row]
        np.testing.assert_array_equal(batch.queries[row], example['embedding'])
        np.testing.assert_array_equal(batch.docs[row], dataset.corpus[ids])
        np.testing.assert_array_equal(batch.lists[row], ids % 7)
        assert ids[0] in example['positives'] and set(ids[1:]) <= set(example['topk_ids'][:50])
        assert batch.positives[row][0] == example['positives'][0] and batch.positives[row][1] == -1


def test_records_make_the_batches_that_columns_make(collection):
    both = (itertools.islice(make(collection, held), 3) for held in (True, False))
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


def test_goes_on_from_its_state(collection):
    batches = make(collection)
    drawn(batches, 3)
    state = batches.get_state()
    expected = drawn(batches, 2)
    again = make(collection)
    again.set_state(state)
    assert drawn(again, 2) == expected


def test_processes_share_the_global_batch(collection, monkeypatch):
    """The union over two processes, and their state, are those of one."""
    whole = drawn(make(collection), 3)
    parts = []
    for process in range(2):
        monkeypatch.setattr(jax, 'process_index', lambda process=process: process)
        monkeypatch.setattr(jax, 'process_count', lambda: 2)
        parts.append(drawn(make(collection), 3))
    assert [one | two for one, two in zip(*parts, strict=True)] == whole
    assert not set(parts[0][0]) & set(parts[1][0])


def test_seeds_differ(collection):
    assert drawn(make(collection, seed=1), 1) != drawn(make(collection, seed=2), 1)
