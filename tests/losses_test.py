import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dvq_jax import losses
from dvq_jax.errors import InputError

T = [0.9, 0.5, 0.1]
S = [0.7, 0.6, -0.2]


def softmax(values):
    total = sum(math.exp(v) for v in values)
    return [math.exp(v) / total for v in values]


def pairs():
    return [(i, j) for i in range(3) for j in range(3)]


# The equations as arithmetic on three documents, temperature 1.
EXPECTED = {
    'mse': ((0.9 - 0.7) ** 2 + (0.5 - 0.6) ** 2 + (0.1 + 0.2) ** 2) / 3,
    'margin_mse': sum(((T[i] - T[j]) - (S[i] - S[j])) ** 2 for i, j in pairs()) / 9,
    'ranknet': sum((T[i] - T[j]) * math.log(1 + math.exp(S[j] - S[i])) for i, j in pairs() if T[i] > T[j])
    / 3,
    'kl': sum(p * math.log(p / q) for p, q in zip(softmax(S), softmax(T), strict=True)),
    'listnet': -sum(q * math.log(p) for p, q in zip(softmax(S), softmax(T), strict=True)),
}


def call(name, teacher, student, **kwargs):
    return losses.DISTILLATION[name](jnp.asarray(teacher), jnp.asarray(student), **kwargs)


@pytest.mark.parametrize('name', losses.DISTILLATION)
def test_is_the_equation(name):
    np.testing.assert_allclose(call(name, [T], [S]), [EXPECTED[name]], rtol=1e-5)


@pytest.mark.parametrize('name', losses.DISTILLATION)
def test_temperature_divides_both_scores(name):
    scaled = call(name, [[t / 0.05 for t in T]], [[s / 0.05 for s in S]])
    np.testing.assert_allclose(call(name, [T], [S], temperature=0.05), scaled, rtol=1e-4)


@pytest.mark.parametrize('name', losses.DISTILLATION)
def test_masked_documents_take_no_part(name):
    where = jnp.asarray([[True, True, False, True, False]])
    teacher, student = [[0.9, 0.5, 9.0, 0.1, -5.0]], [[0.7, 0.6, -8.0, -0.2, 30.0]]
    np.testing.assert_allclose(call(name, teacher, student, where=where), [EXPECTED[name]], rtol=1e-5)
    grads = jax.grad(lambda s: call(name, teacher, s, where=where).sum())(jnp.asarray(student))
    assert grads[0, 2] == 0 and grads[0, 4] == 0 and float(jnp.abs(grads).sum()) > 0


EXTREMES = {
    'equal': ([[0.0] * 4], [[0.0] * 4], None),
    'large': ([[1e4, -1e4, 0.0, 3.0]], [[-1e4, 1e4, 0.0, 3.0]], None),
    'all masked': ([[1.0, 2.0, 3.0, 4.0]], [[4.0, 3.0, 2.0, 1.0]], [[False] * 4]),
    'one left': ([[1.0, 2.0, 3.0, 4.0]], [[4.0, 3.0, 2.0, 1.0]], [[True, False, False, False]]),
    'one document': ([[1.0]], [[0.5]], None),
}


@pytest.mark.parametrize('name', losses.DISTILLATION)
@pytest.mark.parametrize('case', EXTREMES)
def test_stays_finite_at_extremes(name, case):
    teacher, student, where = EXTREMES[case]
    where = None if where is None else jnp.asarray(where)
    value, grads = jax.value_and_grad(lambda s: call(name, teacher, s, where=where).sum())(
        jnp.asarray(student)
    )
    assert np.isfinite(float(value)) and np.isfinite(np.asarray(grads)).all()
    if case == 'all masked':
        assert float(value) == 0.0
    if name in ('margin_mse', 'ranknet', 'kl', 'listnet') and case in ('one left', 'one document'):
        assert float(jnp.abs(grads).max()) < 1e-6  # a single document cannot be ranked


@pytest.mark.parametrize('name', losses.DISTILLATION)
def test_teacher_is_the_minimum(name):
    rng = np.random.default_rng(0)
    teacher = jnp.asarray(rng.normal(size=(5, 8)), jnp.float32)
    other = teacher + jnp.asarray(0.3 * rng.normal(size=(5, 8)), jnp.float32)
    if name == 'ranknet':  # logistic: widening the right margins further still lowers it
        shuffled = teacher[:, ::-1]
        assert call(name, teacher, teacher).sum() < call(name, teacher, shuffled).sum()
        return
    assert (call(name, teacher, teacher) < call(name, teacher, other)).all()
    grads = jax.grad(lambda s: call(name, teacher, s).sum())(teacher)
    np.testing.assert_allclose(grads, 0.0, atol=1e-6)


def test_kl_has_the_student_first():
    forward = call('kl', [T], [S])
    assert not np.allclose(forward, call('kl', [S], [T]))


@settings(max_examples=15, deadline=None)
@given(count=st.integers(2, 150), seed=st.integers(0, 1000))
def test_blocked_ranknet_equals_all_pairs(count, seed):
    rng = np.random.default_rng(seed)
    teacher, student = rng.normal(size=(2, 3, count)).astype(np.float32)
    where = rng.random((3, count)) < 0.8
    margin = teacher[:, :, None] - teacher[:, None, :]
    cost = np.logaddexp(0, student[:, None, :] - student[:, :, None])
    valid = (margin > 0) & where[:, :, None] & where[:, None, :]
    n = where.sum(-1)
    expected = (margin * cost * valid).sum((1, 2)) * 2 / np.maximum(n * (n - 1), 1)
    np.testing.assert_allclose(
        call('ranknet', teacher, student, where=jnp.asarray(where)), expected, rtol=1e-4
    )


def test_ranknet_holds_a_bounded_number_of_pairs():
    scores = jax.ShapeDtypeStruct((64, 4096), jnp.float32)
    grad = jax.grad(lambda teacher, student: losses.ranknet(teacher, student).sum(), argnums=1)
    plan = jax.jit(grad).lower(scores, scores).compile().memory_analysis()
    assert plan.temp_size_in_bytes < 4 * (2 * losses.PAIRS + 12 * 64 * 4096)


@pytest.mark.parametrize(
    ('documents', 'scores', 'width'),
    [(1, 64, 1), (8, 512, 4), (65, 512, 33), (4096, 2**16, 16), (100_000, 2**21, 1)],
)
def test_pairs_are_compared_in_even_blocks(documents, scores, width):
    assert losses.pair_width(documents, scores=scores) == width


def test_contrastive_is_the_mean_log_softmax_of_the_positives():
    positives = jnp.asarray([[True, False, True], [False, False, False]])
    value = losses.contrastive(positives, jnp.asarray([S, S]))
    expected = -(math.log(softmax(S)[0]) + math.log(softmax(S)[2])) / 2
    np.testing.assert_allclose(value, [expected, 0.0], rtol=1e-5)


def test_objective_adds_weighted_terms():
    positives = jnp.asarray([[True, False, False]])
    terms = losses.parse_objective('listnet + 0.5*contrastive')
    value = losses.objective(terms, jnp.asarray([T]), jnp.asarray([S]), positives)
    expected = EXPECTED['listnet'] - 0.5 * math.log(softmax(S)[0])
    np.testing.assert_allclose(value, [expected], rtol=1e-5)


@pytest.mark.parametrize('text', ['', 'softmax', 'listnet+', '-1*kl', 'x*kl', 'nan*kl', '0*kl'])
def test_bad_objectives_are_refused(text):
    with pytest.raises(InputError, match='loss'):
        losses.parse_objective(text)
