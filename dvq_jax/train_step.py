"""TrainState, one device's step, and the one place where it is pmapped.

The loss is over the global batch: candidates are gathered across the mapped axis before they are scored, and
losses and gradients are summed over devices and divided by the global count of queries. So the number of
devices changes nothing but the order of floating-point sums.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dvq_jax import candidates, losses
from dvq_jax.codewords import sums
from dvq_jax.optimizer import GROUPS
from dvq_jax.quantizer import Products, Quantized, product, rotate, straight_through
from dvq_jax.types import Array, Batch, IndexParams

AXIS = 'data'


@flax.struct.dataclass
class TrainState:
    """All that a step changes, in natural shapes (no device axis).

    Attributes:
      step: scalar int32, steps done.
      params: 'centroids', 'codebooks', 'rotation' and 'tower'.
      opt_state: of the optimizer.
    """

    step: Any
    params: dict[str, Any]
    opt_state: Any


@dataclasses.dataclass(frozen=True)
class Objective:
    """What a step minimises: Σ terms over the IVF student, and over the PQ student.

    Attributes:
      terms: the losses, from `losses.parse_objective`.
      temperature: divides teacher and student scores.
      ivf_weight: of f(T, S^ivf).
      pq_weight: of f(T, S^pq).
      scale_ivf_to_pq: multiply the IVF loss by the ratio PQ loss / IVF loss, held constant in the gradient,
        so that both weigh the same.
      in_batch: score queries against the documents of the global batch.
      dynamic: re-assign documents to lists at each step; else they stay in their frozen lists.
      estimator: 'hard' or 'softmax', see `quantizer.straight_through`.
      estimator_temperature: of 'softmax'.
      products: of the step's matrix products, see `quantizer.product`.
    """

    terms: tuple[losses.Term, ...]
    temperature: float
    ivf_weight: float
    pq_weight: float
    scale_ivf_to_pq: bool
    in_batch: bool
    dynamic: bool
    estimator: str
    estimator_temperature: float
    products: Products = 'float32'


def index_params(params: dict[str, Any]) -> IndexParams:
    """The index within a parameter tree."""
    return IndexParams(
        centroids=params['centroids'], codebooks=params['codebooks'], rotation=params['rotation']
    )


def init_state(index: IndexParams, tower_params: dict, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step.

    Args:
      index: from `initialize`.
      tower_params: of the query tower.
      optimizer: from `optimizer.build`.

    Returns:
      The state at step 0.
    """
    params = {
        'centroids': jnp.asarray(index.centroids),
        'codebooks': jnp.asarray(index.codebooks),
        'rotation': jnp.asarray(index.rotation),
        'tower': jax.tree.map(jnp.asarray, tower_params),
    }
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params))


def _dots(queries: Array, docs: Array, products: Products) -> Array:
    """Scores: [b, D] and [n, D] to [b, n], or [b, D] and [b, n, D] to [b, n]."""
    if docs.ndim == 2:
        return product(queries, docs.T, products)
    return product(docs, queries[:, :, None], products)[:, :, 0]


def _candidate_set(
    batch: Batch, quantized: Quantized, *, in_batch: bool
) -> tuple[Array, Array, Array, Array]:
    """ids, teacher's documents, coarse and full students of the documents that each query is scored against.

    In-batch, [n, ...] for all queries together; else [b, C, ...], each query's own.
    """
    parts = (batch.doc_ids, batch.docs, quantized.coarse, quantized.full)
    if in_batch:
        return tuple(candidates.pool(part, AXIS) for part in parts)
    return tuple(part.reshape(len(batch.queries), -1, *part.shape[1:]) for part in parts)


def local_loss(
    params: dict[str, Any], batch: Batch, *, tower: nn.Module, objective: Objective
) -> tuple[Array, dict[str, Array]]:
    """This device's share of the global loss, w_ivf·f(T, S^ivf) + w_pq·f(T, S^pq) (eqs. 4 to 6).

    Args:
      params: the parameter tree.
      batch: this device's share of the batch.
      tower: the query tower.
      objective: what to minimise.

    Returns:
      The sum over this device's queries divided by the global count of queries, and metrics: 'ivf_loss' and
      'pq_loss' (shares likewise), 'codewords_used' ([M, K]) and 'list_visits' ([L]), int32 counts.
    """
    index = index_params(params)
    quantized = straight_through(
        index,
        batch.docs,
        None if objective.dynamic else batch.lists,
        estimator=objective.estimator,
        temperature=objective.estimator_temperature,
        products=objective.products,
    )
    ids, docs, coarse, full = _candidate_set(batch, quantized, in_batch=objective.in_batch)
    asked = batch.queries if batch.tokens is None else batch.tokens
    queries = tower.apply({'params': params['tower']}, asked)
    queries = rotate(index, queries, products=objective.products)
    teacher = _dots(batch.queries, docs, objective.products)
    where = jnp.broadcast_to(ids >= 0, teacher.shape)
    positives = candidates.is_positive(ids, batch.positives)
    total_queries = len(batch.queries) * jax.lax.psum(1, AXIS)

    def student_loss(student_docs):
        values = losses.objective(
            objective.terms,
            teacher,
            _dots(queries, student_docs, objective.products),
            positives,
            where=where,
            temperature=objective.temperature,
        )
        return jnp.sum(values) / total_queries

    ivf, pq = student_loss(coarse), student_loss(full)
    ivf_weight = objective.ivf_weight
    if objective.scale_ivf_to_pq:
        whole_ivf, whole_pq = jax.lax.psum(jax.lax.stop_gradient((ivf, pq)), AXIS)
        ivf_weight *= whole_pq / jnp.maximum(whole_ivf, 1e-12)
    real = (batch.doc_ids >= 0).astype(jnp.int32)
    books, words, _ = index.codebooks.shape
    ones = jnp.broadcast_to(real[:, None, None], (len(real), books, 1)).astype(jnp.float32)
    used = sums(quantized.codes, ones, words=words)[..., 0].astype(jnp.int32)
    visits = jnp.zeros(len(index.centroids), jnp.int32).at[quantized.lists].add(real)
    metrics = {'ivf_loss': ivf, 'pq_loss': pq, 'codewords_used': used, 'list_visits': visits}
    return ivf_weight * ivf + objective.pq_weight * pq, metrics


def _summary(metrics: dict[str, Array], loss: Array, grads: dict[str, Any]) -> dict[str, Array]:
    """Scalars to log, from sums over all devices, `grads` of those groups that are trained."""
    visits = metrics['list_visits']
    summary = {
        'loss': loss,
        'ivf_loss': metrics['ivf_loss'],
        'pq_loss': metrics['pq_loss'],
        'codewords_used': jnp.mean((metrics['codewords_used'] > 0).astype(jnp.float32)),
        # Σ n_l² · L / (Σ n_l)²: 1 when the batch's documents spread evenly over the lists.
        'list_imbalance': jnp.sum(jnp.square(visits.astype(jnp.float32)))
        * len(visits)
        / jnp.maximum(jnp.square(jnp.sum(visits).astype(jnp.float32)), 1.0),
    }
    for group, tree in grads.items():
        if jax.tree.leaves(tree):
            summary[f'grad_norm/{group}'] = optax.tree.norm(tree)
    return summary


def _step(
    state: TrainState,
    batch: Batch,
    *,
    tower: nn.Module,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    trained: Collection[str],
) -> tuple[TrainState, dict[str, Array]]:
    loss_fn = functools.partial(local_loss, tower=tower, objective=objective)
    (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, batch)
    loss, metrics, grads = jax.lax.psum((loss, metrics, grads), AXIS)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    summary = _summary(metrics, loss, {group: grads[group] for group in trained})
    return TrainState(step=state.step + 1, params=params, opt_state=opt_state), summary


def put(state: TrainState) -> TrainState:
    """Puts a state where a step leaves its own, so that the step is not compiled again for the second one."""
    place = jax.pmap(lambda state, _: state, axis_name=AXIS, in_axes=(None, 0), out_axes=None)
    return place(state, np.arange(jax.local_device_count()))


def make_train_step(
    *,
    tower: nn.Module,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    trained: Collection[str] = GROUPS,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """The compiled step over all devices.

    Args:
      tower: the query tower.
      optimizer: from `optimizer.build`.
      objective: what to minimise.
      trained: groups that the optimizer does not freeze; gradients of others are not even computed.

    Returns:
      (state, batch) -> (state, metrics). The state has natural shapes and is donated; the batch's arrays
      lead with the local devices; metrics are scalars of the global batch.
    """
    settings = {'tower': tower, 'optimizer': optimizer, 'objective': objective, 'trained': trained}
    step = functools.partial(_step, **settings)
    return jax.pmap(step, axis_name=AXIS, in_axes=(None, 0), out_axes=(None, None), donate_argnums=0)
