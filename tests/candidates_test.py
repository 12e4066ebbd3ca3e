import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvq_jax import candidates, columns
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


def examples(positives, topk_ids):
    """Of those positives, all with the same Top-K."""
    return columns.from_examples(
        [
            {
                'query_id': str(number),
                'embedding': np.zeros(2, np.float32),
                'topk_ids': np.array(topk_ids, np.int32),
                'topk_scores': np.zeros(len(topk_ids), np.float32),
                'positives': np.array(own, np.int32),
            }
            for number, own in enumerate(positives)
        ]
    )


def test_draws_a_positive_and_distinct_documents_of_the_first_k():
    mixture, some = parse_mixture('gt+top20:5'), examples([[7, 9], [8]], range(100, 150))
    drawn = {0: [], 1: []}
    for seed in range(200):
        rows = candidates.bring(mixture, candidates.draw(mixture, 2, np.random.default_rng(seed)), some)
        assert rows.dtype == np.int32 and rows.shape == (2, 6)
        assert rows[0, 0] in (7, 9) and rows[1, 0] == 8
        for query, own in enumerate(rows[:, 1:]):
            assert np.all(np.diff(own) > 0) and own[0] >= 100 and own[-1] < 120
            drawn[query] += own.tolist()
        assert rows[0, 1:].tolist() != rows[1, 1:].tolist() or seed
        drawn[0].append(int(rows[0, 0]))
    for own in drawn.values():  # every one of them has its turn, and as often as the others
        counts = np.bincount(own, minlength=120)[100:]
        assert counts.min() > 25 and counts.max() < 80
    assert abs(drawn[0].count(7) - 100) < 30


def test_takes_all_of_the_top_k_in_order_and_pads_a_query_without_labels():
    mixture = parse_mixture('gt+top3')
    chances = candidates.draw(mixture, 3, np.random.default_rng(0))
    rows = candidates.bring(mixture, chances, examples([[], [1], []], [5, 4, 3, 2]))
    assert rows.tolist() == [[-1, 5, 4, 3], [1, 5, 4, 3], [-1, 5, 4, 3]]
    alone = candidates.bring(
        parse_mixture('gt'),
        candidates.draw(parse_mixture('gt'), 1, np.random.default_rng(0)),
        examples([[6]], [5]),
    )
    assert alone.tolist() == [[6]]


def test_a_relevant_document_that_is_drawn_is_brought_once():
    mixture = parse_mixture('gt+top3')
    chances = candidates.draw(mixture, 2, np.random.default_rng(0))
    rows = candidates.bring(mixture, chances, examples([[4], [9]], [5, 4, 3]))
    assert rows.tolist() == [[-1, 5, 4, 3], [9, 5, 4, 3]]


BROUGHT = st.lists(st.integers(-1, 40), min_size=24, max_size=24)


@given(BROUGHT, st.sampled_from([1, 2, 4]))
def test_each_document_is_on_one_device_once(brought, devices):
    found = candidates.distinct(np.array(brought, np.int32).reshape(devices, -1, 3))
    real = found[found >= 0]
    assert real.tolist() == sorted({*brought} - {-1})
    assert found.dtype == np.int32 and len(found) == devices
    fewest = max(1, -(-len(real) // devices))
    assert fewest <= found.shape[1] < fewest + -(-24 // devices // 8)


def test_few_shapes_are_compiled():
    rng, most = np.random.default_rng(0), 128 * 9
    widths = set()
    for documents in [1, 2, *range(5, 5000, 25)]:
        brought = rng.integers(0, documents, (1, 128, 9), np.int32)
        width = candidates.distinct(brought).shape[1]
        assert len(np.unique(brought)) <= width <= most
        widths.add(width)
    assert len(widths) == 8


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
