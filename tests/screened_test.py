"""The screen: what it may be off by, when it is believed, and what is done where it is not."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dvq_jax import device_screen, exact, host, rounding, screened, stream
from dvq_jax.progress import Progress


def silent():
    return Progress('mine', total=None, unit='scores', every=float('inf'))


def vectors(seed, rows, *, dim=32, same=0.0, size=1.0):
    """Rows of which the share `same` points one way."""
    rng = np.random.default_rng(seed)
    common = np.random.default_rng(0).normal(size=dim)
    return (size * (rng.normal(size=(rows, dim)) + 10 * same * common)).astype(np.float32)


def taken_away(vector):
    """What bfloat16 takes away of a vector."""
    return vector - vector.astype(jnp.bfloat16).astype(np.float32)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), same=st.sampled_from([0.0, 1.0]), size=st.sampled_from([1e-3, 1.0, 1e3]))
def test_rounded_products_are_as_near_as_the_bound_says(seed, same, size):
    corpus, queries = vectors(seed, 500, same=same, size=size), vectors(seed + 100, 20, same=same)
    middle = screened._mean(corpus)
    ids, rounded, _, error = screened._screen_on_host(corpus, queries, middle, 50, silent())
    queries, corpus = queries.astype(np.float64), corpus.astype(np.float64)
    true = np.einsum('qd,qkd->qk', queries, corpus[ids]) - (queries @ middle)[:, None]
    assert np.all(np.abs(rounded - true).max(axis=1) <= error)


@pytest.mark.parametrize('worst', ['query', 'document'])
def test_the_bound_is_reached_by_what_lies_along_the_rounding(worst):
    one = vectors(7, 1)[0]
    other = taken_away(one).astype(jnp.bfloat16).astype(np.float32)
    query, doc = (one, other) if worst == 'query' else (other, one)
    corpus = np.stack([doc, -doc])  # about 0
    _, rounded, _, error = screened._screen_on_host(corpus, query[None], screened._mean(corpus), 2, silent())
    off = abs(abs(rounded[0, 0]) - abs(query.astype(np.float64) @ doc))
    assert 0.95 * error[0] < off <= error[0]


@pytest.fixture(params=['host', 'devices', 'devices that keep the corpus'])
def on(request, monkeypatch):
    """Ways to search: (`screened` or `exact`, corpus, k, corpus_block) -> the search."""

    def on_host(way, corpus, k, corpus_block):
        return way.on_host(corpus, k, corpus_block=corpus_block)

    def on_devices(way, corpus, k, corpus_block):
        return way.on_devices(
            stream.Stream(corpus, jax.local_devices(), largest=corpus_block), k, query_block=300
        )

    if request.param.endswith('corpus'):
        monkeypatch.setattr(stream, 'room', lambda devices: float('inf'))
    return on_host if request.param == 'host' else on_devices


def recording(monkeypatch):
    """Has float32 tell which queries it is given."""
    again = []
    for name in ('on_host', 'on_devices'):
        plain = getattr(exact, name)

        def recorded(*args, plain=plain, **kwargs):
            search = plain(*args, **kwargs)
            return lambda queries, progress: again.extend(queries) or search(queries, progress)

        monkeypatch.setattr(exact, name, recorded)
    return again


@pytest.mark.parametrize('width', [16, 512])  # less than is kept, and more; the last tile is not full
@pytest.mark.parametrize('same', [0.0, 1.0])
def test_finds_what_float32_finds_without_searching_again(on, same, width, monkeypatch):
    corpus, queries = vectors(1, 6000, same=same).astype(np.float16), vectors(2, 300, same=same)
    expected = on(exact, corpus, 20, 2500)(queries, silent())[1]
    again = recording(monkeypatch)
    monkeypatch.setattr(screened, '_SCORES', len(queries) * width)
    ids, scores = on(screened, corpus, 20, 2500)(queries, silent())
    tolerance = {'rtol': 0, 'atol': 2e-6 * np.abs(expected).max()}
    np.testing.assert_allclose(scores, expected, **tolerance)
    true = np.einsum('qd,qkd->qk', queries.astype(np.float64), corpus[ids].astype(np.float64))
    np.testing.assert_allclose(true, expected, **tolerance)
    assert len(again) < 0.05 * len(queries)


def test_searches_again_for_the_queries_that_the_screen_leaves_open_and_no_others(on, monkeypatch):
    corpus, queries = vectors(3, 3000), vectors(4, 40)
    corpus[:, -2:], queries[:, -2:] = 0, 0
    rng = np.random.default_rng(5)
    for axis, number in ((-1, 7), (-2, 23)):  # more documents than are kept, too close together for bfloat16
        queries[number, axis] = 10
        some = corpus[100 * number : 100 * number + 80]
        some[:] = 1e-3 * rng.normal(size=some.shape)
        some[:, axis] += 8
    expected = on(exact, corpus, 10, 1000)(queries, silent())
    again = recording(monkeypatch)
    ids, scores = on(screened, corpus, 10, 1000)(queries, silent())
    np.testing.assert_array_equal(ids, expected[0])
    np.testing.assert_allclose(scores, expected[1], rtol=1e-5)
    np.testing.assert_array_equal(again, queries[[7, 23]])


def test_does_without_the_screen_where_it_leaves_most_queries_open(on, monkeypatch):
    rng = np.random.default_rng(3)
    corpus = (1 + 1e-4 * rng.normal(size=(3000, 8))).astype(np.float32)
    corpus[:1500] *= -1  # so that the mean is of no use
    queries = np.ones((40, 8), np.float32) + rng.normal(size=(40, 8)).astype(np.float32) / 10
    plain, search = (on(way, corpus, 10, 1000) for way in (exact, screened))
    expected = plain(queries, silent())
    for found, wanted in zip(search(queries, silent()), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    monkeypatch.setattr(screened, '_rank', lambda *_: pytest.fail('the screen was hopeless'))
    monkeypatch.setattr(rounding, 'error', lambda *_: pytest.fail('the screen was hopeless'))
    np.testing.assert_array_equal(search(queries, silent())[0], expected[0])


def test_equal_documents_tie_by_lowest_row(on):
    corpus = np.repeat(vectors(4, 200), 3, axis=0)
    ids, scores = on(screened, corpus, 30, 110)(vectors(5, 12), silent())
    assert np.all(ids.reshape(12, 10, 3) == ids[:, ::3, None] + np.arange(3))
    assert np.all(scores.reshape(12, 10, 3) == scores[:, ::3, None])


def test_pays_where_there_are_matrix_units(monkeypatch):
    for units, accelerated in itertools.product((True, False), repeat=2):
        monkeypatch.setattr(host, 'has_matrix_units', lambda units=units: units)
        monkeypatch.setattr(host, 'is_all_there_is', lambda accelerated=accelerated: not accelerated)
        assert screened.pays(100_000, 10_000, 200) == (units or accelerated)
        assert not screened.pays(1000, 1000, 10) and not screened.pays(100_000, 10_000, 10_000)


@pytest.mark.parametrize('scale', [1e19, 1e-19, 3e-23])
def test_norms_that_float32_cannot_square_leave_the_answer_open(on, scale):
    """Queries are not rounded, so that the bound would be 0, or 0 times infinity."""
    corpus = (scale * vectors(1, 3000)).astype(np.float32)
    queries = vectors(2, 20).astype(jnp.bfloat16).astype(np.float32)
    expected = on(exact, corpus, 10, 1000)(queries, silent())
    found = on(screened, corpus, 10, 1000)(queries, silent())
    np.testing.assert_array_equal(found[0], expected[0])


def test_what_sums_lose_is_in_the_bound():
    """Nothing is rounded to bfloat16, and all documents lie far away from 0."""
    rng = np.random.default_rng(0)
    queries = rng.normal(size=(20, 1024)).astype(jnp.bfloat16).astype(np.float32)
    docs = (256 * rng.integers(-1, 2, (300, 1024))).astype(np.float32)
    near, reach = rounding.rounded(docs, np.zeros(1024, np.float32))
    error = rounding.error(
        queries, queries.astype(jnp.bfloat16), np.asarray(reach), np.zeros(1024, np.float32)
    )
    products = np.asarray(jnp.matmul(queries, near.astype(jnp.float32).T))
    off = np.abs(products - queries.astype(np.float64) @ docs.T.astype(np.float64)).max(axis=1)
    assert np.all(off <= error) and np.any(off > 0) and reach[1] == 0


def test_ranking_orders_ties_by_row_in_whatever_order_they_were_chosen():
    corpus = np.repeat(vectors(4, 30), 4, axis=0)
    queries, ids = vectors(5, 6)[None], np.tile(np.arange(120), (6, 1))
    ids = np.random.default_rng(0).permuted(ids, axis=1)[None].astype(np.int32)
    nothing = np.full((1, 6), -np.inf, np.float32)
    found = device_screen.Chosen(queries, ids, np.zeros(ids.shape, np.float32), nothing, nothing)
    one = jax.tree.map(lambda x: x[0], found)
    rows, scores, _ = screened._ranked(jnp.asarray(corpus), one, np.zeros(32, np.float32), k=40)
    wanted = exact.on_host(corpus, 40, corpus_block=50)(queries[0], silent())
    np.testing.assert_array_equal(rows, wanted[0])
    np.testing.assert_allclose(scores, wanted[1], rtol=1e-5)
