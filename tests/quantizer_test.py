import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dvq_jax import quantizer
from dvq_jax.types import Encoding, IndexParams

L, M, K, S = 12, 4, 16, 3
D = M * S


def random_index(seed=0):
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.normal(size=(D, D)))[0]
    return IndexParams(
        centroids=jnp.asarray(rng.normal(size=(L, D)), jnp.float32),
        codebooks=jnp.asarray(0.5 * rng.normal(size=(M, K, S)), jnp.float32),
        rotation=jnp.asarray(rotation, jnp.float32),
    )


def random_docs(seed, count=40):
    return np.random.default_rng(seed).normal(size=(count, D)).astype(np.float32)


def brute_force(index, docs):
    """Lists, codes and reconstructions by the broadcast differences of eqs. 2 and 3, in float64."""
    centroids, books = np.asarray(index.centroids, np.float64), np.asarray(index.codebooks, np.float64)
    rotated = docs.astype(np.float64) @ np.asarray(index.rotation, np.float64)
    lists = np.argmin(((rotated[:, None] - centroids) ** 2).sum(-1), axis=1)
    residuals = (rotated - centroids[lists]).reshape(-1, M, 1, S)
    codes = np.argmin(((residuals - books) ** 2).sum(-1), axis=2)
    fine = books[np.arange(M), codes].reshape(-1, D)
    return lists, codes, centroids[lists] + fine


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_encodes_as_the_equations_say(seed):
    index, docs = random_index(seed), random_docs(seed + 1)
    lists, codes, full = brute_force(index, docs)
    encoding = quantizer.encode(index, docs)
    np.testing.assert_array_equal(quantizer.assign(index, docs), lists)
    np.testing.assert_array_equal(encoding.lists, lists)
    np.testing.assert_array_equal(encoding.codes, codes)
    np.testing.assert_allclose(quantizer.reconstruct(index, encoding), full, atol=1e-5)
    assert encoding.codes.dtype == jnp.uint8 and encoding.lists.dtype == jnp.int32


def test_decode_returns_to_the_callers_space():
    index, docs = random_index(), random_docs(1)
    _, _, full = brute_force(index, docs)
    decoded = quantizer.decode(index, quantizer.encode(index, docs))
    np.testing.assert_allclose(decoded, full @ np.asarray(index.rotation, np.float64).T, atol=1e-5)


def test_score_is_the_inner_product_with_the_decoded_document():
    index, docs, queries = random_index(), random_docs(1), random_docs(2, count=7)
    encoding = quantizer.encode(index, docs)
    expected = queries @ np.asarray(quantizer.decode(index, encoding)).T
    np.testing.assert_allclose(quantizer.score(index, queries, encoding), expected, atol=1e-4)


def test_given_lists_are_kept():
    index, docs = random_index(), random_docs(1)
    lists = jnp.arange(len(docs), dtype=jnp.int32) % L
    encoding = quantizer.encode(index, docs, lists)
    np.testing.assert_array_equal(encoding.lists, lists)
    residuals = np.asarray(quantizer.rotate(index, docs) - index.centroids[lists]).reshape(-1, M, 1, S)
    codes = np.argmin(((residuals - np.asarray(index.codebooks)) ** 2).sum(-1), axis=2)
    np.testing.assert_array_equal(encoding.codes, codes)


@pytest.mark.parametrize('estimator', ['hard', 'softmax'])
@pytest.mark.parametrize('frozen', [True, False])
def test_straight_through_goes_forward_as_encode_does(estimator, frozen):
    index, docs = random_index(), random_docs(1)
    lists = jnp.arange(len(docs), dtype=jnp.int32) % L if frozen else None
    encoding = quantizer.encode(index, docs, lists)
    quantized = jax.jit(quantizer.straight_through, static_argnames='estimator')(
        index, docs, lists, estimator=estimator
    )
    np.testing.assert_array_equal(quantized.lists, encoding.lists)
    np.testing.assert_array_equal(quantized.codes, encoding.codes)
    np.testing.assert_allclose(quantized.coarse, index.centroids[encoding.lists], atol=1e-5)
    np.testing.assert_allclose(quantized.full, quantizer.reconstruct(index, encoding), atol=1e-5)


def test_hard_gradient_adds_up_on_the_chosen_centers():
    index, docs = random_index(), random_docs(1)
    weights = np.random.default_rng(3).normal(size=docs.shape).astype(np.float32)

    def loss(index):
        return jnp.sum(weights * quantizer.straight_through(index, docs).full)

    grads = jax.grad(loss)(index)
    lists, codes, _ = brute_force(index, docs)
    centroids, books = np.zeros((L, D)), np.zeros((M, K, S))
    for row, weight in enumerate(weights):
        centroids[lists[row]] += weight
        for book in range(M):
            books[book, codes[row, book]] += weight.reshape(M, S)[book]
    np.testing.assert_allclose(grads.centroids, centroids, atol=1e-4)
    np.testing.assert_allclose(grads.codebooks, books, atol=1e-4)


def test_softmax_gradient_is_that_of_the_relaxed_choice():
    index, docs, temperature = random_index(), random_docs(1), 0.7
    lists = quantizer.assign(index, docs)
    weights = np.random.default_rng(3).normal(size=docs.shape).astype(np.float32)

    def straight(books):
        quantized = quantizer.straight_through(
            index.replace(codebooks=books), docs, lists, estimator='softmax', temperature=temperature
        )
        return jnp.sum(weights * quantized.full)

    def written_out(books):
        """w = p + stop_gradient(onehot − p) with the broadcast differences."""
        residuals = (quantizer.rotate(index, docs) - index.centroids[lists]).reshape(-1, M, 1, S)
        gaps = jnp.sum((residuals - books) ** 2, axis=-1)
        soft = jax.nn.softmax(-gaps / temperature, axis=-1)
        hard = jax.nn.one_hot(jnp.argmin(gaps, axis=-1), K)
        chosen = soft + jax.lax.stop_gradient(hard - soft)
        return jnp.sum(weights * (chosen[..., None] * books).sum(2).reshape(-1, D))

    np.testing.assert_allclose(
        jax.grad(straight)(index.codebooks), jax.grad(written_out)(index.codebooks), atol=1e-4, rtol=1e-4
    )


def test_relaxation_reaches_codewords_that_were_not_chosen():
    index, docs = random_index(), random_docs(1, count=1)

    def touched(estimator):
        def loss(index):
            return jnp.sum(quantizer.straight_through(index, docs, estimator=estimator).full ** 2)

        return int((jnp.abs(jax.grad(loss)(index).codebooks).sum(-1) > 0).sum())

    assert touched('hard') == M
    assert touched('softmax') > M


def test_unknown_estimator_is_refused():
    with pytest.raises(ValueError, match="use 'hard' or 'softmax'"):
        quantizer.straight_through(random_index(), random_docs(1), estimator='soft')


def test_never_forms_the_broadcast_difference():
    """No intermediate of encode is as large as [n, M, K, S], nor [n, M, K]."""
    index, docs = random_index(), random_docs(1, count=64)
    text = jax.jit(quantizer.encode).lower(index, docs).as_text()
    assert f'{64}x{M}x{K}x{S}x' not in text and f'{64}x{M}x{K}xf' not in text


def test_ties_go_to_the_lowest_index():
    index = random_index()
    twins = index.replace(
        centroids=jnp.concatenate([index.centroids, index.centroids]),
        codebooks=jnp.concatenate([index.codebooks, index.codebooks], axis=1),
    )
    encoding = quantizer.encode(twins, random_docs(1))
    assert int(encoding.lists.max()) < L and int(encoding.codes.max()) < K


def test_encoding_is_a_pytree():
    encoding = Encoding(lists=jnp.zeros(3, jnp.int32), codes=jnp.zeros((3, M), jnp.uint8))
    assert [x.shape for x in jax.tree.leaves(encoding)] == [(3,), (3, M)]


def test_bfloat16_products_round_their_operands_and_nothing_else():
    a, b = random_docs(1, 40), random_docs(2, 16).T
    rounded = [np.asarray(x.astype(jnp.bfloat16), np.float32) for x in map(jnp.asarray, (a, b))]
    expected = rounded[0].astype(np.float64) @ rounded[1]
    np.testing.assert_allclose(quantizer.product(a, b, 'bfloat16'), expected, rtol=1e-5, atol=1e-5)
    assert np.abs(quantizer.product(a, b) - expected).max() > 1e-3
