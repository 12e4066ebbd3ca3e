"""The GPU's kernel, interpreted, against the same by XLA; and that Triton's language is what it becomes."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dvq_jax import nearest_gpu, quantizer


def some(seed, rows, groups, words, width):
    rng = np.random.default_rng(seed)
    vectors, centers = rng.normal(size=(rows, groups, width)), rng.normal(size=(groups, words, width))
    return jnp.asarray(vectors, jnp.float32), jnp.asarray(centers, jnp.float32)


def interpreted(vectors, centers, norms=None):
    norms = jnp.sum(jnp.square(centers), axis=-1) if norms is None else norms
    return nearest_gpu.nearest(vectors, centers, norms, interpret=True)


@pytest.mark.parametrize('rows', [0, 1, 64, 130])
@pytest.mark.parametrize(('groups', 'words', 'width'), [(3, 256, 12), (2, 200, 1), (1, 5, 7), (4, 16, 32)])
def test_finds_what_xla_finds(rows, groups, words, width):
    vectors, centers = some(rows, rows, groups, words, width)
    chosen, gaps = interpreted(vectors, centers)
    wanted, distances = quantizer.nearest(vectors, centers)
    np.testing.assert_array_equal(chosen, wanted)
    np.testing.assert_allclose(gaps, distances, rtol=1e-5, atol=1e-5)
    assert chosen.dtype == jnp.int32


def test_ties_go_to_the_lowest():
    vectors, centers = some(0, 20, 2, 8, 4)
    chosen = interpreted(vectors, jnp.tile(centers, (1, 3, 1)))[0]
    np.testing.assert_array_equal(chosen, quantizer.nearest(vectors, centers)[0])


@pytest.mark.parametrize('products', ['float32', 'bfloat16'])
def test_the_quantizer_takes_it_where_it_runs_and_gradients_are_the_same(products, monkeypatch):
    rng = np.random.default_rng(1)
    index = quantizer.IndexParams(
        centroids=jnp.asarray(rng.normal(size=(5, 24)), jnp.float32),
        codebooks=jnp.asarray(rng.normal(size=(4, 16, 6)), jnp.float32),
        rotation=jnp.asarray(np.linalg.qr(rng.normal(size=(24, 24)))[0], jnp.float32),
    )
    docs = jnp.asarray(rng.normal(size=(1, 50, 24)), jnp.float32)

    def loss(index, docs):
        found = quantizer.straight_through(index, docs, estimator='hard', products=products)
        return jnp.sum(jnp.sin(found.full)), found.codes

    def step():
        mapped = jax.pmap(jax.value_and_grad(loss, has_aux=True), axis_name='data', in_axes=(None, 0))
        return mapped(index, docs)

    wanted = step()
    calls = []
    monkeypatch.setattr(nearest_gpu, '_runs', lambda *_: True)
    kernel = nearest_gpu.nearest

    def recorded(*args, rounded):
        calls.append(rounded)
        return kernel(*args, rounded=rounded, interpret=True)

    monkeypatch.setattr(nearest_gpu, 'nearest', recorded)
    found = step()
    assert set(calls) == {products == 'bfloat16'}
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_takes_codewords_and_not_centroids(monkeypatch):
    monkeypatch.setattr(nearest_gpu, '_runs', lambda *_: True)
    assert nearest_gpu.takes(np.zeros((48, 256, 8)))
    assert not nearest_gpu.takes(np.zeros((1, 1024, 8))) and not nearest_gpu.takes(np.zeros((1, 200, 384)))
    monkeypatch.setattr(nearest_gpu, '_runs', lambda *_: False)
    assert not nearest_gpu.takes(np.zeros((48, 256, 8)))


def test_there_is_none_without_a_gpu():
    assert not nearest_gpu._runs(256, 12)


def test_a_jax_without_triton_does_without_the_kernel(monkeypatch, capsys):
    def gone(*_, **__):
        raise ImportError('no such language')

    monkeypatch.setattr(nearest_gpu, 'nearest', gone)
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    assert not nearest_gpu._runs.__wrapped__(256, 12)
    assert 'without a kernel: no such language' in capsys.readouterr().err


@pytest.mark.parametrize('sizes', [(100, 3, 256, 12), (1, 1, 1, 1), (64, 1, 256, 64)])
@pytest.mark.parametrize('rounded', [True, False])
def test_becomes_triton(sizes, rounded):
    vectors, centers = some(0, *sizes)
    with a_gpu():
        kernel = functools.partial(nearest_gpu.nearest, rounded=rounded)
        traced = jax.jit(kernel).trace(vectors, centers, jnp.sum(jnp.square(centers), axis=-1))
        assert 'triton' in traced.lower(lowering_platforms=('cuda',)).as_text()


def a_gpu():
    """One that is not there; JAX before 0.11 asks for none to write for it."""
    if not hasattr(jax.sharding, 'AbstractDevice'):
        return contextlib.nullcontext()
    try:
        gpu = jax.sharding.AbstractDevice('NVIDIA H100 80GB HBM3', 132, 'gpu')
    except TypeError:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=gpu))
