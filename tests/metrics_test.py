import json

import numpy as np
import pytest

from dvq_jax import metrics

QRELS = {'a': {'d1': 1}, 'b': {'d5': 1, 'd6': 1}, 'c': {'d1': 0}}


def test_measures_are_the_definitions():
    """Ranks: query a finds its document third, b one of its two second; c has nothing relevant."""
    run = metrics.to_run(
        ['a', 'b', 'c'],
        [['d9', 'd8', 'd1'], ['d7', 'd6'], ['d1', 'd2', 'd3']],
        np.array([[3.0, 2.0, 1.0], [3.0, 2.0, -np.inf], [3.0, 2.0, 1.0]]),
    )
    values = metrics.measure(QRELS, run)
    assert list(values) == list(metrics.NAMES)
    assert values['RR@10'] == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert values['R@10'] == pytest.approx((1 + 1 / 2) / 2)
    ideal = 1 + 1 / np.log2(3)
    assert values['nDCG@10'] == pytest.approx((1 / np.log2(4) + (1 / np.log2(3)) / ideal) / 2)


def test_a_query_that_found_nothing_counts_as_zero():
    assert metrics.measure(QRELS, {'a': {'d1': 1.0}})['RR@10'] == pytest.approx(0.5)


def test_teacher_agreement_is_a_share_of_the_top_k():
    found, teacher = np.array([[1, 2, 3, -1], [9, 8, 7, 6]]), np.array([[3, 2, 5, 6], [9, 8, 7, 6]])
    assert metrics.teacher_agreement(found, teacher, 2) == pytest.approx((1 / 2 + 1) / 2)
    assert metrics.teacher_agreement(found, teacher, 4) == pytest.approx((2 / 4 + 1) / 2)


def test_writer_forgets_the_steps_that_are_done_again(tmp_path):
    writer = metrics.MetricsWriter(tmp_path, step=None)
    for step in (1, 2, 3):
        writer.write(step, {'loss': 1.0 / step})
    writer.close()
    with open(tmp_path / 'metrics.jsonl', 'a') as file:
        file.write('{"step": 4, "lo')  # killed here
    again = metrics.MetricsWriter(tmp_path, step=2)
    again.write(3, {'loss': 0.25})
    again.close()
    lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    assert [(line['step'], line['loss']) for line in lines] == [(1, 1.0), (2, 0.5), (3, 0.25)]
