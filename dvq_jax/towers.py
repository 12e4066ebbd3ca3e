"""Query towers: the learnable query side, ṽ_q = tower(v_q), as Flax modules.

Every tower gives the teacher's vectors when training starts, so that the index begins at its initial quality.
`is_linear` says of a tower that it is a matrix, whatever its parameters: serving folds it into the rotation.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dvq_jax.errors import InputError
from dvq_jax.progress import Progress
from dvq_jax.types import Array

if TYPE_CHECKING:
    from dvq_jax.huggingface import Encoder


class Identity(nn.Module):
    """ṽ_q = v_q; no parameters."""

    is_linear: ClassVar[bool] = True

    @nn.compact
    def __call__(self, queries: Array) -> Array:
        """Maps queries [..., D] to [..., D]."""
        return queries


class Linear(nn.Module):
    """ṽ_q = W·v_q, W starting at the identity."""

    is_linear: ClassVar[bool] = True

    @nn.compact
    def __call__(self, queries: Array) -> Array:
        """Maps queries [..., D] to [..., D]."""
        dim = queries.shape[-1]
        return nn.Dense(
            dim,
            use_bias=False,
            kernel_init=lambda _key, shape, dtype=jnp.float32: jnp.eye(*shape, dtype=dtype),
            precision=jax.lax.Precision.HIGHEST,
        )(queries)


class Mlp(nn.Module):
    """ṽ_q = v_q + W₂·gelu(W₁·v_q), W₂ starting at zero.

    Attributes:
      hidden: width of the hidden layer.
    """

    is_linear: ClassVar[bool] = False
    hidden: int = 512

    @nn.compact
    def __call__(self, queries: Array) -> Array:
        """Maps queries [..., D] to [..., D]."""
        precision = jax.lax.Precision.HIGHEST
        hidden = nn.gelu(nn.Dense(self.hidden, precision=precision)(queries))
        zeros = nn.initializers.zeros_init()
        return queries + nn.Dense(queries.shape[-1], kernel_init=zeros, precision=precision)(hidden)


TRANSFORMER = 'transformer'  # the text encoder itself, see `huggingface`; reads texts
TOWERS: dict[str, type[nn.Module]] = {'identity': Identity, 'linear': Linear, 'mlp': Mlp}


@dataclasses.dataclass(frozen=True)
class Tower:
    """A trained query tower.

    Attributes:
      name: as `build` takes it.
      args: its hyperparameters.
      params: its parameter tree; empty for the identity.
    """

    name: str = 'identity'
    args: dict[str, Any] = dataclasses.field(default_factory=dict)
    params: dict[str, Any] = dataclasses.field(default_factory=dict)


def reads_text(name: str) -> bool:
    """Whether a tower of that name takes texts instead of embeddings."""
    return name == TRANSFORMER


def settings(args: dict[str, Any]) -> list[tuple[str, Any]]:
    """A tower's hyperparameters, by which it is the same one: without the folder that it came from."""
    return sorted((name, value) for name, value in args.items() if name != 'model')


@functools.cache
def _load(**args: Any) -> 'Encoder':
    from dvq_jax import huggingface

    if not args.get('model'):
        raise InputError('tower.transformer.model is empty; give the folder of the encoder.')
    return huggingface.load(args.pop('model'), **args)


def encoder(tower: 'Tower') -> 'Encoder':
    """A tower that reads text, as an encoder; of its folder's parameters where it has none of its own."""
    opened = _load(**tower.args)
    return dataclasses.replace(opened, params=tower.params or opened.params)


def reader(name: str, args: dict[str, Any]) -> Callable[[Sequence[str]], np.ndarray] | None:
    """What turns texts into a tower's input.

    Args:
      name: the tower's.
      args: its hyperparameters.

    Returns:
      n texts -> [n, T] int32 tokens, -1 pads, T the longest that the encoder takes; None where the tower
      takes embeddings.
    """
    if not reads_text(name):
        return None
    opened = _load(**args)
    longest = opened.tokenizer.truncation['max_length']

    def read(texts: Sequence[str]) -> np.ndarray:
        tokens = np.full((len(texts), longest), -1, np.int32)
        for row, ids in zip(tokens, opened.tokens(texts), strict=True):
            row[: len(ids)] = ids
        return tokens

    return read


def build(name: str, **hyperparameters: Any) -> nn.Module:
    """The tower of that name.

    Args:
      name: one of `TOWERS`, or 'transformer'.
      **hyperparameters: the module's attributes, such as `hidden` of 'mlp'; of 'transformer' `model`, the
        encoder's folder, and what `huggingface.load` takes.

    Returns:
      The module; `module.apply({'params': tree}, queries)` maps [q, D], or tokens [q, T], to [q, D].

    Raises:
      InputError: an unknown name or attribute, or no encoder in the folder.
    """
    if name not in TOWERS and not reads_text(name):
        raise InputError(f'tower {name!r} is unknown; use one of {", ".join((*TOWERS, TRANSFORMER))}.')
    try:
        return _load(**hyperparameters).module if reads_text(name) else TOWERS[name](**hyperparameters)
    except TypeError as error:
        raise InputError(f'tower {name!r} does not take {sorted(hyperparameters)}: {error}.') from error


def initial_params(tower: nn.Module, dim: int, *, seed: int) -> dict:
    """The starting parameters of a tower that takes embeddings.

    Args:
      tower: from `build`.
      dim: D.
      seed: of the random weights.

    Returns:
      The parameter tree; empty for the identity.
    """
    variables = tower.init(jax.random.key(seed), jnp.zeros((1, dim)))
    return dict(variables.get('params', {}))


def apply(tower: Tower, queries: np.ndarray, texts: Sequence[str] | None = None) -> np.ndarray:
    """Passes queries through a trained tower.

    Args:
      tower: the tower.
      queries: [q, D] float.
      texts: q texts, for a tower that reads them.

    Returns:
      [q, D] float32.

    Raises:
      InputError: the tower reads texts, and there are none.
    """
    if reads_text(tower.name):
        if texts is None:
            raise InputError('the query tower reads texts; give --query_ids with a text in each line.')
        from dvq_jax import embed

        progress = Progress('embed', total=len(texts), unit='queries')
        vectors = embed.Embedder(encoder(tower))(texts, progress)
        progress.done()
        return vectors
    module = build(tower.name, **tower.args)
    return np.asarray(module.apply({'params': tower.params}, jnp.asarray(queries, jnp.float32)))
