"""A BERT encoder as Flax modules: tokens to one vector a text.

The architecture is that of Devlin et al. (2019), post-layer-norm, with absolute positions; MiniLM, BERT,
coCondenser and AR2 checkpoints have it. Weights come from a Hugging Face folder, see `huggingface`.
"""

import dataclasses
import functools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from dvq_jax.types import Array

Pooling = Literal['cls', 'mean', 'max']
ACTIVATIONS = {
    'gelu': functools.partial(nn.gelu, approximate=False),
    'gelu_new': functools.partial(nn.gelu, approximate=True),
    'relu': nn.relu,
}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The sizes of an encoder.

    Attributes:
      words: in the vocabulary.
      positions: that it knows, the longest text in tokens.
      types: of tokens; texts are all of type 0.
      dim: D, of hidden states and of the vector.
      layers: how many.
      heads: of attention, in each layer.
      inner: width of the feed-forward layers.
      activation: one of `ACTIVATIONS`.
      epsilon: of layer norms.
    """

    words: int
    positions: int
    types: int
    dim: int
    layers: int
    heads: int
    inner: int
    activation: str
    epsilon: float


class _Layer(nn.Module):
    """Attention and a feed-forward network, each added to what it gets and normalised."""

    shape: Architecture
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, hidden: Array, real: Array) -> Array:
        """Maps hidden [b, T, D] to [b, T, D]; real [b, T] bool says which tokens are there."""
        shape = self.shape
        dense = functools.partial(nn.Dense, dtype=self.dtype)
        norm = functools.partial(nn.LayerNorm, epsilon=shape.epsilon, dtype=self.dtype)
        heads = (*hidden.shape[:2], shape.heads, shape.dim // shape.heads)
        query, key, value = (dense(shape.dim, name=name)(hidden) for name in ('query', 'key', 'value'))
        mixed = jax.nn.dot_product_attention(
            query.reshape(heads), key.reshape(heads), value.reshape(heads), mask=real[:, None, None, :]
        )
        attended = dense(shape.dim, name='attention_output')(mixed.reshape(hidden.shape))
        hidden = norm(name='attention_norm')(hidden + attended)
        inner = ACTIVATIONS[shape.activation](dense(shape.inner, name='intermediate')(hidden))
        return norm(name='output_norm')(hidden + dense(shape.dim, name='output')(inner))


class Transformer(nn.Module):
    """Texts as tokens to vectors.

    Attributes:
      shape: the sizes.
      pooling: how hidden states become one vector: 'cls', the first token's; 'mean' or 'max' over all.
      normalize: to unit norm.
      dtype: of the arithmetic, float32 or bfloat16; parameters are float32.
      remat: compute hidden states once more in the backward pass instead of keeping them.
    """

    shape: Architecture
    pooling: Pooling = 'cls'
    normalize: bool = False
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        """Maps tokens [b, T] int32, -1 pads at the end, to [b, D] float32."""
        # Accelerators round float32 products unless they are told not to.
        precision = 'highest' if self.dtype == jnp.float32 else 'default'
        with jax.default_matmul_precision(precision):
            return self._pool(self._states(tokens), tokens >= 0)

    def _states(self, tokens: Array) -> Array:
        shape, real = self.shape, tokens >= 0
        embed = functools.partial(nn.Embed, features=shape.dim)
        hidden = embed(shape.words, name='words')(jnp.maximum(tokens, 0))
        hidden += embed(shape.positions, name='positions')(jnp.arange(tokens.shape[1]))
        hidden += embed(shape.types, name='types')(jnp.zeros((), jnp.int32))
        hidden = nn.LayerNorm(epsilon=shape.epsilon, dtype=self.dtype, name='norm')(hidden)
        layer = nn.remat(_Layer) if self.remat else _Layer
        for number in range(shape.layers):
            hidden = layer(shape, self.dtype, name=f'layer_{number}')(hidden, real)
        return hidden.astype(jnp.float32)

    def _pool(self, hidden: Array, real: Array) -> Array:
        if self.pooling == 'cls':
            vectors = hidden[:, 0]
        elif self.pooling == 'max':
            vectors = jnp.max(jnp.where(real[..., None], hidden, -jnp.inf), axis=1)
        else:
            count = jnp.maximum(jnp.sum(real, axis=1, keepdims=True), 1)
            vectors = jnp.sum(jnp.where(real[..., None], hidden, 0), axis=1) / count
        if self.normalize:
            vectors /= jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
        return vectors
