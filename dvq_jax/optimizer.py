"""Optax groups and schedules: centroids, codebooks, rotation and query tower, each at its own rate.

A group without a rate is frozen, and every parameter belongs to exactly one group. Rates of centroids and
codebooks are relative if nothing else is said: a step of rate r moves a coordinate by about r times the root
mean square of the array, so they fit embeddings of any dimension and norm. The rotation stays orthogonal, for
each of its updates ends on the orthogonal matrices.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dvq_jax.errors import InputError
from dvq_jax.types import Array

GROUPS = ('centroids', 'codebooks', 'rotation', 'tower')
SCHEDULES = ('constant', 'cosine', 'linear')
_POLAR_STEPS = 8


def schedule(name: str, rate: float, *, steps: int, warmup: int) -> optax.Schedule:
    """A learning rate over the steps of a run.

    Args:
      name: 'constant', or 'cosine' or 'linear' down to 0 at the last step.
      rate: the peak.
      steps: of the whole run, warm-up included.
      warmup: steps of linear rise from 0.

    Returns:
      step -> rate.

    Raises:
      InputError: an unknown name.
    """
    rest = max(steps - warmup, 1)
    decays = {
        'constant': optax.constant_schedule(rate),
        'cosine': optax.cosine_decay_schedule(rate, rest),
        'linear': optax.linear_schedule(rate, 0.0, rest),
    }
    if name not in decays:
        raise InputError(f'schedule {name!r} is unknown; use one of {", ".join(SCHEDULES)}.')
    return optax.join_schedules([optax.linear_schedule(0.0, rate, max(warmup, 1)), decays[name]], [warmup])


def nearest_orthogonal(matrix: Array) -> Array:
    """The orthogonal polar factor of a nearly orthogonal matrix, by Newton and Schulz's iteration.

    X ← X·(3I − XᵀX)/2; products only, so it runs where the step runs.

    Args:
      matrix: [D, D] float32 with singular values in (0, √3).

    Returns:
      [D, D] float32.
    """
    eye = jnp.eye(matrix.shape[-1], dtype=matrix.dtype)
    precision = jax.lax.Precision.HIGHEST
    for _ in range(_POLAR_STEPS):
        gram = jnp.matmul(matrix.T, matrix, precision=precision)
        matrix = jnp.matmul(matrix, 1.5 * eye - 0.5 * gram, precision=precision)
    return matrix


def keep_orthogonal() -> optax.GradientTransformation:
    """Replaces an update U of an orthogonal matrix R by polar(R + U) − R."""

    def update(updates, state, params):
        return jax.tree.map(lambda u, r: nearest_orthogonal(r + u) - r, updates, params), state

    return optax.GradientTransformation(lambda _params: optax.EmptyState(), update)


def label(params: Mapping[str, Any]) -> dict[str, Any]:
    """Names the group of every parameter.

    Args:
      params: the tree with the top-level keys 'centroids', 'codebooks', 'rotation', 'tower'.

    Returns:
      The same tree with a group's name at each leaf.

    Raises:
      ValueError: a parameter that no group covers.
    """
    unknown = set(params) - set(GROUPS)
    if unknown:
        raise ValueError(f'no optimizer group covers {sorted(unknown)}; groups are {GROUPS}.')
    return {group: jax.tree.map(lambda _leaf, group=group: group, tree) for group, tree in params.items()}


def build(
    rates: Mapping[str, float | None],
    *,
    steps: int,
    schedules: Mapping[str, str],
    warmup: int = 0,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
    relative: bool = True,
) -> optax.GradientTransformation:
    """AdamW for each group at its own rate and schedule; groups without a rate are frozen.

    Args:
      rates: peak learning rate of each of `GROUPS`; None or 0 freezes.
      steps: of the whole run.
      schedules: name of each group's schedule, see `schedule`.
      warmup: steps of linear rise.
      weight_decay: of the query tower; centroids, codebooks and rotation are not shrunk towards 0.
      clip_norm: largest norm of the gradients of all groups that are trained; None does not clip.
      relative: rates of centroids and codebooks are relative to the array's root mean square.

    Returns:
      The transformation.

    Raises:
      InputError: a group that is missing or unknown, a rate below 0, an unknown schedule.
    """
    for what, given in (('learning rates', rates), ('schedules', schedules)):
        if set(given) != set(GROUPS):
            raise InputError(f'{what} are given for {sorted(given)}; give one for each of {GROUPS}.')

    def group(name: str) -> optax.GradientTransformation:
        rate = rates[name]
        if not rate:
            return optax.set_to_zero()
        if rate < 0:
            raise InputError(f'the learning rate of {name} is {rate}; use a positive one, or None to freeze.')
        decay = weight_decay if name == 'tower' else 0.0
        adam = optax.adamw(schedule(schedules[name], rate, steps=steps, warmup=warmup), weight_decay=decay)
        if name == 'rotation':
            return optax.chain(adam, keep_orthogonal())
        if name == 'tower' or not relative:
            return adam
        return optax.chain(adam, optax.scale_by_param_block_rms(min_scale=1e-12))

    grouped = optax.multi_transform({name: group(name) for name in GROUPS}, label)
    if clip_norm is None:
        return grouped
    thaw = {name: optax.identity() if rates[name] else optax.set_to_zero() for name in GROUPS}
    return optax.chain(optax.multi_transform(thaw, label), optax.clip_by_global_norm(clip_norm), grouped)
