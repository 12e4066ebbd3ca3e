import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dvq_jax import optimizer
from dvq_jax.errors import InputError

CONSTANT = dict.fromkeys(optimizer.GROUPS, 'constant')
RATES = {'centroids': 1e-2, 'codebooks': 1e-3, 'rotation': None, 'tower': None}


def tree():
    rng = np.random.default_rng(0)
    return {
        'centroids': jnp.asarray(rng.normal(size=(5, 4)), jnp.float32),
        'codebooks': jnp.asarray(rng.normal(size=(2, 3, 2)), jnp.float32),
        'rotation': jnp.asarray(np.linalg.qr(rng.normal(size=(4, 4)))[0], jnp.float32),
        'tower': {'Dense_0': {'kernel': jnp.eye(4)}},
    }


def rms(array):
    return float(np.sqrt(np.mean(np.square(array))))


def one_step(rates, **settings):
    params = tree()
    transformation = optimizer.build(rates, steps=10, **{'schedules': CONSTANT, **settings})
    grads = jax.tree.map(jnp.ones_like, params)
    updates, _ = transformation.update(grads, transformation.init(params), params)
    return params, optax.apply_updates(params, updates)


def test_each_group_moves_at_its_own_rate_and_the_rest_is_frozen():
    before, after = one_step(RATES)
    # Adam's first step is the rate times the gradient's sign; the rate is relative to what it moves.
    for name in ('centroids', 'codebooks'):
        np.testing.assert_allclose(before[name] - after[name], RATES[name] * rms(before[name]), rtol=1e-3)
    np.testing.assert_array_equal(after['rotation'], before['rotation'])
    np.testing.assert_array_equal(after['tower']['Dense_0']['kernel'], before['tower']['Dense_0']['kernel'])


def test_rates_may_be_absolute():
    before, after = one_step(RATES, relative=False)
    for name in ('centroids', 'codebooks'):
        np.testing.assert_allclose(before[name] - after[name], RATES[name], rtol=1e-3)


def test_rotation_stays_orthogonal():
    params = tree()
    transformation = optimizer.build({**RATES, 'rotation': 0.05}, steps=10, schedules=CONSTANT)
    state = transformation.init(params)
    rng = np.random.default_rng(1)
    for _ in range(20):
        grads = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), params)
        updates, state = transformation.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    rotation = params['rotation']
    assert float(jnp.abs(rotation - tree()['rotation']).max()) > 0.05
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(4), atol=1e-5)


def test_nearest_orthogonal_is_the_polar_factor():
    rng = np.random.default_rng(0)
    matrix = np.linalg.qr(rng.normal(size=(6, 6)))[0] + 0.1 * rng.normal(size=(6, 6))
    left, _, right = np.linalg.svd(matrix)
    np.testing.assert_allclose(optimizer.nearest_orthogonal(jnp.asarray(matrix)), left @ right, atol=1e-5)


@pytest.mark.parametrize(
    ('name', 'expected'),
    [('constant', [0, 2, 4, 4, 4]), ('linear', [0, 2, 4, 2, 0]), ('cosine', [0, 2, 4, 2, 0])],
)
def test_schedules_warm_up_and_decay(name, expected):
    rate = optimizer.schedule(name, 4.0, steps=6, warmup=2)
    np.testing.assert_allclose([rate(step) for step in (0, 1, 2, 4, 6)], expected, atol=1e-6)


def test_weight_decay_is_for_the_tower_alone():
    rates = {**RATES, 'tower': 1e-2}
    _, plain = one_step(rates)
    _, decayed = one_step(rates, weight_decay=0.5)
    np.testing.assert_array_equal(plain['centroids'], decayed['centroids'])
    assert not np.array_equal(plain['tower']['Dense_0']['kernel'], decayed['tower']['Dense_0']['kernel'])


def test_clipping_bounds_what_adam_sees():
    params = tree()
    transformation = optimizer.build(RATES, steps=10, schedules=CONSTANT, clip_norm=1e-12)
    grads = jax.tree.map(lambda x: 1e3 * jnp.ones_like(x), params)
    updates, _ = transformation.update(grads, transformation.init(params), params)
    assert float(jnp.abs(updates['centroids']).max()) < 1e-5  # below Adam's epsilon


@pytest.mark.parametrize(
    ('rates', 'message'),
    [
        ({'centroids': 1e-3}, 'give one for each'),
        ({**RATES, 'bias': 1.0}, 'give one for each'),
        ({**RATES, 'centroids': -1.0}, 'learning rate of centroids is -1.0'),
    ],
)
def test_bad_rates_are_refused(rates, message):
    with pytest.raises(InputError, match=message):
        optimizer.build(rates, steps=10, schedules=CONSTANT)


def test_groups_have_their_own_schedules():
    params = tree()
    schedules = {**CONSTANT, 'codebooks': 'linear'}
    transformation = optimizer.build(RATES, steps=2, schedules=schedules)
    state, moved = transformation.init(params), []
    for _ in range(3):
        updates, state = transformation.update(jax.tree.map(jnp.ones_like, params), state, params)
        moved.append((float(-updates['centroids'][0, 0]), float(-updates['codebooks'][0, 0, 0])))
    scales = rms(params['centroids']), rms(params['codebooks'])
    expected = np.array([(1e-2, 1e-3), (1e-2, 5e-4), (1e-2, 0.0)]) * scales
    np.testing.assert_allclose(moved, expected, rtol=1e-3, atol=1e-8)


def test_frozen_groups_do_not_count_towards_the_clipped_norm():
    params = tree()
    transformation = optimizer.build(RATES, steps=10, schedules=CONSTANT, clip_norm=1.0)
    grads = jax.tree.map(lambda x: 0.01 * jnp.ones_like(x), params)
    huge = {**grads, 'rotation': 1e12 * jnp.ones((4, 4))}
    updates = [transformation.update(g, transformation.init(params), params)[0] for g in (grads, huge)]
    np.testing.assert_array_equal(updates[0]['centroids'], updates[1]['centroids'])


def test_unknown_schedule_is_refused():
    with pytest.raises(InputError, match="schedule 'step' is unknown"):
        optimizer.build(RATES, steps=10, schedules={**CONSTANT, 'codebooks': 'step'})


def test_every_parameter_needs_a_group():
    with pytest.raises(ValueError, match="no optimizer group covers \\['bias'\\]"):
        optimizer.label({'bias': jnp.zeros(3)})
