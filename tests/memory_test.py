import dataclasses
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / 'benchmarks'))

import performance_tables
from plans import Encoder, Shape, draw, measure

_SIZES = ('batch_size', 'candidates', 'dim', 'lists', 'codebooks', 'codewords')


def of(*sizes, **ways):
    return Shape(**dict(zip(_SIZES, sizes, strict=True)), **ways)


SMALL, TOP_200 = of(128, 16, 384, 1024, 16, 256), of(128, 200, 768, 10_000, 64, 256)
FEW, MANY = (256, 64, 64, 256, 16, 16), (512, 50, 64, 256, 16, 16)
SOFTMAX, DYNAMIC = {'estimator': 'softmax'}, {'dynamic': True}
ALL = ('centroids', 'codebooks', 'rotation', 'tower')
SHAPES = {
    'sizes': [
        SMALL,
        TOP_200,
        of(64, 8, 64, 512, 32, 16),
        of(64, 8, 64, 512, 32, 16, **SOFTMAX, **DYNAMIC),
        of(512, 32, 256, 4096, 32, 256),
        of(512, 200, 64, 1024, 16, 256, in_batch=False),
        of(128, 100, 768, 4096, 32, 16, in_batch=False, **SOFTMAX),
        of(512, 16, 768, 2048, 16, 16, in_batch=False, **DYNAMIC, tower='identity'),
    ],
    'estimators': [
        dataclasses.replace(TOP_200, **ways) for ways in (SOFTMAX, DYNAMIC, {**SOFTMAX, **DYNAMIC})
    ],
    'losses': [
        dataclasses.replace(SMALL, loss='ranknet'),
        dataclasses.replace(TOP_200, loss='ranknet'),
        of(*FEW, in_batch=False, loss='listnet+ranknet'),
        of(*MANY, loss='mse'),
        of(*MANY, loss='listnet+contrastive'),
        of(*MANY, loss='margin_mse', **SOFTMAX, **DYNAMIC),
        of(*MANY, loss='mse+kl', **SOFTMAX, **DYNAMIC),
    ],
    'encoders': [
        dataclasses.replace(SMALL, encoder=Encoder(layers=6, heads=12, inner=1536, length=32)),
        of(32, 16, 384, 1024, 16, 256, encoder=Encoder(layers=3, heads=12, inner=1536, length=128)),
        of(128, 16, 768, 10_000, 64, 256, encoder=Encoder(layers=6, heads=12, inner=3072, length=32)),
    ],
    '4 devices': [
        of(256, 50, 128, 2048, 16, 256, devices=4),
        of(256, 64, 768, 2048, 32, 16, devices=4, tower='identity', trained=ALL),
    ],
    '8 devices': [
        of(512, 100, 768, 1024, 32, 256, devices=8, loss='contrastive', **SOFTMAX),
        of(256, 16, 128, 10_000, 32, 256, devices=8, **SOFTMAX, **DYNAMIC),
    ],
}


@pytest.mark.parametrize('name', SHAPES)
def test_memory_is_within_a_fifth_of_what_the_compiler_plans(name):
    rows = measure(SHAPES[name])
    assert len(rows) == len(SHAPES[name])
    ratios = [row['predicted'] / row['planned'] for row in rows]
    assert all(0.8 < ratio < 1.2 for ratio in ratios), ratios


def test_steps_are_drawn_by_their_seed():
    shapes = draw(20, seed=1)
    assert shapes == draw(20, seed=1) != draw(20, seed=2)
    assert len({shape.loss for shape in shapes}) > 3


def test_the_table_counts_what_is_within_a_fifth():
    row = {'estimator': 'hard', 'dynamic': False, 'planned': 100 * 2**20}
    rows = [{**row, 'predicted': share * 2**20} for share in (70, 90, 119, 130)]
    rows.append({**row, 'planned': 2**20, 'predicted': 1})  # too small to count
    assert '| hard, lists frozen | 4 | 2 | 0.70 | 1.30 |' in performance_tables.step_memory({'rows': rows})
