"""The training step against the peers' recipe in PyTorch: same batch, same index, same loss.

The peer quantizes as published implementations do, written plainly from the formulas: distances by a
broadcast difference, [docs, M, K, S] values, a softmax of minus the distances, its arg max made one-hot, the
straight-through sum of both, and a product with the codewords; ListNet over the documents of the whole batch;
AdamW. Where JAX has a GPU it runs there too. Batches lie where the steps are; on an accelerator several steps
are timed together, one launched into the other as training does.
"""

import functools
import gc
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from speed_timing import in_turn

from dvq_jax import host, losses, optimizer, towers
from dvq_jax.train_step import Objective, init_state, make_train_step
from dvq_jax.types import Array, Batch, IndexParams

_TEMPERATURE = 0.05
_STEPS = 20  # of an accelerator, that are timed together
_RATES = {'centroids': 0.0125, 'codebooks': 0.01, 'rotation': None, 'tower': None}
LISTS, WORDS = 1024, 256


def make_batch(*, batch_size: int, candidates: int, dim: int, lists: int = LISTS, seed: int = 0) -> Batch:
    """A synthetic batch of unit-norm vectors, documents near their queries, for one device."""
    rng = np.random.default_rng(seed)
    queries = rng.normal(size=(batch_size, dim)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    count = batch_size * candidates
    docs = np.repeat(queries, candidates, axis=0)
    docs += rng.normal(size=(count, dim)).astype(np.float32) / dim**0.5
    docs /= np.linalg.norm(docs, axis=1, keepdims=True)
    batch = Batch(
        queries=queries,
        doc_ids=np.arange(count, dtype=np.int32),
        docs=docs,
        lists=rng.integers(0, lists, count).astype(np.int32),
        positives=np.full((batch_size, 1), -1, np.int32),
    )
    return jax.tree.map(lambda x: x[None], batch)


def make_index(
    *, dim: int, codebooks: int, lists: int = LISTS, codewords: int = WORDS, seed: int = 1
) -> IndexParams:
    """Random centroids and codewords of the right scale."""
    rng = np.random.default_rng(seed)
    scale = 0.7 * dim**-0.5
    return IndexParams(
        centroids=(scale * rng.normal(size=(lists, dim))).astype(np.float32),
        codebooks=(scale * rng.normal(size=(codebooks, codewords, dim // codebooks))).astype(np.float32),
        rotation=np.eye(dim, dtype=np.float32),
    )


def plain_step(
    tower: nn.Module,
    rates: Mapping[str, float | None],
    *,
    estimator: str,
    loss: str = 'listnet',
    products: str = 'float32',
    dynamic: bool = False,
    in_batch: bool = True,
) -> tuple[optax.GradientTransformation, Callable]:
    """The optimizer, and the step with nothing else out of the ordinary."""
    objective = Objective(
        terms=losses.parse_objective(loss),
        temperature=_TEMPERATURE,
        ivf_weight=1.0,
        pq_weight=1.0,
        scale_ivf_to_pq=False,
        in_batch=in_batch,
        dynamic=dynamic,
        estimator=estimator,
        estimator_temperature=1.0,
        products=products,
    )
    adam = optimizer.build(rates, steps=1, schedules=dict.fromkeys(optimizer.GROUPS, 'constant'))
    trained = [group for group, rate in rates.items() if rate]
    return adam, make_train_step(tower=tower, optimizer=adam, objective=objective, trained=trained)


def our_step(
    index: IndexParams, batch: Batch, *, estimator: str, products: str = 'float32'
) -> Callable[[Batch], Array]:
    """Our step; each call takes one on a batch of the given one's shapes and returns its loss, a scalar.

    A first one is taken here: the state that it leaves lies on the devices otherwise than the state that it
    was given, and XLA compiles the step for either.
    """
    adam, step_fn = plain_step(towers.build('identity'), _RATES, estimator=estimator, products=products)
    state = init_state(index, {}, adam)

    def step(batch: Batch) -> Array:
        nonlocal state
        state, metrics = step_fn(state, batch)
        return metrics['loss']

    step(batch)
    return step


def peer_step(index: IndexParams, batch: Batch) -> Callable[[], Any]:
    """The peers' step in PyTorch; each call returns its loss, a scalar."""
    import torch
    from torch.nn import functional

    def put(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.array(array)).to('cpu' if host.is_all_there_is() else 'cuda')

    centroids, codebooks = (torch.nn.Parameter(put(x)) for x in (index.centroids, index.codebooks))
    adam = torch.optim.AdamW([centroids, codebooks], lr=1e-4)
    queries, docs, lists = put(batch.queries[0]), put(batch.docs[0]), put(batch.lists[0]).long()
    books, words, width = codebooks.shape
    teacher = functional.softmax(queries @ docs.T / _TEMPERATURE, dim=-1)

    def listnet(student: torch.Tensor) -> torch.Tensor:
        scores = functional.log_softmax(queries @ student.T / _TEMPERATURE, dim=-1)
        return -(teacher * scores).sum(-1).mean()

    def step() -> torch.Tensor:
        adam.zero_grad(set_to_none=True)
        coarse = centroids[lists]
        parts = (docs - coarse).reshape(-1, books, 1, width)
        soft = functional.softmax(-((parts - codebooks[None]) ** 2).sum(-1), dim=-1)
        hard = functional.one_hot(soft.argmax(-1), words).to(soft.dtype)
        chosen = soft + (hard - soft).detach()
        full = coarse + torch.einsum('nmk,mks->nms', chosen, codebooks).reshape(coarse.shape)
        loss = listnet(coarse) + listnet(full)
        loss.backward()
        adam.step()
        return loss.detach()

    return step


def _seconds(steps: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Of one step of each side."""
    count = 1 if host.is_all_there_is() else _STEPS

    def some(step: Callable[[], Any]) -> Callable[[], float]:
        return lambda: float([step() for _ in range(count)][-1])

    seconds = in_turn({name: some(step) for name, step in steps.items()}, repeats)
    return {name: value / count for name, value in seconds.items()}


def measure(
    *, dims: list[int], books: list[int], candidates: list[int], batch_size: int, repeats: int
) -> list[dict[str, Any]]:
    """Times the step at each size.

    Args:
      dims: D.
      books: M.
      candidates: C, documents that each query brings.
      batch_size: B.
      repeats: of each step.

    Returns:
      A row a size: the sizes, 'seconds' of 'hard', 'softmax' and 'peer', and what the peer takes over each.
    """
    rows = []
    for dim, codebooks, count in itertools.product(dims, books, candidates):
        sizes = {'dim': dim, 'codebooks': codebooks, 'candidates': count, 'batch_size': batch_size}
        sizes |= {'lists': LISTS, 'codewords': WORDS}
        batch = make_batch(batch_size=batch_size, candidates=count, dim=dim)
        index = make_index(dim=dim, codebooks=codebooks)
        steps, there = {}, jax.pmap(lambda x: x)(batch)
        for name in ('hard', 'softmax'):
            steps[name] = functools.partial(our_step(index, there, estimator=name), there)
        steps['peer'] = peer_step(index, batch)
        seconds = _seconds(steps, repeats)
        ratios = {name: seconds['peer'] / seconds[name] for name in ('hard', 'softmax')}
        rows.append({**sizes, 'seconds': seconds, 'peer_over_ours': ratios})
        del steps
        gc.collect()
    return rows


def measure_large(
    *, dim: int, codebooks: int, lists: int, candidates: int, batch_size: int, repeats: int
) -> list[dict[str, Any]]:
    """Times our step by products of float32 and of bfloat16, at a size for which the peers have no room.

    Args:
      dim, codebooks, lists, candidates, batch_size: D, M, L, C, B.
      repeats: of each step.

    Returns:
      One row: the sizes, and 'seconds' of a step by 'float32' and by 'bfloat16' products.
    """
    sizes = {'batch_size': batch_size, 'candidates': candidates, 'dim': dim, 'lists': lists}
    batch = jax.pmap(lambda x: x)(make_batch(**sizes))
    index = make_index(dim=dim, codebooks=codebooks, lists=lists)
    steps = {
        name: functools.partial(our_step(index, batch, estimator='hard', products=name), batch)
        for name in ('float32', 'bfloat16')
    }
    return [{**sizes, 'codebooks': codebooks, 'codewords': WORDS, 'seconds': _seconds(steps, repeats)}]
