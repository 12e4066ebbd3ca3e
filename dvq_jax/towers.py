"""Query towers: the learnable query side, ṽ_q = tower(v_q), as Flax modules.

Every tower is the identity when training starts, so that the index begins at its initial quality. `is_linear`
says of a tower that it is a matrix, whatever its parameters: serving folds it into the rotation.
"""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dvq_jax.errors import InputError
from dvq_jax.types import Array


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


def build(name: str, **hyperparameters: Any) -> nn.Module:
    """The tower of that name.

    Args:
      name: one of `TOWERS`.
      **hyperparameters: the module's attributes, such as `hidden` of 'mlp'.

    Returns:
      The module; `module.apply({'params': tree}, queries)` maps [q, D] to [q, D].

    Raises:
      InputError: an unknown name or attribute.
    """
    if name not in TOWERS:
        raise InputError(f'tower {name!r} is unknown; use one of {", ".join(TOWERS)}.')
    try:
        return TOWERS[name](**hyperparameters)
    except TypeError as error:
        raise InputError(f'tower {name!r} does not take {sorted(hyperparameters)}: {error}.') from error


def initial_params(tower: nn.Module, dim: int, *, seed: int) -> dict:
    """A tower's starting parameters.

    Args:
      tower: from `build`.
      dim: D.
      seed: of the random weights.

    Returns:
      The parameter tree; empty for the identity.
    """
    variables = tower.init(jax.random.key(seed), jnp.zeros((1, dim)))
    return dict(variables.get('params', {}))


def apply(tower: Tower, queries: np.ndarray) -> np.ndarray:
    """Passes queries through a trained tower.

    Args:
      tower: the tower.
      queries: [q, D] float.

    Returns:
      [q, D] float32.
    """
    module = build(tower.name, **tower.args)
    return np.asarray(module.apply({'params': tower.params}, jnp.asarray(queries, jnp.float32)))
