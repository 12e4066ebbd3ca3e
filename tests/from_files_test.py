import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from dvq_jax.datasets.from_files import FromFiles
from dvq_jax.errors import InputError
from tests.collection_test import built, write

FILES = {
    'docs.tsv': 'd0\tzero\nd1\tone\nd2\ttwo\n',
    'train.tsv': 'q0\twhat is two\nq1\twhat is three\n',
    'qrels.txt': 'q0 0 d2 1\nq0 0 d0 0\n',
}


@pytest.fixture
def own(tmp_path):
    folder = write(tmp_path / 'own', FILES)
    rng = np.random.default_rng(0)
    np.save(folder / 'docs.npy', rng.normal(size=(3, 4)).astype(np.float16))
    np.save(folder / 'train.npy', rng.normal(size=(2, 4)).astype(np.float16))
    return folder


def flags_of(folder):
    return {
        'texts': {'documents': folder / 'docs.tsv', 'train': folder / 'train.tsv'},
        'qrels': {'train': folder / 'qrels.txt'},
        'embeddings': {'documents': folder / 'docs.npy', 'train': folder / 'train.npy'},
    }


def test_from_files_with_embeddings(own, tmp_path):
    builder = built(FromFiles(collection='mine', data_dir=tmp_path / 'data', **flags_of(own)))
    reopened = tfds.builder_from_directory(builder.data_path)
    for split, name in (('documents', 'docs.npy'), ('train', 'train.npy')):
        vectors = np.stack([example['embedding'] for example in reopened.as_data_source(split)])
        np.testing.assert_array_equal(vectors, np.load(own / name))
        assert vectors.dtype == np.float16
    queries = reopened.as_data_source('train')
    assert [query['relevant'] for query in queries] == [[b'd2'], []]


def test_embeddings_of_two_types_are_kept_as_the_larger(own, tmp_path):
    np.save(own / 'train.npy', np.load(own / 'train.npy').astype(np.float32) / 3)  # of another type
    mixed = built(FromFiles(collection='mine', data_dir=tmp_path / 'data', **flags_of(own)))
    for split, name in (('documents', 'docs.npy'), ('train', 'train.npy')):
        vectors = np.stack([example['embedding'] for example in mixed.as_data_source(split)])
        np.testing.assert_array_equal(vectors, np.load(own / name).astype(np.float32))


def test_a_collection_is_never_that_of_older_files(own, tmp_path):
    built(FromFiles(collection='mine', data_dir=tmp_path / 'data', **flags_of(own)))
    (own / 'qrels.txt').write_text('q1 0 d1 1\n')
    again = built(FromFiles(collection='mine', data_dir=tmp_path / 'data', **flags_of(own)))
    assert [query['relevant'] for query in again.as_data_source('train')] == [[], [b'd1']]
    vectors = np.zeros((5000, 4), np.float16)
    many = {'documents': own / 'many.tsv'}
    many['documents'].write_text(''.join(f'd{row}\ttext\n' for row in range(5000)))
    for value in (1, 2):  # one row of many differs
        vectors[1] = value
        np.save(own / 'many.npy', vectors)
        read = FromFiles(
            collection='many',
            data_dir=tmp_path / 'data',
            texts=many,
            embeddings={'documents': own / 'many.npy'},
        )
        np.testing.assert_array_equal(built(read).as_data_source('documents')[1]['embedding'], vectors[1])


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        ({'texts': {'train': 'train.tsv'}}, r"texts of \['train'\] are given; give those of documents too"),
        ({'qrels': {'train': 'nowhere'}}, 'nowhere: cannot be read'),
        ({'texts': {'documents': 'docs.tsv', 'all': 'train.tsv'}}, "texts are given for a split 'all'"),
        ({'qrels': {'dev': 'qrels.txt'}}, "qrels are given for 'dev', which has no texts of queries"),
        ({'embeddings': {'documents': 'docs.npy'}}, r"embeddings are given for \['documents'\] and texts"),
        (
            {'embeddings': {'documents': 'docs.npy', 'train': 'docs.npy'}},
            'has 3 embeddings for 2 texts of train',
        ),
    ],
)
def test_files_that_do_not_fit_together(own, tmp_path, change, said):
    change = {name: {split: own / file for split, file in paths.items()} for name, paths in change.items()}
    with pytest.raises(InputError, match=said):
        FromFiles(collection='mine', data_dir=tmp_path / 'data', **(flags_of(own) | change))


def command(folder, *flags):
    code = """if True:
        import sys
        from dvq_jax.cli import collection, run
        try:
            run(collection.main)
        finally:
            assert 'tensorflow' not in sys.modules
    """
    return subprocess.run(
        [sys.executable, '-c', code, '--data_dir=DATA', *flags],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_builds_without_tensorflow(own):
    flags = ['--name=from_files', '--collection=mine', '--qrels=train:qrels.txt']
    done = command(own, *flags, '--texts=documents:docs.tsv,train:train.tsv')
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)['examples'] == {'documents': 3, 'train': 2}
    source = tfds.builder_from_directory(own / json.loads(done.stdout)['dataset']).as_data_source('train')
    assert [query['relevant'] for query in source] == [[b'd2'], []]


def test_the_command_writes_texts(own):
    code = ''.join(f'def f{n}():\n    """Gives the number {n}."""\n    return {n}\n\n' for n in range(30))
    write(own / 'src', {'a.py': code})
    done = command(own, '--name=pydoc_search', '--source=src', '--out=texts')
    assert done.returncode == 0, done.stderr
    assert (own / 'texts' / 'docs.tsv').read_text().splitlines()[3] == 'a.f3\tdef f3(): return 3'
    queries = [(own / 'texts' / f'{split}_queries.tsv').read_text() for split in ('train', 'dev')]
    assert 'a.f3\tGives the number 3.\n' in ''.join(queries)
    assert 'a.f3 0 a.f3 1\n' in ''.join(
        (own / 'texts' / f'{split}_qrels.txt').read_text() for split in ('train', 'dev')
    )


@pytest.mark.parametrize(
    ('flags', 'said'),
    [
        (['--name=from_files'], '--collection=None: give a word'),
        (['--name=from_files', '--collection=c', '--texts=docs.tsv'], 'is not SPLIT:PATH'),
        (['--name=from_files', '--collection=c', '--texts=train:a,train:b'], 'each split once'),
        (
            ['--name=pydoc_search', '--manual_dir=.'],
            'is of msmarco_passage and natural_questions_dpr, not of',
        ),
        (['--name=from_files', '--collection=c', '--texts=documents:docs.tsv', '--out=o'], '--out is of'),
        (['--name=msmarco_passage', '--manual_dir=.'], '.: has no collectionandqueries.tar.gz; put it there'),
        (['--name=msmarco_passage', '--data_dir=docs.tsv'], 'docs.tsv: cannot write there'),
        (['--name=msmarco_passage', '--out=docs.tsv/texts'], 'docs.tsv: cannot write there'),
        (['--name=msmarco_passage', '--source=x'], '--source is of pydoc_search, not of msmarco_passage'),
        (['--name=msmarco_passage', '--manual_dir=nowhere'], '--manual_dir=nowhere: is not a folder'),
        (['--name=pydoc_search', '--source=nowhere'], '--source=nowhere: not a folder'),
        (['--name=pydoc_search', '--out=.'], 'exists already'),
    ],
)
def test_bad_flags_end_in_one_sentence(own, flags, said):
    failed = command(own, *flags)
    assert failed.returncode == 2 and said in failed.stderr
    assert len(failed.stderr.splitlines()) == 1
    assert not failed.stdout
