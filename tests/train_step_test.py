import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dvq_jax import candidates, losses, optimizer, quantizer, towers, train_step
from dvq_jax.data import gather
from dvq_jax.types import Batch, IndexParams

B, C, D, L, M, K = 4, 3, 8, 5, 2, 4
CONSTANT = dict.fromkeys(optimizer.GROUPS, 'constant')
RATES = {'centroids': 1e-2, 'codebooks': 1e-2, 'rotation': None, 'tower': 1e-2}


def make_index():
    rng = np.random.default_rng(0)
    return IndexParams(
        centroids=rng.normal(size=(L, D)).astype(np.float32),
        codebooks=(0.3 * rng.normal(size=(M, K, D // M))).astype(np.float32),
        rotation=np.linalg.qr(rng.normal(size=(D, D)))[0].astype(np.float32),
    )


def make_batch(corpus, ids, in_batch=True):
    """One device's batch; several queries bring document 2, one slot is padding."""
    ids = np.asarray(ids, np.int32)
    found = candidates.distinct(ids[None]) if in_batch else ids.reshape(1, -1)
    return Batch(
        queries=np.random.default_rng(1).normal(size=(1, len(ids), D)).astype(np.float32),
        doc_ids=found,
        docs=gather(corpus, found),
        lists=np.maximum(found, 0) % L,
        positives=np.where(np.arange(2) == 0, ids[None, :, :1], -1).astype(np.int32),
    )


CORPUS = np.random.default_rng(2).normal(size=(9, D)).astype(np.float32)
IDS = [[0, 1, 2], [2, 7, 3], [-1, 4, 5], [6, 2, 8]]


def make_objective(**changes):
    settings = {
        'terms': losses.parse_objective('listnet'), 'temperature': 0.5, 'ivf_weight': 0.7, 'pq_weight': 1.3,
        'scale_ivf_to_pq': False, 'in_batch': True, 'dynamic': False, 'estimator': 'hard',
        'estimator_temperature': 1.0,
    }  # fmt: skip
    return train_step.Objective(**{**settings, **changes})


def run_step(objective, tower='identity', rates=RATES):
    module = towers.build(tower)
    transformation = optimizer.build(rates, steps=10, schedules=CONSTANT)
    state = train_step.init_state(make_index(), towers.initial_params(module, D, seed=0), transformation)
    step = train_step.make_train_step(tower=module, optimizer=transformation, objective=objective)
    before = jax.tree.map(np.asarray, state.params)
    state, metrics = step(state, make_batch(CORPUS, IDS, objective.in_batch))
    return before, state, {name: float(value) for name, value in metrics.items()}


def expected_losses(in_batch, lists_of):
    """The two losses of eq. 6 by numpy, document by document."""
    index, batch = make_index(), make_batch(CORPUS, IDS)
    totals = {'ivf': 0.0, 'pq': 0.0}
    for query, own in zip(batch.queries[0], IDS, strict=True):
        pool = sorted({doc for row in (IDS if in_batch else [own]) for doc in row if doc >= 0})
        docs = CORPUS[pool]
        lists = np.asarray([lists_of(doc) for doc in pool], np.int32)
        encoding = quantizer.encode(index, docs, jnp.asarray(lists))
        rotated = query @ index.rotation
        teacher = docs @ query / 0.5
        target = np.exp(teacher) / np.exp(teacher).sum()
        for name, student in (
            ('ivf', index.centroids[lists]),
            ('pq', np.asarray(quantizer.reconstruct(index, encoding))),
        ):
            scores = student @ rotated / 0.5
            totals[name] -= (target * (scores - np.log(np.exp(scores).sum()))).sum()
    return {name: total / B for name, total in totals.items()}


@pytest.mark.parametrize('in_batch', [True, False])
@pytest.mark.parametrize('dynamic', [True, False])
def test_losses_are_those_of_the_set_of_documents(in_batch, dynamic):
    _, _, metrics = run_step(make_objective(in_batch=in_batch, dynamic=dynamic))
    nearest = np.asarray(quantizer.assign(make_index(), CORPUS))
    expected = expected_losses(in_batch, (lambda doc: nearest[doc]) if dynamic else (lambda doc: doc % L))
    np.testing.assert_allclose(metrics['ivf_loss'], expected['ivf'], rtol=1e-4)
    np.testing.assert_allclose(metrics['pq_loss'], expected['pq'], rtol=1e-4)
    np.testing.assert_allclose(metrics['loss'], 0.7 * expected['ivf'] + 1.3 * expected['pq'], rtol=1e-4)


def test_ivf_loss_can_be_scaled_to_the_pq_loss():
    _, _, metrics = run_step(make_objective(scale_ivf_to_pq=True))
    np.testing.assert_allclose(metrics['loss'], (0.7 + 1.3) * metrics['pq_loss'], rtol=1e-4)


@pytest.mark.parametrize('estimator', ['hard', 'softmax'])
@pytest.mark.parametrize('dynamic', [True, False])
def test_steps_reduce_the_loss(estimator, dynamic):
    module = towers.build('mlp', hidden=16)
    transformation = optimizer.build({**RATES, 'rotation': 1e-3}, steps=60, schedules=CONSTANT)
    state = train_step.init_state(make_index(), towers.initial_params(module, D, seed=0), transformation)
    objective = make_objective(estimator=estimator, dynamic=dynamic)
    step = train_step.make_train_step(tower=module, optimizer=transformation, objective=objective)
    values = []
    for _ in range(60):
        state, metrics = step(state, make_batch(CORPUS, IDS))
        values.append(float(metrics['loss']))
    assert values[-1] < 0.8 * values[0]
    rotation = np.asarray(state.params['rotation'])
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(D), atol=1e-5)
    assert int(state.step) == 60


def test_frozen_groups_do_not_move():
    frozen = {**RATES, 'centroids': None, 'tower': None}
    before, state, _ = run_step(make_objective(), tower='linear', rates=frozen)
    np.testing.assert_array_equal(state.params['centroids'], before['centroids'])
    np.testing.assert_array_equal(state.params['rotation'], before['rotation'])
    jax.tree.map(np.testing.assert_array_equal, dict(state.params['tower']), before['tower'])
    assert not np.array_equal(state.params['codebooks'], before['codebooks'])


def test_metrics_count_codewords_and_lists():
    _, _, metrics = run_step(make_objective())
    real = sorted({doc for row in IDS for doc in row if doc >= 0})
    docs, lists = CORPUS[real], np.asarray(real) % L
    codes = np.asarray(quantizer.encode(make_index(), docs, jnp.asarray(lists)).codes)
    used = sum(len(np.unique(column)) for column in codes.T) / (M * K)
    sizes = np.bincount(lists, minlength=L)
    np.testing.assert_allclose(metrics['codewords_used'], used, rtol=1e-6)
    np.testing.assert_allclose(metrics['list_imbalance'], (sizes**2).sum() * L / sizes.sum() ** 2, rtol=1e-6)
    assert metrics['grad_norm/centroids'] > 0 and 'grad_norm/tower' not in metrics


@pytest.mark.parametrize('name', towers.TOWERS)
def test_towers_start_as_the_identity(name):
    module = towers.build(name)
    params = towers.initial_params(module, D, seed=3)
    np.testing.assert_allclose(module.apply({'params': params}, CORPUS), CORPUS, atol=1e-6)
    assert bool(params) == (name != 'identity')


@pytest.mark.parametrize('in_batch', [True, False])
def test_bfloat16_products_change_the_losses_by_their_rounding(in_batch):
    _, exact, metrics = run_step(make_objective(in_batch=in_batch))
    _, rounded, others = run_step(make_objective(in_batch=in_batch, products='bfloat16'))
    for name in ('ivf_loss', 'pq_loss'):
        assert metrics[name] != others[name]
        assert others[name] == pytest.approx(metrics[name], rel=2e-2)
    moved = [jax.tree.map(np.asarray, state.params['centroids']) for state in (exact, rounded)]
    np.testing.assert_allclose(*moved, rtol=0, atol=3 * RATES['centroids'])


def test_the_step_is_compiled_once():
    module = towers.build('linear')
    transformation = optimizer.build(RATES, steps=10, schedules=CONSTANT)
    state = train_step.init_state(make_index(), towers.initial_params(module, D, seed=0), transformation)
    step = train_step.make_train_step(tower=module, optimizer=transformation, objective=make_objective())
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _seconds, **_: compiled.append(event) if event.endswith('compile_duration') else None
    )
    state, _ = step(train_step.put(state), make_batch(CORPUS, IDS))
    assert compiled
    compiled.clear()
    step(state, make_batch(CORPUS, IDS))
    assert not compiled
