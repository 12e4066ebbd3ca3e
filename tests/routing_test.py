import numpy as np
import pytest

from dvq_jax import demand, host, initialize, routing

L, P = 24, 3


@pytest.fixture(scope='module')
def world():
    """Documents, and queries that ask in other directions than documents lie."""
    rng = np.random.default_rng(3)
    docs = rng.normal(size=(2000, 16)).astype(np.float32)
    queries = (rng.normal(size=(3000, 16)) * np.linspace(2, 0.2, 16)).astype(np.float32)
    scores = queries @ docs.T
    ids = np.argsort(-scores, axis=1)[:, :20].astype(np.int32)
    known = demand.turn_round(
        queries[:2500], ids[:2500], np.take_along_axis(scores, ids, axis=1)[:2500], len(docs)
    )
    return docs, known, queries[2500:], ids[2500:]


def learn(world, **changes):
    docs, known, _, _ = world
    centroids = initialize.coarse(docs, lists=L, iterations=10)
    settings = {'rounds': 3, 'passes': 12.0, 'nprobe': P, 'copies': 1, 'seed': 0} | changes
    return centroids, *routing.learn(centroids, docs, known, **settings)


def reach(centroids, lists, queries, ids, probes=P):
    """The share of the teacher's documents in the probed lists, and how many entries those hold."""
    probed = np.argsort(-(queries @ centroids.T), axis=1)[:, :probes]
    lists = lists.reshape(-1, 2000)
    found = (lists[:, ids][..., None] == probed[None, :, None]).any(axis=(0, 3))
    return found.mean(), np.bincount(lists.reshape(-1), minlength=L)[probed].sum(1).mean()


def nearest(centroids, docs):
    return ((docs[:, None] - centroids) ** 2).sum(-1).argmin(1)


def test_unseen_queries_find_more_where_they_look(world):
    docs, _, queries, ids = world
    start, centroids, lists = learn(world)
    before, cost = reach(start, nearest(start, docs), queries, ids)
    after, new_cost = reach(centroids, lists, queries, ids)
    assert after > before + 0.02 and new_cost < 1.3 * cost


def test_no_rounds_keeps_the_centroids_and_nearest_lists(world):
    docs = world[0]
    start, centroids, lists = learn(world, rounds=0)
    np.testing.assert_array_equal(start, centroids)
    assert np.mean(lists == nearest(start, docs)) > 0.999


def test_second_lists_are_others_and_find_what_the_first_miss(world):
    _, _, queries, ids = world
    _, centroids, lists = learn(world, rounds=1, copies=2)
    first, second = lists.reshape(2, -1)
    assert (first != second).all()
    both = reach(centroids, lists, queries, ids)[0]
    assert both > reach(centroids, first, queries, ids)[0] + 0.05


def test_the_scale_of_the_embeddings_does_not_matter(world):
    docs, known = world[:2]
    start = initialize.coarse(docs, lists=L, iterations=10)
    settings = {'rounds': 2, 'passes': 6.0, 'nprobe': P, 'copies': 1, 'seed': 0}
    once = routing.learn(start, docs, known, **settings)
    scaled = demand.turn_round(4 * known.queries, known.topk_ids, 16 * known.topk_scores, len(docs))
    again = routing.learn(4 * start, 4 * docs, scaled, **settings)
    assert np.mean(once[1] == again[1]) > 0.98
    np.testing.assert_allclose(again[0], 4 * once[0], atol=0.2 * np.abs(once[0]).mean())


@pytest.mark.parametrize('host_alone', [True, False])
def test_sums_are_those_of_each_list(host_alone, world, monkeypatch):
    monkeypatch.setattr(host, 'is_all_there_is', lambda: host_alone)
    monkeypatch.setattr(routing, 'BLOCK', 1024)  # several to a part
    monkeypatch.setattr(routing, '_PARTS', 1)
    rng, count = np.random.default_rng(1), len(world[0])
    docs = rng.integers(-9, 9, (count, 16)).astype(np.float16)  # whose sums are exact
    lists, centroids = rng.integers(0, L - 1, count).astype(np.int32), np.zeros((L, 16), np.float32)
    found, wanted = routing._with_sums(docs, centroids=centroids, lists=lists), np.zeros((L, 16))
    np.add.at(wanted, lists, docs)
    np.testing.assert_array_equal(found['sums'], wanted)
    assert not wanted[-1].any() and found['squares'] == np.sum(docs.astype(np.float64) ** 2)


def test_same_seed_same_bits(world):
    for ours, again in zip(learn(world, rounds=1), learn(world, rounds=1), strict=True):
        np.testing.assert_array_equal(ours, again)
