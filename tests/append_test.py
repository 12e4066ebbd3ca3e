"""Documents added to an exported ScaNN index, against the export of all of them at once."""

import json
import subprocess

import numpy as np
import pytest

import dvq_jax
from dvq_jax.encode import encode_corpus
from dvq_jax.errors import InputError
from dvq_jax.export import append, faiss, manifest, scann, vectors, verify
from dvq_jax.towers import Tower
from dvq_jax.types import Encoding
from tests.export_cli_test import ROOT, command, refused
from tests.export_test import DIM, LISTS, NAMES, corpus, trained
from tests.index_test import restate

OLD, ALL = 900, 1200


def plain(params, docs, copies=1):
    """Nearest lists and codewords, by the equations."""
    rotated = docs @ params.rotation
    gaps = np.square(params.centroids).sum(axis=1) - 2 * rotated @ params.centroids.T
    lists = np.argsort(gaps, axis=1)[:, :copies].astype(np.int32).T.reshape(-1)
    return encode_corpus(params, docs, lists, quiet=True)


def export(out, count, *, codewords=16, copies=1, **choices):
    """An index of the first documents."""
    params = trained(codewords)[0]
    docs = corpus()[:count]
    kernel = np.random.default_rng(3).normal(size=(DIM, DIM)).astype(np.float32)
    choices = {'tower': Tower('linear', {}, {'Dense_0': {'kernel': kernel}}), 'step': 7} | choices
    encoding = plain(params, docs, copies)
    scann.write(
        out, params=params, encoding=encoding, doc_ids=NAMES[:count], corpus=docs, nprobe=5, **choices
    )
    return out


def add(out, index, first=OLD, last=ALL):
    docs = corpus()[first:last]
    return append.append(out, index=index, corpus=docs, doc_ids=NAMES[first:last])


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    'choices',
    [
        {'codewords': 16, 'reorder': 'float32', 'docids_pickle': True},
        {'codewords': 256, 'reorder': 'bfloat16', 'config': {'seed': 1}},
        {'codewords': 16, 'copies': 2},
        {'codewords': 256, 'copies': 2, 'lookup': 'float', 'reorder': 'float32'},
    ],
    ids=str,
)
def test_it_is_the_index_of_all_documents(tmp_path, choices):
    export(tmp_path / 'old', OLD, **choices)
    before = contents(tmp_path / 'old')
    done = add(tmp_path / 'new', tmp_path / 'old')
    assert (done.added, done.clipped, done.manifest.documents) == (ALL - OLD, 0, ALL)
    at_once = contents(export(tmp_path / 'all', ALL, **choices))
    found = contents(tmp_path / 'new')
    assert sorted(found) == sorted(at_once)
    # A product with the rotation rounds by where in its block a row stands.
    kept = {vectors.name_of(choices['reorder']), manifest.NAME} if 'reorder' in choices else set()
    assert {name for name in found if found[name] != at_once[name]} <= kept
    for name in kept - {manifest.NAME}:
        one, two = (np.load(tmp_path / folder / name) for folder in ('new', 'all'))
        np.testing.assert_array_equal(one[:OLD], np.load(tmp_path / 'old' / name))
        one, two = (vectors.restored(rows, choices['reorder'], None) for rows in (one, two))
        np.testing.assert_allclose(one, two, rtol=2**-7, atol=1e-6)
        assert np.mean(one == two) > 0.5
    one, two = (json.loads(files[manifest.NAME]) for files in (found, at_once))
    assert {**one, 'files': 0} == {**two, 'files': 0}
    assert contents(tmp_path / 'old') == before


def test_adding_again(tmp_path):
    export(tmp_path / 'old', OLD, copies=2)
    add(tmp_path / 'more', tmp_path / 'old', last=OLD + 1)
    add(tmp_path / 'new', tmp_path / 'more', first=OLD + 1)
    assert contents(tmp_path / 'new') == contents(export(tmp_path / 'all', ALL, copies=2))


def test_old_documents_stay_and_new_ones_are_found(tmp_path):
    params, chosen = trained(16)  # some documents are not in their nearest lists
    old = Encoding(lists=chosen.lists[:OLD], codes=chosen.codes[:OLD])
    scann.write(
        tmp_path / 'old',
        params=params,
        encoding=old,
        doc_ids=NAMES[:OLD],
        reorder='float32',
        corpus=corpus()[:OLD],
    )
    add(tmp_path / 'new', tmp_path / 'old')
    np.testing.assert_array_equal(np.load(tmp_path / 'new' / scann.LISTS)[:OLD], old.lists)
    np.testing.assert_array_equal(np.load(tmp_path / 'new' / scann.CODES)[:OLD], old.codes)
    opened = dvq_jax.open_index(tmp_path / 'new')
    _, names = opened.search(corpus()[:ALL], k=1, nprobe=LISTS)
    found = names[:, 0] == np.array(NAMES[:ALL])
    assert found[:OLD].mean() > 0.95 and found[OLD:].mean() > 0.95


@pytest.mark.parametrize('copies', [1, 2])
def test_int8_vectors_keep_their_scale(tmp_path, copies):
    export(tmp_path / 'old', OLD, copies=copies, reorder='int8', tower=None)
    docs = corpus()[OLD:ALL].copy()
    docs[5] *= 3.0
    done = append.append(tmp_path / 'new', index=tmp_path / 'old', corpus=docs)
    old, new = ({p.name: np.load(p) for p in (tmp_path / x).glob('*.npy')} for x in ('old', 'new'))
    np.testing.assert_array_equal(old[vectors.MULTIPLIERS], new[vectors.MULTIPLIERS])
    np.testing.assert_array_equal(old['int8_dataset.npy'], new['int8_dataset.npy'][:OLD])
    scaled = docs @ trained(16)[0].rotation * old[vectors.MULTIPLIERS]
    np.testing.assert_allclose(new['int8_dataset.npy'][OLD:], np.clip(scaled, -127, 127), atol=0.501)
    assert done.clipped == (np.abs(scaled) > 127.5).sum() >= 1
    scores, rows = dvq_jax.open_index(tmp_path / 'new').search_rows(docs, k=1, nprobe=LISTS)
    itself = rows[:, 0] == np.arange(OLD, ALL)
    assert itself.mean() > 0.95
    within = itself & (np.abs(scaled) <= 127.5).all(axis=1)
    np.testing.assert_allclose(scores[within, 0], 1.0, atol=0.03)


def test_what_does_not_fit_is_refused(tmp_path):
    index = export(tmp_path / 'index', OLD)
    faiss.write(
        tmp_path / 'faiss',
        params=trained(16)[0],
        encoding=plain(trained(16)[0], corpus()[:OLD]),
        doc_ids=NAMES[:OLD],
    )
    docs = corpus()[OLD : OLD + 3]
    for changes, message in (
        ({'doc_ids': ['a', 'doc/5', 'b']}, r"x\.npy: row 1 .*'doc/5', which line 6 of .*ids.txt"),
        ({'doc_ids': ['a', 'b', 'a']}, "'a' stands twice"),
        ({'doc_ids': ['a', 'b', 'c\nd']}, 'line break'),
        ({'doc_ids': ['a', 'b']}, '3 rows and 2 ids'),
        ({'corpus': docs[:, :16]}, r'x\.npy: is \[3, 16\] and the index takes \[documents, 32\]'),
        ({'corpus': docs[:0]}, r'\[0, 32\]'),
        ({'corpus': np.where(np.arange(3)[:, None] == 1, np.nan, docs)}, r'x\.npy: row 1 '),
        ({'index': tmp_path / 'faiss'}, r'index\.add'),
        ({'index': tmp_path / 'nowhere'}, 'no such folder'),
        ({'out': index}, 'exists already'),
    ):
        arguments = {'index': index, 'out': tmp_path / 'new', 'corpus': docs, 'source': 'x.npy'} | changes
        with pytest.raises(InputError, match=message):
            append.append(arguments.pop('out'), **arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['faiss', 'index']


def test_a_spoiled_index_is_refused(tmp_path):
    index = export(tmp_path / 'index', OLD, reorder='int8')
    for name, change in (
        (scann.LISTS, lambda x: x + LISTS),
        (scann.CODES, lambda x: x + 16),
        (scann.CODES, lambda x: x[:-1]),
        (vectors.MULTIPLIERS, lambda x: 0 * x),
    ):
        whole = (index / name).read_bytes()
        np.save(index / name, change(np.load(index / name)))
        with pytest.raises(InputError, match=f'{name}: .*{manifest.NAME}'):
            add(tmp_path / 'new', index)
        restate(index)  # with the right checksums
        with pytest.raises(InputError, match=f'{name}: is not what'):
            add(tmp_path / 'new', index)
        (index / name).write_bytes(whole)
        restate(index)
    assert [path.name for path in tmp_path.iterdir()] == ['index']


def test_a_wrong_index_is_not_delivered(tmp_path, monkeypatch):
    index = export(tmp_path / 'index', OLD, reorder='bfloat16')

    def backwards(target, rows):
        target[: len(rows)] = rows[::-1]

    for module, name, wrong in (
        (append, '_copy', backwards),
        (vectors, 'rounded', lambda docs, *_, right=vectors.rounded: right(docs[::-1], 'bfloat16', None)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, wrong)
            with pytest.raises(verify.MismatchError, match='than the reference search'):
                add(tmp_path / 'new', index)
    assert [path.name for path in tmp_path.iterdir()] == ['index']


def test_the_command(tmp_path):
    export(tmp_path / 'index', OLD, reorder='int8')
    docs = corpus()[OLD:ALL].astype(np.float16)
    docs[0] *= 3
    np.save(tmp_path / 'new.npy', docs)
    (tmp_path / 'new.tsv').write_text(''.join(f'{name}\ttext\n' for name in NAMES[OLD:ALL]))
    flags = {'index': tmp_path / 'index', 'corpus': tmp_path / 'new.npy', 'corpus_ids': tmp_path / 'new.tsv'}
    made = command('add', **flags, out=tmp_path / 'new')
    done = subprocess.run(made, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert (said['documents'], said['added']) == (ALL, ALL - OLD)
    assert said['clipped'] > 0
    assert f'{said["clipped"]} of {docs.size} numbers' in done.stderr
    opened = dvq_jax.open_index(tmp_path / 'new')
    assert list(opened.ids) == NAMES[:ALL]
    (tmp_path / 'new.tsv').write_text(''.join(f'{name}\n' for name in NAMES[: ALL - OLD]))
    message = refused('add', **flags, out=tmp_path / 'again')
    assert "new.npy: row 0 (from 0) has the id 'doc/0'" in message
    assert not (tmp_path / 'again').exists()
