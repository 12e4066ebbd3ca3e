import json

import pytest

from dvq_jax import checkpoint, evaluate, plateau
from dvq_jax.train import train


def test_looks_grow_apart_by_a_quarter():
    looks = [step for step in range(1300) if plateau.is_look(step)]
    assert looks == [0, 200, 250, 313, 392, 490, 613, 767, 959, 1199]


@pytest.mark.parametrize(
    ('losses', 'expected'),
    [
        ({}, None),
        ({0: 5.0}, None),
        ({0: 5.0, 200: 4.0, 250: 3.0}, None),
        ({0: 5.0, 200: 5.0}, (200, 300)),
        ({0: 5.0, 200: 4.0, 250: 4.5}, (250, 375)),
        ({250: 4.5, 200: 4.0, 0: 5.0, 313: 1.0}, (250, 375)),  # what came after does not matter
    ],
)
def test_rates_decay_after_the_first_look_that_brought_nothing(losses, expected):
    assert plateau.decay(losses) == expected


@pytest.fixture
def few_looks(small_config, monkeypatch):
    """Looks at 8, 10, 13 and so on, of a run that gains nothing: it ends after 8 + 4 steps."""
    monkeypatch.setattr(plateau, '_FIRST', 8)
    small_config.train.steps = None
    small_config.optimizer.rates.update({'centroids': 1.0, 'codebooks': 1.0})  # ruins the index
    return small_config


def test_a_run_ends_by_itself_and_says_when(few_looks, tmp_path):
    result = train(few_looks, str(tmp_path / 'W'))
    assert result['step'] == 12
    about = checkpoint.read_about(tmp_path / 'W', 12)
    assert sorted(about['losses']) == ['0', '8'] and about['losses']['8'] > about['losses']['0']
    written = [json.loads(line) for line in (tmp_path / 'W' / 'metrics.jsonl').read_text().splitlines()]
    assert [line['dev/loss'] for line in written if 'dev/loss' in line] == list(about['losses'].values())


def test_an_interrupted_run_takes_the_same_steps(few_looks, tmp_path, monkeypatch):
    train(few_looks, str(tmp_path / 'whole'))
    save = checkpoint.Checkpoints.save

    def save_and_stop(self, state, **rest):
        save(self, state, **rest)
        if int(state.step) == 10:  # rates have begun to decay
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint.Checkpoints, 'save', save_and_stop)
        train(few_looks, str(tmp_path / 'W'))
    assert not (tmp_path / 'W' / evaluate.DONE).exists()
    train(few_looks, str(tmp_path / 'W'))
    ours, theirs = (checkpoint.load(tmp_path / name) for name in ('W', 'whole'))
    assert ours.step == theirs.step == 12
    for name in ('centroids', 'codebooks'):
        assert (getattr(ours.params, name) == getattr(theirs.params, name)).all()
