import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dvq_jax import candidates
from dvq_jax.candidates import Mixture, parse_mixture
from dvq_jax.errors import InputError


@pytest.mark.parametrize(
    ('text', 'mixture'),
    [
        ('gt', Mixture(True, 0, 0, False)),
        ('top200', Mixture(False, 200, 200, False)),
        ('top200:10', Mixture(False, 200, 10, False)),
        ('gt+ib', Mixture(True, 0, 0, True)),
        ('top200+ib', Mixture(False, 200, 200, True)),
        ('gt+top200:10', Mixture(True, 200, 10, False)),
        (' ib + gt + top5:1 ', Mixture(True, 5, 1, True)),
    ],
)
def test_reads_every_mixture(text, mixture):
    assert parse_mixture(text) == mixture
    assert mixture.size == int(mixture.ground_truth) + mixture.draw


@pytest.mark.parametrize(
    'text', ['', 'ib', 'gt+gt', 'top10+top20', 'top0', 'top10:0', 'top10:11', 'random5', 'gt,ib']
)
def test_bad_mixtures_are_refused(text):
    with pytest.raises(InputError, match='candidates'):
        parse_mixture(text)


def test_draws_a_positive_and_distinct_documents_of_the_first_k():
    mixture, topk = parse_mixture('gt+top20:5'), np.arange(100, 150)
    drawn = set()
    for seed in range(200):
        chances = candidates.draw(mixture, np.random.default_rng(seed))
        rows = candidates.bring(mixture, chances, np.array([7, 9]), topk)
        assert rows.dtype == np.int32 and len(rows) == 6
        assert rows[0] in (7, 9) and len(set(rows[1:])) == 5
        assert rows[1:].min() >= 100 and rows[1:].max() < 120
        drawn |= set(rows.tolist())
    assert drawn == {7, 9, *range(100, 120)}  # every one of them has its turn


def test_takes_all_of_the_top_k_in_order_and_pads_a_query_without_labels():
    mixture = parse_mixture('gt+top3')
    chances = candidates.draw(mixture, np.random.default_rng(0))
    rows = candidates.bring(mixture, chances, np.empty(0, np.int32), np.array([5, 4, 3, 2]))
    assert rows.tolist() == [-1, 5, 4, 3]


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(-1, 6), min_size=9, max_size=9), min_size=1, max_size=4))
def test_marks_first_occurrences(rows):
    expected = [[x >= 0 and x not in row[:i] for i, x in enumerate(row)] for row in rows]
    np.testing.assert_array_equal(candidates.first_occurrence(jnp.asarray(rows, jnp.int32)), expected)


def test_positives_are_found_among_pooled_or_own_candidates():
    positives = jnp.asarray([[3, -1], [5, 4]])
    pooled = candidates.is_positive(jnp.asarray([5, 3, -1, 4]), positives)
    np.testing.assert_array_equal(pooled, [[False, True, False, False], [True, False, False, True]])
    own = candidates.is_positive(jnp.asarray([[3, 5], [3, 5]]), positives)
    np.testing.assert_array_equal(own, [[True, False], [False, True]])


def test_positives_are_found_without_holding_all_pairs_of_them():
    shapes = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((4096,), (32, 64))]
    plan = jax.jit(candidates.is_positive).lower(*shapes).compile().memory_analysis()
    assert plan.temp_size_in_bytes < 4 * 32 * 4096
