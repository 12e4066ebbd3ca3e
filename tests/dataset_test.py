import json
import os
import pickle
import shutil
import sys

import numpy as np
import pytest

from dvq_jax import dataset, records
from dvq_jax.errors import InputError

Q, N, D, K = 90, 50, 6, 5


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """A dataset folder, and what went in."""
    base = tmp_path_factory.mktemp('dataset')
    rng = np.random.default_rng(0)
    corpus = rng.normal(size=(N, D)).astype(np.float16)
    np.save(base / 'docs.npy', corpus)
    given = {
        'queries': rng.normal(size=(Q, D)).astype(np.float16),
        'query_ids': [f'é{i}' for i in range(Q)],
        'topk_ids': rng.integers(0, N, (Q, K)).astype(np.int32),
        'topk_scores': rng.normal(size=(Q, K)).astype(np.float32),
        'positives': [np.arange(i % 3, dtype=np.int32) for i in range(Q)],
        'texts': None,
    }
    given['dev'] = dataset.held_out(given['query_ids'], 4)
    folder = base / 'DATASET'
    folder.mkdir()
    dataset.write_dataset(
        folder, corpus=corpus, corpus_path=str(base / 'docs.npy'), doc_ids_path=None, **given
    )
    return folder, corpus, given


@pytest.fixture
def copy(made, tmp_path):
    """A dataset folder, with its corpus beside it, that a test may damage."""
    folder = shutil.copytree(made[0], tmp_path / 'DATASET')
    shutil.copy(made[0].parent / 'docs.npy', tmp_path)
    about = folder / 'corpus.json'
    about.write_text(about.read_text().replace(str(made[0].parent), str(tmp_path)))
    return folder


def assert_example(example, given, row):
    assert example['query_id'] == given['query_ids'][row]
    np.testing.assert_array_equal(example['embedding'], given['queries'][row].astype(np.float32))
    for key in ('topk_ids', 'topk_scores', 'positives'):
        np.testing.assert_array_equal(example[key], given[key][row])
    kinds = {key: example[key].dtype for key in ('embedding', 'topk_ids', 'topk_scores', 'positives')}
    assert kinds == {
        'embedding': np.float32, 'topk_ids': np.int32, 'topk_scores': np.float32, 'positives': np.int32
    }  # fmt: skip


def test_reads_what_was_written(made):
    folder, corpus, given = made
    opened = dataset.open_dataset(folder)
    assert (opened.dim, opened.topk, opened.doc_ids_path) == (D, K, None)
    assert (len(opened.train), len(opened.dev)) == (Q - 4, 4)
    np.testing.assert_array_equal(opened.corpus, corpus)
    assert isinstance(opened.corpus, np.memmap)
    for split, chosen in ((opened.train, ~given['dev']), (opened.dev, given['dev'])):
        for index, row in enumerate(np.flatnonzero(chosen)):
            assert_example(split[index], given, row)
    rows = np.flatnonzero(~given['dev'])[[7, 3]]
    for example, row in zip(opened.train.__getitems__(np.array([7, 3])), rows, strict=True):
        assert_example(example, given, row)
    assert 'tensorflow' not in sys.modules


def test_splits_can_be_pickled_and_end(made):
    train = pickle.loads(pickle.dumps(dataset.open_dataset(made[0]).train))
    assert_example(train[0], made[2], int(np.flatnonzero(~made[2]['dev'])[0]))
    with pytest.raises(IndexError):
        train[len(train)]


def test_writes_the_same_bytes_again(made, tmp_path):
    folder, corpus, given = made
    again = tmp_path / 'AGAIN'
    again.mkdir()
    corpus_path = str(folder.parent / 'docs.npy')
    dataset.write_dataset(again, corpus=corpus, corpus_path=corpus_path, doc_ids_path=None, **given)
    one, other = ({path.name: path.read_bytes() for path in place.iterdir()} for place in (folder, again))
    assert one == other


def test_texts_are_kept_where_they_are_given(made, tmp_path):
    _, corpus, given = made
    texts = [f'query {row}, ünique' for row in range(Q)]
    paths = {'corpus_path': str(made[0].parent / 'docs.npy'), 'doc_ids_path': None}
    dataset.write_dataset(tmp_path, corpus=corpus, **paths, **{**given, 'texts': texts})
    opened = dataset.open_dataset(tmp_path)
    assert opened.texts and not dataset.open_dataset(made[0]).texts
    rows = np.flatnonzero(~given['dev'])
    assert [example['text'] for example in opened.train] == [texts[row] for row in rows]
    assert 'text' not in dataset.open_dataset(made[0]).train[0]


def test_a_dataset_of_an_earlier_version_is_refused(copy):
    about = json.loads((copy / 'corpus.json').read_text())
    del about['texts']
    (copy / 'corpus.json').write_text(json.dumps(about))
    with pytest.raises(InputError, match='prepared by an earlier version'):
        dataset.open_dataset(copy)


def test_no_dev_queries(made, tmp_path):
    _, corpus, given = made
    given = {**given, 'dev': np.zeros(Q, bool)}
    np.save(tmp_path / 'docs.npy', corpus)  # beside the splits, as for parquet
    dataset.write_dataset(tmp_path, corpus=corpus, corpus_path='docs.npy', doc_ids_path='/ids.tsv', **given)
    opened = dataset.open_dataset(tmp_path)
    assert (len(opened.train), len(opened.dev)) == (Q, 0)
    assert str(opened.doc_ids_path) == '/ids.tsv'
    np.testing.assert_array_equal(opened.corpus, corpus)


def test_many_shards_read_as_one(made, tmp_path, monkeypatch):
    _, corpus, given = made
    monkeypatch.setattr(records, '_SHARD', 40)
    np.save(tmp_path / 'docs.npy', corpus)
    dataset.write_dataset(tmp_path, corpus=corpus, corpus_path='docs.npy', doc_ids_path=None, **given)
    assert len(list(tmp_path.glob('*-train.*'))) == 3
    train = dataset.open_dataset(tmp_path).train
    for index, row in enumerate(np.flatnonzero(~given['dev'])):
        assert_example(train[index], given, row)


def test_held_out_is_a_function_of_the_ids():
    names = [str(i) for i in range(1000)]
    chosen = dataset.held_out(names, 30)
    assert chosen.sum() == 30
    np.testing.assert_array_equal(dataset.held_out(names[::-1], 30)[::-1], chosen)
    assert dataset.held_out(names, 900).sum() == 50
    assert [dataset.held_out(names[:n], 1000).sum() for n in (1, 2, 19, 39, 40)] == [0, 1, 1, 1, 2]
    assert not dataset.held_out(names, 0).any()


def test_missing_dataset(tmp_path):
    for name in ('none', '.'):
        with pytest.raises(InputError, match='not a training dataset'):
            dataset.open_dataset(tmp_path / name)


@pytest.mark.parametrize('name', ['corpus.json', 'features.json', 'dataset_info.json', 'dvq_training-train'])
@pytest.mark.parametrize('size', [None, 9])
def test_damaged_dataset(copy, name, size):
    (file,) = (path for path in copy.iterdir() if path.name.startswith(name))
    file.unlink() if size is None else os.truncate(file, size)
    with pytest.raises(InputError, match=r'not a training dataset|missing or not \d+ bytes'):
        dataset.open_dataset(copy)


def test_changed_corpus(copy):
    dataset.open_dataset(copy)
    docs = np.load(copy.parent / 'docs.npy')
    np.save(copy.parent / 'docs.npy', docs[::-1])
    with pytest.raises(InputError, match='the corpus has changed'):
        dataset.open_dataset(copy)
    (copy.parent / 'docs.npy').unlink()
    with pytest.raises(InputError, match=r'docs\.npy: the corpus of .* is not there any more'):
        dataset.open_dataset(copy)
