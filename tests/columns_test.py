"""Examples as arrays."""

import numpy as np
import pytest

from dvq_jax import columns


def example(number, positives, text=True):
    rng = np.random.default_rng(number)
    return {
        'query_id': f'q{number}',
        'embedding': rng.normal(size=3).astype(np.float32),
        'topk_ids': rng.integers(0, 9, 4).astype(np.int32),
        'topk_scores': rng.normal(size=4).astype(np.float32),
        'positives': np.array(positives, np.int32),
        **({'text': f'text {number}'} if text else {}),
    }


EXAMPLES = [example(0, [4, 2]), example(1, []), example(2, [7]), example(3, [1, 2, 3])]


def same(found, wanted):
    assert list(found.query_ids) == [one['query_id'] for one in wanted]
    for number, one in enumerate(wanted):
        np.testing.assert_array_equal(found.embeddings[number], one['embedding'])
        np.testing.assert_array_equal(found.topk_ids[number], one['topk_ids'])
        np.testing.assert_array_equal(found.topk_scores[number], one['topk_scores'])
        own = found.positives[found.offsets[number] : found.offsets[number + 1]]
        np.testing.assert_array_equal(own, one['positives'])
        assert found.texts is None or found.texts[number] == one['text']
    assert len(found) == len(wanted) == len(found.offsets) - 1


@pytest.mark.parametrize('rows', [[2, 0, 0, 3], [1], [3, 2, 1, 0]])
def test_takes_rows_in_any_order(rows):
    whole = columns.from_examples(EXAMPLES)
    same(whole, EXAMPLES)
    same(whole.take(np.array(rows)), [EXAMPLES[row] for row in rows])
    same(whole.take(np.array(rows)).take(np.array([0])), [EXAMPLES[rows[0]]])


def test_joins_parts():
    parts = [columns.from_examples(EXAMPLES[:1]), columns.from_examples(EXAMPLES[1:])]
    same(columns.joined(parts), EXAMPLES)
    assert columns.joined([columns.from_examples([example(1, [], text=False)])]).texts is None


def test_pads_the_first_positives():
    found = columns.from_examples(EXAMPLES).padded_positives(2)
    assert found.tolist() == [[4, 2], [-1, -1], [7, -1], [1, 2]] and found.dtype == np.int32
