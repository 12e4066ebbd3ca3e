"""Opening an index, and what is refused: an index from somebody else is not trusted."""

import json
import pickle
import shutil

import numpy as np
import pytest

import dvq_jax
from dvq_jax import files
from dvq_jax.errors import InputError
from dvq_jax.export import manifest, scann, transform
from tests.export_test import DOCS, LISTS, NAMES, queries, trained


@pytest.fixture(scope='module')
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp('original') / 'index'
    params, encoding = trained(16)
    scann.write(folder, params=params, encoding=encoding, doc_ids=NAMES, lookup='float')
    return folder


@pytest.fixture
def written(original, tmp_path):
    """The folder of an index of K 16, for a test to spoil."""
    return shutil.copytree(original, tmp_path / 'index')


def restate(folder, **changes):
    """Rewrites the manifest, as somebody who tampers would: with the right checksums."""
    stated = json.loads((folder / manifest.NAME).read_text())
    stated['files'] = {
        path.name: {'bytes': path.stat().st_size, 'sha256': files.sha256(path)}
        for path in folder.iterdir()
        if path.name != manifest.NAME
    }
    (folder / manifest.NAME).write_text(json.dumps(stated | changes))


def test_any_number_of_queries(written):
    opened = dvq_jax.open_index(written)
    scores, rows = opened.search_rows(queries(), k=7, nprobe=3)
    for count in (1, 2, 9):
        few = opened.search_rows(queries()[:count], k=7, nprobe=3)
        np.testing.assert_allclose(few[0], scores[:count], atol=1e-6)
        np.testing.assert_array_equal(few[1], rows[:count])
    scores, names = opened.search(queries()[:0])
    assert (scores.shape, names.shape) == ((0, 100), (0, 100))


def test_bad_searches(written):
    opened = dvq_jax.open_index(written)
    for arguments, message in (
        ({'queries': queries()[:, :16]}, r'\[40, 16\]'),
        ({'queries': queries()[0]}, r'\[32\]'),
        ({'queries': np.where(np.arange(40)[:, None] == 3, np.nan, queries())}, 'query 3 '),
        ({'k': 0}, 'k is 0'),
        ({'nprobe': 0}, 'nprobe is 0'),
        ({'nprobe': LISTS + 1}, 'nprobe is 65'),
    ):
        with pytest.raises(InputError, match=message):
            opened.search(**({'queries': queries()} | arguments))


def test_an_index_that_is_not_whole_is_refused(written, tmp_path):
    with pytest.raises(InputError, match='no such folder'):
        dvq_jax.open_index(tmp_path / 'nowhere')
    stated = json.loads((written / manifest.NAME).read_text())
    for name in stated['files']:
        if name == scann.ASSETS:
            continue  # ours to write, for ScaNN's own loader; we never read it
        whole = (written / name).read_bytes()
        for content in (None, whole[:-1], bytes([whole[0] ^ 1]) + whole[1:]):
            (written / name).unlink()
            if content is not None:
                (written / name).write_bytes(content)
            with pytest.raises(InputError, match=f'{name}: '):
                dvq_jax.open_index(written)
            (written / name).write_bytes(whole)
    dvq_jax.open_index(written)
    (written / manifest.NAME).unlink()
    with pytest.raises(InputError, match='not a finished index'):
        dvq_jax.open_index(written)


@pytest.mark.parametrize(
    'text',
    [
        '',
        '[]',
        '{}',
        '{"version": 1}',
        '{"version": 2}',
        '{"version": 2, "files": 3}',
        '\ud800'.encode('utf-8', 'replace').decode(),
    ],
)
def test_a_manifest_of_something_else_is_refused(written, text):
    (written / manifest.NAME).write_text(text)
    with pytest.raises(InputError, match=manifest.NAME):
        dvq_jax.open_index(written)


@pytest.mark.parametrize(
    'changes',
    [
        {'lists': 65},
        {'dim': 16},
        {'documents': 4999},
        {'codewords': 256},
        {'books': 4},
        {'books': 5},
        {'lookup': 'int8'},
        {'lookup': '../x'},
        {'reorder': 'float32'},
        {'engine': 'faiss'},
        {'engine': 'os'},
        {'tower': 'no such tower'},
        {'tower': 'linear'},
        {'tower_args': {'hidden': 1}},
        {'step': '7'},
        {'lists': -1},
    ],
    ids=str,
)
def test_a_manifest_that_lies_is_refused(written, changes):
    restate(written, **changes)
    with pytest.raises(InputError):
        dvq_jax.open_index(written)


class Planted:
    """A pickle that leaves a file behind when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), 'w'))


def test_a_planted_pickle_is_never_run(written, tmp_path):
    trap = tmp_path / 'trap'
    for name in ('scann_docids.pkl', scann.CODES, scann.LISTS, transform.NAME):
        copy = tmp_path / f'copy of {name}'
        shutil.copytree(written, copy)
        if name == transform.NAME:
            np.savez(copy / name, rotation=np.array([Planted(trap)], object))
        elif name.endswith('.npy'):
            np.save(copy / name, np.array([Planted(trap)] * DOCS, object), allow_pickle=True)
        else:
            (copy / name).write_bytes(pickle.dumps(Planted(trap)))
        restate(copy)
        if name == 'scann_docids.pkl':
            _, names = dvq_jax.open_index(copy).search(queries(), k=5)
            assert set(names.ravel()) <= set(NAMES)
        else:
            with pytest.raises(InputError, match=name):
                dvq_jax.open_index(copy)
        assert not trap.exists()
    pickle.loads(pickle.dumps(Planted(trap))).close()
    assert trap.exists()  # the trap itself works


def test_assets_cannot_name_files_elsewhere(written, tmp_path):
    moved = tmp_path / 'elsewhere.npy'
    (written / scann.CODES).rename(moved)
    text = (written / scann.ASSETS).read_text()
    (written / scann.ASSETS).write_text(text.replace(scann.CODES, str(moved)))
    restate(written)
    with pytest.raises(InputError, match=scann.CODES):
        dvq_jax.open_index(written)


@pytest.mark.parametrize(
    ('name', 'change'),
    [
        (scann.LISTS, lambda x: x + 1),
        (scann.LISTS, lambda x: -1 - x),
        (scann.LISTS, lambda x: x.astype(np.int64)),
        (scann.CODES, lambda x: x + 1),
        (scann.CODES, np.asfortranarray),
        (scann.CODES, lambda x: x[:-1]),
    ],
)
def test_values_that_scann_would_trust_are_refused(written, name, change):
    np.save(written / name, change(np.load(written / name)))
    restate(written)
    with pytest.raises(InputError, match=name):
        dvq_jax.open_index(written)


@pytest.mark.parametrize('name', [scann.CONFIG, scann.PARTITIONER, scann.CODEBOOK])
def test_protos_of_another_index_are_refused(written, tmp_path, name):
    params, encoding = trained(256)
    scann.write(
        tmp_path / 'other',
        params=params.replace(centroids=np.tile(params.centroids, (2, 1))),
        encoding=encoding,
        doc_ids=NAMES,
    )
    for content in ((tmp_path / 'other' / name).read_bytes(), b'\xff' * 20):
        (written / name).write_bytes(content)
        restate(written)
        with pytest.raises(InputError, match=name):
            dvq_jax.open_index(written)
