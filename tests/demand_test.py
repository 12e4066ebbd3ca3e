import dataclasses

import numpy as np
import pytest

from dvq_jax import demand


@pytest.fixture
def turned():
    rng = np.random.default_rng(0)
    queries = rng.normal(size=(40, 8)).astype(np.float32)
    topk_ids = np.stack([rng.permutation(25)[:6] for _ in range(40)]).astype(np.int32)
    scores = -np.sort(-rng.normal(size=(40, 6)), axis=1).astype(np.float32)
    return demand.turn_round(queries, topk_ids, scores, 30)


def test_a_documents_queries_are_those_whose_top_k_holds_it(turned):
    rows, weights, scores = turned.of(np.arange(30), 5)
    for document in range(30):
        held = np.argwhere(turned.topk_ids == document)  # [query, rank]
        expected = sorted(map(tuple, held[:, ::-1].tolist()))[:5]  # best rank first, then by query
        found = [row for row in rows[document] if row < 40]
        assert found == [query for _, query in expected]
        padding = 5 - len(found)
        np.testing.assert_allclose(
            weights[document], [1 / (1 + rank / 30) for rank, _ in expected] + [0] * padding, rtol=1e-6
        )
        np.testing.assert_array_equal(
            scores[document], [turned.topk_scores[q, r] for r, q in expected] + [0] * padding
        )


def test_documents_that_nobody_wants_have_no_queries(turned):
    rows, weights, _ = turned.of(np.array([25, 29]), 3)
    assert (rows == 40).all() and not weights.any()


def test_spread_is_the_mean_deviation_within_a_query():
    scores = np.array([[3.0, 1.0], [5.0, 5.0]], np.float32)
    assert demand.score_spread(scores) == pytest.approx((1.0 + 0.0) / 2)


def test_spread_is_computed_once(turned, monkeypatch):
    """Each step of routing asks for it, and it goes through all scores."""
    again = dataclasses.replace(turned)
    expected = again.spread
    monkeypatch.setattr(demand, 'score_spread', None)
    assert again.spread == expected > 0
