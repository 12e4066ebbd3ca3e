"""Every config in configs/ trains."""

import importlib
import pathlib

import numpy as np
import pytest

from dvq_jax import checkpoint
from tests.runs import run

CONFIGS = sorted(path.stem for path in (pathlib.Path(__file__).parent.parent / 'configs').glob('*.py'))
SMALL = {
    'data__batch_size': 8, 'index__lists': 16, 'index__codebooks': 4, 'index__codewords': 16,
    'initialize__opq_iterations': 1, 'initialize__coarse_iterations': 2, 'initialize__pq_iterations': 1,
    'train__steps': 2, 'eval__nprobe': 4,
}  # fmt: skip


@pytest.mark.parametrize('name', CONFIGS)
def test_trains_for_two_steps(collection, tmp_path, name):
    config = importlib.import_module(f'configs.{name}').get_config()
    config.data.dataset = collection['dataset']
    # The collection has Top-50: every document of a longer Top-K, or as many drawn from it.
    config.candidates = config.candidates.replace('top200', 'top50').replace('top100', 'top50')
    config.routing.rounds = min(config.routing.rounds, 1)
    result = run(config, tmp_path, **SMALL)
    assert result['step'] == 2 and np.isfinite(list(result['last'].values())).all()
    first, last = checkpoint.load(tmp_path, 0), checkpoint.load(tmp_path, 2)
    assert np.abs(first.params.codebooks - last.params.codebooks).max() > 0
