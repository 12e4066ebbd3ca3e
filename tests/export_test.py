"""Exported indexes against the reference search: round trips through the real ScaNN and FAISS."""

import functools
import json
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dvq_jax
from dvq_jax import quantizer, search, towers
from dvq_jax.errors import InputError
from dvq_jax.export import faiss, ids, manifest, protos, scann, transform, vectors, verify
from dvq_jax.towers import Tower
from dvq_jax.types import Encoding, IndexParams

DOCS, DIM, LISTS, BOOKS = 5000, 32, 64, 8
NAMES = [f'doc/{row}' for row in range(DOCS)]


@functools.cache
def corpus():
    docs = np.random.default_rng(0).normal(size=(DOCS, DIM)).astype(np.float32)
    return docs / np.linalg.norm(docs, axis=1, keepdims=True)


def queries(count=40):
    noise = np.random.default_rng(1).normal(size=(count, DIM)).astype(np.float32)
    return corpus()[:count] + 0.1 * noise


@functools.cache
def trained(codewords):
    """An index of documents as centroids and residuals as codewords, under a random rotation."""
    rng, docs = np.random.default_rng(2), corpus()
    rotation = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0].astype(np.float32)
    centroids = 0.9 * docs[rng.choice(DOCS, LISTS, replace=False)] @ rotation
    empty = IndexParams(centroids, np.zeros((BOOKS, codewords, DIM // BOOKS), np.float32), rotation)
    lists = np.asarray(quantizer.assign(empty, jnp.asarray(docs)))
    residuals = (docs @ rotation - centroids[lists]).reshape(DOCS, BOOKS, -1)
    chosen = rng.choice(DOCS, codewords, replace=False)
    params = empty.replace(codebooks=np.ascontiguousarray(residuals[chosen].swapaxes(0, 1)))
    # Frozen lists need not be the nearest ones: some documents are elsewhere.
    lists = np.where(np.arange(DOCS) % 7 == 0, (lists + 1) % LISTS, lists)
    return params, jax.tree.map(np.asarray, quantizer.encode(params, jnp.asarray(docs), jnp.asarray(lists)))


@pytest.fixture(scope='module', params=[16, 256], ids=lambda k: f'K{k}')
def index(request):
    return trained(request.param)


def overlap(found, wanted):
    return np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, wanted, strict=True)])


@pytest.mark.parametrize('engine', [scann, faiss], ids=['scann', 'faiss'])
def test_float_scores_are_the_reference(tmp_path, index, engine):
    params, encoding = index
    lookup = {'lookup': 'float'} if engine is scann else {}
    engine.write(tmp_path / 'index', params=params, encoding=encoding, doc_ids=iter(NAMES), **lookup)
    opened = dvq_jax.open_index(tmp_path / 'index')
    for nprobe in (1, 3, 10, LISTS):
        scores, rows = opened.search_rows(queries(), k=10, nprobe=nprobe)
        expected, wanted = search.search(params, encoding, queries(), k=10, nprobe=nprobe)
        np.testing.assert_allclose(scores, expected, atol=1e-5)
        np.testing.assert_array_equal(rows, wanted)
    scores, names = opened.search(queries(), k=10, nprobe=LISTS)
    assert names.tolist() == [[NAMES[row] for row in query] for query in wanted]


@pytest.mark.parametrize('engine', [scann, faiss], ids=['scann', 'faiss'])
def test_documents_in_two_lists(tmp_path, index, engine):
    params, first = index
    again = quantizer.encode(params, jnp.asarray(corpus()), jnp.asarray((first.lists + 5) % LISTS))
    both = Encoding(
        lists=np.concatenate([first.lists, again.lists]),
        codes=np.concatenate([first.codes, again.codes]),
        copies=2,
    )
    lookup = {'lookup': 'float'} if engine is scann else {}
    engine.write(tmp_path / 'index', params=params, encoding=both, doc_ids=NAMES, **lookup)
    opened = dvq_jax.open_index(tmp_path / 'index')
    assert len(opened) == DOCS and opened.manifest.copies == 2
    for nprobe in (1, 4, LISTS):
        scores, rows = opened.search_rows(queries(), k=10, nprobe=nprobe)
        expected, wanted = search.search(params, both, queries(), k=10, nprobe=nprobe)
        np.testing.assert_allclose(scores, expected, atol=1e-5)
        assert np.mean(rows == wanted) > 0.99  # a document may have the same score in both lists


def test_probed_lists_are_the_best_by_inner_product(tmp_path, index):
    params, encoding = index
    scann.write(tmp_path / 'index', params=params, encoding=encoding, doc_ids=NAMES, lookup='float')
    coarse = queries() @ params.rotation @ params.centroids.T
    for nprobe in (1, 5):
        best = np.argsort(-coarse, axis=1)[:, :nprobe]
        _, rows = dvq_jax.open_index(tmp_path / 'index').search_rows(queries(), k=DOCS, nprobe=nprobe)
        for query, lists in enumerate(best):
            in_lists = np.flatnonzero(np.isin(encoding.lists, lists))
            np.testing.assert_array_equal(np.sort(rows[query][rows[query] >= 0]), in_lists)


@pytest.mark.parametrize('lookup', ['int8', 'lut16'])
def test_rounded_lookups(tmp_path, index, lookup):
    params, encoding = index
    if lookup == 'lut16' and params.codebooks.shape[1] != 16:
        with pytest.raises(InputError, match='16 codewords'):
            scann.write(tmp_path / 'index', params=params, encoding=encoding, doc_ids=NAMES, lookup=lookup)
        return
    scann.write(tmp_path / 'index', params=params, encoding=encoding, doc_ids=NAMES, lookup=lookup)
    scores, rows = dvq_jax.open_index(tmp_path / 'index').search_rows(queries(), k=10, nprobe=10)
    expected, wanted = search.search(params, encoding, queries(), k=10, nprobe=10)
    assert overlap(rows, wanted) > 0.95
    assert (np.abs(scores - expected) <= verify.lookup_error(params, queries(), lookup=lookup)).all()


@pytest.mark.parametrize('reorder', ['float32', 'bfloat16', 'int8'])
def test_reordering_scores_by_the_documents(tmp_path, index, reorder):
    params, encoding = index
    docs = corpus().astype(np.float16)
    scann.write(
        tmp_path / 'index', params=params, encoding=encoding, doc_ids=NAMES, reorder=reorder, corpus=docs
    )
    scores, rows = dvq_jax.open_index(tmp_path / 'index').search_rows(queries(), k=5, nprobe=LISTS)
    exact = queries() @ docs.astype(np.float32).T
    close = {'float32': 1e-5, 'bfloat16': 0.01, 'int8': 0.03}[reorder]
    np.testing.assert_allclose(scores, np.take_along_axis(exact, rows, axis=1), atol=close)
    assert (np.diff(scores) <= 0).all()
    # The true best of the 10·k candidates that the codes propose.
    _, candidates = search.search(params, encoding, queries(), k=50, nprobe=LISTS)
    proposed = np.take_along_axis(exact, candidates, axis=1)
    best = np.take_along_axis(candidates, np.argsort(-proposed, axis=1)[:, :5], axis=1)
    assert overlap(rows, best) > 0.95


def test_reordering_needs_the_corpus(tmp_path):
    params, encoding = trained(16)
    for docs in (None, corpus()[:10]):
        with pytest.raises(InputError, match=r'takes the encoded corpus, of shape \(5000, 32\)'):
            scann.write(
                tmp_path / 'i', params=params, encoding=encoding, doc_ids=NAMES, reorder='int8', corpus=docs
            )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('engine', [scann, faiss], ids=['scann', 'faiss'])
@pytest.mark.parametrize('reorder', ['none', 'float32'])
def test_too_few_documents_are_padded(tmp_path, engine, reorder):
    params, encoding = trained(16)
    few = Encoding(lists=encoding.lists[:20], codes=encoding.codes[:20])
    choices = {'reorder': reorder, 'corpus': corpus()[:20]} if engine is scann else {}
    engine.write(tmp_path / 'index', params=params, encoding=few, doc_ids=NAMES[:20], **choices)
    opened = dvq_jax.open_index(tmp_path / 'index')
    assert len(opened) == 20
    for nprobe in (1, LISTS):
        scores, names = opened.search(queries(3), k=30, nprobe=nprobe)
        _, wanted = search.search(params, few, queries(3), k=30, nprobe=nprobe)
        assert (scores.shape, names.shape) == ((3, 30), (3, 30))
        np.testing.assert_array_equal((wanted >= 0).sum(axis=1), np.isfinite(scores).sum(axis=1))
        np.testing.assert_array_equal(names == '', np.isneginf(scores))
        for found, rows in zip(names, wanted, strict=True):
            assert set(found) - {''} == {NAMES[row] for row in rows if row >= 0}


@pytest.mark.parametrize('engine', [scann, faiss], ids=['scann', 'faiss'])
def test_queries_go_through_the_tower(tmp_path, engine):
    params, encoding = trained(16)
    kernel = np.random.default_rng(3).normal(size=(DIM, DIM)).astype(np.float32)
    tower = Tower('linear', {}, {'Dense_0': {'kernel': kernel}})
    lookup = {'lookup': 'float'} if engine is scann else {}
    engine.write(tmp_path / 'i', params=params, encoding=encoding, doc_ids=NAMES, tower=tower, **lookup)
    scores, _ = dvq_jax.open_index(tmp_path / 'i').search_rows(queries(), k=10, nprobe=LISTS)
    expected, _ = search.search(params, encoding, queries() @ kernel, k=10, nprobe=LISTS)
    np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_transform_blocks_and_towers_survive_the_file(tmp_path):
    params, _ = trained(16)
    module = towers.build('mlp', hidden=8)
    tree = jax.tree.map(
        lambda x: np.random.default_rng(4).normal(size=x.shape).astype(np.float32),
        towers.initial_params(module, DIM, seed=0),
    )
    transform.write(tmp_path / 't.npz', rotation=params.rotation, tower=Tower('mlp', {'hidden': 8}, tree))
    apply = transform.QueryTransform.read(tmp_path / 't.npz', name='mlp', args={'hidden': 8}, dim=DIM)
    many = np.tile(queries(), (60, 1))
    expected = np.asarray(module.apply({'params': tree}, many)) @ params.rotation
    np.testing.assert_allclose(apply(many), expected, atol=1e-4)


def test_a_transform_that_changes_nothing_multiplies_nothing():
    many = queries()
    assert transform.QueryTransform(rotation=np.eye(DIM), tower=Tower())(many) is many
    swapped = np.eye(DIM)[::-1]
    np.testing.assert_array_equal(
        transform.QueryTransform(rotation=swapped, tower=Tower())(many), many[:, ::-1]
    )
    module = towers.build('linear')
    tree = jax.tree.map(np.zeros_like, towers.initial_params(module, DIM, seed=0))
    assert not transform.QueryTransform(rotation=np.eye(DIM), tower=Tower('linear', {}, tree))(many).any()


def test_scann_opens_it_as_its_own(tmp_path):
    from scann.scann_ops.py import scann_ops_pybind

    params, encoding = trained(16)
    scann.write(
        tmp_path / 'index', params=params, encoding=encoding, doc_ids=NAMES, docids_pickle=True, nprobe=5
    )
    searcher = scann_ops_pybind.load_searcher(str(tmp_path / 'index'))
    found, _ = searcher.search_batched(queries() @ params.rotation, final_num_neighbors=10)
    _, expected = dvq_jax.open_index(tmp_path / 'index').search(queries(), k=10, nprobe=5)
    assert found == expected.tolist()


def test_faiss_opens_it_as_its_own(tmp_path, index):
    import faiss as library
    from faiss.contrib import inspect_tools, ivf_tools

    params, encoding = index
    faiss.write(tmp_path / 'index', params=params, encoding=encoding, doc_ids=NAMES, nprobe=5)
    opened = library.read_index(str(tmp_path / 'index' / faiss.NAME))
    scores, rows = opened.search(queries(), 10)
    expected, wanted = search.search(params, encoding, queries(), k=10, nprobe=5)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    np.testing.assert_array_equal(rows, wanted)
    # FAISS itself, given the lists, chooses the codes that are stored.
    inner = library.downcast_index(opened.index)
    again = library.IndexIVFPQ(
        inner.quantizer, DIM, LISTS, BOOKS, inner.pq.nbits, library.METRIC_INNER_PRODUCT
    )
    library.copy_array_to_vector(params.codebooks.ravel(), again.pq.centroids)
    again.is_trained = True
    ivf_tools.add_preassigned(again, corpus() @ params.rotation, encoding.lists.astype(np.int64))
    same = []
    for number in range(LISTS):
        (one, codes), (two, wanted) = (inspect_tools.get_invlist(x.invlists, number) for x in (inner, again))
        np.testing.assert_array_equal(one, two)
        same.append((codes == wanted).all(axis=1))
    assert np.concatenate(same).mean() > 0.999  # float rounding may break a tie


def test_the_bytes_depend_on_the_arguments_alone(tmp_path):
    params, encoding = trained(256)
    for name in ('one', 'two'):
        if name == 'two':
            (tmp_path / '.two.partial').mkdir()
            (tmp_path / '.two.partial' / 'left.by.a.killed.process').touch()
            time.sleep(2.1)  # zip archives keep times of two seconds
        arguments = {'params': params, 'encoding': encoding, 'doc_ids': NAMES, 'corpus': corpus()}
        scann.write(tmp_path / name, reorder='int8', config={'seed': 1}, step=7, **arguments)
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / n).iterdir()} for n in ('one', 'two'))
    assert one == two
    stated = json.loads(one[manifest.NAME])
    assert (stated['step'], stated['config_sha256']) == (7, manifest.config_hash({'seed': 1}))
    assert set(stated['files']) == set(one) - {manifest.NAME}
    assert 'scann_docids.pkl' not in one
    assert set(stated['packages']) == {'dvq_jax', 'jax', 'numpy', 'scann'}


def test_a_wrong_index_is_not_delivered(tmp_path, monkeypatch):
    params, encoding = trained(256)
    for module, name, wrong in (
        (protos, '_partitioner', lambda centroids, right=protos._partitioner: right(centroids[::-1])),
        (protos, '_codebook', lambda codebooks, right=protos._codebook: right(codebooks[:, ::-1])),
        (vectors, 'write', lambda f, c, r, kind, right=vectors.write: right(f, c, r.T, kind)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, wrong)
            with pytest.raises(verify.MismatchError, match='than the reference search'):
                scann.write(
                    tmp_path / 'index',
                    params=params,
                    encoding=encoding,
                    doc_ids=NAMES,
                    reorder='int8',
                    corpus=corpus(),
                )
        assert not list(tmp_path.iterdir())


def test_bad_arguments_leave_nothing(tmp_path):
    params, encoding = trained(16)
    for wrong, message in (
        ({'doc_ids': NAMES[:-1]}, '4999 document ids for 5000'),
        ({'doc_ids': ['a\nb', *NAMES[1:]]}, 'line break'),
        ({'lookup': 'int4'}, 'unknown'),
        ({'reorder': 'int4'}, 'unknown'),
    ):
        with pytest.raises(InputError, match=message):
            scann.write(
                tmp_path / 'i', **({'params': params, 'encoding': encoding, 'doc_ids': NAMES} | wrong)
            )
    with pytest.raises(InputError, match='power of two'):
        faiss.write(tmp_path / 'i', params=trained(20)[0], encoding=encoding, doc_ids=NAMES)
    assert not list(tmp_path.iterdir())
    (tmp_path / 'i').mkdir()
    with pytest.raises(InputError, match='exists already'):
        scann.write(tmp_path / 'i', params=params, encoding=encoding, doc_ids=NAMES)


def test_ids_of_any_text(tmp_path):
    names = ['', 'a b', 'ü\r', '\t', 'last']
    ids.write(tmp_path / 'ids.txt', names, count=5)
    opened = ids.read(tmp_path / 'ids.txt', count=5)
    assert list(opened) == names
    assert opened.take(np.array([[4, -1], [2, 0]])).tolist() == [['last', ''], ['ü\r', '']]
    with pytest.raises(InputError, match='5 lines for 6'):
        ids.read(tmp_path / 'ids.txt', count=6)
    os.truncate(tmp_path / 'ids.txt', (tmp_path / 'ids.txt').stat().st_size - 1)
    with pytest.raises(InputError, match='4 lines for 5 documents; export the index again'):
        ids.read(tmp_path / 'ids.txt', count=5)


def test_import_is_light():
    import subprocess
    import sys

    code = 'import sys, dvq_jax; assert not {"jax", "scann", "faiss", "tensorflow"} & set(sys.modules)'
    subprocess.run([sys.executable, '-c', code], check=True)
    with pytest.raises(AttributeError, match='no_such_name'):
        _ = dvq_jax.no_such_name
