"""Configs and workdirs that a run refuses."""

import json

import numpy as np
import pytest

from dvq_jax.errors import InputError
from dvq_jax.run import open_run
from tests.runs import run


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'data__dataset': ''}, 'data.dataset is empty'),
        ({'data__dataset': '/nowhere'}, '/nowhere'),
        ({'data__batch_size': 0}, 'data.batch_size is 0'),
        ({'data__threads': -1}, 'data.threads is -1'),
        ({'seed': -1}, 'seed is -1'),
        ({'candidates': 'top60'}, 'first 60 documents, .* holds 50'),
        ({'candidates': 'gt'}, 'a single document'),
        ({'scales': 'both'}, "scales is 'both'; use 'relative' or 'absolute'"),
        ({'data__placement': 'disk'}, "data.placement is 'disk'"),
        ({'loss__name': 'l2'}, "'l2' is not a loss"),
        ({'loss__temperature': 0.0}, 'loss.temperature is 0.0'),
        ({'quantizer__assignment': 'fixed'}, "quantizer.assignment is 'fixed'"),
        ({'quantizer__estimator': 'gumbel'}, "quantizer.estimator is 'gumbel'"),
        ({'tower__name': 'bert'}, "tower 'bert' is unknown"),
        ({'index__codebooks': 5}, 'index.codebooks is 5, which does not divide the dimension 32'),
        ({'index__codewords': 300}, 'index.codewords is 300'),
        (
            {'index__codewords': 256, 'initialize__sample': 100},
            'codewords is 256, and k-means has 100 documents',
        ),
        ({'index__lists': 0}, 'index.lists is 0'),
        ({'index__lists': 2000}, 'index.lists is 2000, and k-means has 1500 documents'),
        ({'index__rotation': 'pca'}, "index.rotation is 'pca'"),
        ({'initialize__seeding': 'kmeans++'}, "initialize.seeding is 'kmeans\\+\\+'"),
        ({'optimizer__schedules__tower': 'step'}, "schedule 'step' is unknown"),
        ({'optimizer__rates__tower': -1.0, 'tower__name': 'mlp'}, 'learning rate of tower is -1.0'),
        ({'train__steps': -1}, 'train.steps is -1'),
        ({'train__log_every': 0}, 'train.log_every is 0'),
        ({'train__checkpoint_every': 0}, 'train.checkpoint_every is 0'),
        ({'init_from': '/nowhere'}, '/nowhere: holds no checkpoint'),
        ({'resume_from': '/nowhere'}, '/nowhere holds no checkpoint'),
        ({'eval__nprobe': 0}, 'eval.nprobe is 0'),
        ({'eval__nprobe': 17}, 'eval.nprobe is 17; there are 16 lists'),
        ({'eval__metric': 'MAP'}, "eval.metric is 'MAP'"),
    ],
)
def test_bad_configs_are_refused_before_anything_is_written(small_config, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        run(small_config, tmp_path / 'W', **changes)
    assert not (tmp_path / 'W').exists()


def test_scales_are_relative_or_absolute(small_config, tmp_path):
    relative = open_run(small_config, tmp_path / 'W').objective.temperature
    small_config.scales = 'absolute'
    absolute = open_run(small_config, tmp_path / 'W').objective.temperature
    spread = np.mean(
        [np.std(example['topk_scores']) for example in open_run(small_config, tmp_path).dataset.dev]
    )
    assert absolute == small_config.loss.temperature and relative == pytest.approx(
        absolute * spread, rel=1e-5
    )


def test_workdir_of_another_config_is_refused(small_config, tmp_path):
    run(small_config, tmp_path)
    with pytest.raises(InputError, match=r"loss.name='listnet', the config says 'mse'"):
        run(small_config, tmp_path, loss__name='mse')
    assert json.loads((tmp_path / 'done.json').read_text())['step'] == 20  # the run that is there is unharmed


def test_read_only_workdir_is_refused(small_config, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(InputError, match='cannot write there'):
        run(small_config, tmp_path / 'file' / 'W')
