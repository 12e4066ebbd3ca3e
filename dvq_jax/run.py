"""A run, before it starts: the config checked, and turned into what the training loop works with."""

import dataclasses
import math
import pathlib
from typing import Any

import flax.linen as nn
import jax
import ml_collections
import numpy as np
import optax

from dvq_jax import evaluate, losses, metrics, optimizer, placement, towers
from dvq_jax.candidates import Mixture, parse_mixture
from dvq_jax.columns import Source
from dvq_jax.dataset import Dataset, open_dataset
from dvq_jax.demand import Demand, of_columns, score_spread
from dvq_jax.errors import InputError
from dvq_jax.train_step import Objective, TrainState, init_state
from dvq_jax.types import IndexParams

_INFINITY = float('inf')
# Setting -> smallest and largest value.
_RANGES = {
    'seed': (0, 2**31 - 1),
    'data.batch_size': (1, _INFINITY),
    'data.threads': (1, 256),
    'index.lists': (1, _INFINITY),
    'index.codebooks': (1, _INFINITY),
    'index.codewords': (2, 256),
    'index.copies': (1, 2),
    'routing.rounds': (0, _INFINITY),
    'routing.passes': (0, _INFINITY),
    'codes.queries': (0, _INFINITY),
    'codes.prior': (0, _INFINITY),
    'codes.sweeps': (1, _INFINITY),
    'initialize.sample': (1, _INFINITY),
    'initialize.coarse_iterations': (1, _INFINITY),
    'initialize.opq_iterations': (1, _INFINITY),
    'initialize.pq_iterations': (1, _INFINITY),
    'loss.temperature': (1e-6, _INFINITY),
    'loss.ivf_weight': (0, _INFINITY),
    'loss.pq_weight': (0, _INFINITY),
    'quantizer.temperature': (1e-6, _INFINITY),
    'optimizer.warmup': (0, 1),
    'optimizer.weight_decay': (0, _INFINITY),
    'optimizer.clip_norm': (1e-12, _INFINITY),
    'train.steps': (0, _INFINITY),
    'train.passes': (0, _INFINITY),
    'train.log_every': (1, _INFINITY),
    'train.checkpoint_every': (1, _INFINITY),
    'train.profile': (1, _INFINITY),
    'eval.nprobe': (1, _INFINITY),
}
_CHOICES = {
    'data.placement': placement.PLACEMENTS,
    'index.rotation': ('opq', 'identity'),
    'initialize.seeding': ('sample', 'plusplus'),
    'quantizer.assignment': ('frozen', 'dynamic'),
    'quantizer.estimator': ('hard', 'softmax'),
    'scales': ('relative', 'absolute'),
    'train.products': ('float32', 'bfloat16'),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything about a run that does not change while it trains.

    Attributes:
      config: as given.
      workdir: absolute.
      dataset: opened.
      mixture: which documents a query brings.
      objective: what a step minimises.
      tower: the query tower.
      optimizer: the groups and their schedules.
      steps: that training takes.
      queries: held out, to evaluate checkpoints on.
      examples: the training queries, for batches.
      demand: the training queries, where lists or codes are chosen for them.
      metric: of those, the one that decides which checkpoint is best.
    """

    config: ml_collections.FrozenConfigDict
    workdir: pathlib.Path
    dataset: Dataset
    mixture: Mixture
    objective: Objective
    tower: nn.Module
    optimizer: optax.GradientTransformation
    steps: int
    queries: evaluate.Queries
    examples: Source
    demand: Demand | None
    metric: str

    @property
    def dynamic(self) -> bool:
        """Whether documents are re-assigned to lists at every step."""
        return self.config.quantizer.assignment == 'dynamic'

    @property
    def trained(self) -> tuple[str, ...]:
        """The groups of parameters that have a rate."""
        return tuple(group for group, rate in self.config.optimizer.rates.items() if rate)

    @property
    def routed(self) -> bool:
        """Whether queries decide on lists."""
        return self.config.routing.rounds > 0 or self.config.index.copies > 1


def flatten(tree: dict[str, Any], prefix: str = '') -> dict[str, Any]:
    """A nested config as 'group.field' -> value."""
    flat = {}
    for key, value in tree.items():
        flat |= flatten(value, f'{prefix}{key}.') if isinstance(value, dict) else {prefix + key: value}
    return flat


def tower_of(config: dict[str, Any], params: dict[str, Any] | None = None) -> towers.Tower:
    """A config's query tower, its hyperparameters from the group of the tower's name, and its parameters."""
    name = config['tower']['name']
    return towers.Tower(name, dict(config['tower'].get(name, {})), params or {})


def _check_values(config: ml_collections.ConfigDict) -> None:
    flat = flatten(config.to_dict())
    for name, (low, high) in _RANGES.items():
        value = flat[name]
        if value is not None and not low <= value <= high:
            wanted = f'{low} or more' if high == _INFINITY else f'{low} to {high}'
            raise InputError(f'{name} is {value}; use {wanted}.')
    for name, choices in _CHOICES.items():
        if flat[name] not in choices:
            raise InputError(f'{name} is {flat[name]!r}; use {" or ".join(map(repr, choices))}.')
    size, devices = config.data.batch_size, jax.device_count()
    if size % devices:
        raise InputError(f'data.batch_size is {size}; use a multiple of the {devices} devices.')


def _check_index(config: ml_collections.ConfigDict, dataset: Dataset) -> None:
    index, sample = config.index, min(config.initialize.sample, len(dataset.corpus))
    if dataset.dim % index.codebooks:
        raise InputError(
            f'index.codebooks is {index.codebooks}, which does not divide the dimension {dataset.dim}; '
            f'use a divisor of {dataset.dim}.'
        )
    for name in ('lists', 'codewords'):
        if index[name] > sample:
            raise InputError(
                f'index.{name} is {index[name]}, and k-means has {sample} documents to find them in; '
                'use fewer, raise initialize.sample, or give more documents.'
            )
    if config.quantizer.assignment == 'dynamic' and (config.routing.rounds or index.copies > 1):
        raise InputError(
            "quantizer.assignment is 'dynamic', which puts documents into their nearest list at every step; "
            'set routing.rounds=0 and index.copies=1 with it.'
        )
    if index.copies >= index.lists:
        raise InputError(f'index.copies is {index.copies}; there are {index.lists} lists, use more lists.')
    if config.eval.nprobe > index.lists:
        raise InputError(
            f'eval.nprobe is {config.eval.nprobe}; there are {index.lists} lists, probe at most those.'
        )


def _check_tower(config: ml_collections.ConfigDict, tower: nn.Module, dataset: Dataset) -> None:
    if not towers.reads_text(config.tower.name):
        return
    if not dataset.texts:
        raise InputError(
            f'{dataset.folder}: holds no texts of queries, which tower {config.tower.name!r} reads; prepare '
            'it with --query_texts.'
        )
    if tower.shape.dim != dataset.dim:
        raise InputError(
            f'tower.transformer.model: {config.tower.transformer.model} makes vectors of {tower.shape.dim} '
            f'dimensions, the corpus has {dataset.dim}; give the encoder of its queries.'
        )


def initial_tower(run: Run) -> dict[str, Any]:
    """The query tower's parameters before training."""
    tower = tower_of(run.config.to_dict())
    if towers.reads_text(tower.name):
        return dict(towers.encoder(tower).params)
    return towers.initial_params(run.tower, run.dataset.dim, seed=run.config.seed)


def _objective(config: ml_collections.ConfigDict, mixture: Mixture, dataset: Dataset) -> Objective:
    terms = losses.parse_objective(config.loss.name)
    names = [term.name for term in terms]
    if mixture.top_k > dataset.topk:
        raise InputError(
            f"candidates want the teacher's first {mixture.top_k} documents, {dataset.folder} holds "
            f'{dataset.topk}; ask for fewer, or prepare it with --topk={mixture.top_k}.'
        )
    if not dataset.labelled and ('contrastive' in names or (mixture.ground_truth and not mixture.top_k)):
        raise InputError(
            f'{dataset.folder}: no training query has a relevant document, which candidates '
            f'{config.candidates!r} with loss {config.loss.name!r} need; prepare it with --qrels, or use '
            'top100:16+ib and listnet.'
        )
    if mixture.size == 1 and not mixture.in_batch and names != ['mse']:
        raise InputError(
            f'candidates {config.candidates!r} give each query a single document, which {config.loss.name} '
            "cannot rank; add '+ib', bring more documents, or use mse."
        )
    return Objective(
        terms=terms,
        temperature=config.loss.temperature * (_spread(dataset) if config.scales == 'relative' else 1.0),
        ivf_weight=config.loss.ivf_weight,
        pq_weight=config.loss.pq_weight,
        scale_ivf_to_pq=config.loss.scale_ivf_to_pq,
        in_batch=mixture.in_batch,
        dynamic=config.quantizer.assignment == 'dynamic',
        estimator=config.quantizer.estimator,
        estimator_temperature=config.quantizer.temperature,
        products=config.train.products,
    )


def _steps(config: ml_collections.ConfigDict, dataset: Dataset) -> int:
    if config.train.steps is not None:
        return config.train.steps
    return math.ceil(config.train.passes * len(dataset.train) / config.data.batch_size)


def _spread(dataset: Dataset) -> float:
    return score_spread(dataset.dev.columns().topk_scores)


def _check_metric(name: str, queries: evaluate.Queries, dataset: Dataset) -> str:
    known = evaluate.teacher_metrics(queries)
    known += () if queries.positives is None else metrics.NAMES
    if name not in known:
        without = (
            f' (the dev queries of {dataset.folder} have no labels)' if queries.positives is None else ''
        )
        raise InputError(f'eval.metric is {name!r}; use one of {", ".join(known)}{without}.')
    return name


def open_run(config: ml_collections.ConfigDict, workdir: str) -> Run:
    """Checks a config and opens what it names; writes nothing.

    Args:
      config: as in `configs/default.py`.
      workdir: the run's folder.

    Returns:
      The run.

    Raises:
      InputError: a setting or the dataset cannot be used.
    """
    if not config.data.dataset:
        raise InputError('data.dataset is empty; give --config.data.dataset=FOLDER, written by prepare.')
    _check_values(config)
    mixture = parse_mixture(config.candidates)
    stated = tower_of(config.to_dict())
    tower = towers.build(stated.name, **stated.args)
    dataset = open_dataset(config.data.dataset)
    _check_index(config, dataset)
    if not len(dataset.train):
        raise InputError(f'{dataset.folder}: holds no training queries; prepare it with some.')
    steps = _steps(config, dataset)
    transformation = optimizer.build(
        config.optimizer.rates.to_dict(),
        steps=steps,
        warmup=round(config.optimizer.warmup * steps),
        schedules=config.optimizer.schedules.to_dict(),
        weight_decay=config.optimizer.weight_decay,
        clip_norm=config.optimizer.clip_norm,
        relative=config.scales == 'relative',
    )
    _check_tower(config, tower, dataset)
    queries = evaluate.held_out_queries(dataset)
    objective = _objective(config, mixture, dataset)
    metric = _check_metric(config.eval.metric, queries, dataset)
    examples, wanted = dataset.train, None
    if config.codes.queries or config.routing.rounds or config.index.copies > 1:
        examples = dataset.train.columns()
        wanted = of_columns(examples, len(dataset.corpus))
    return Run(
        config=ml_collections.FrozenConfigDict(config),
        workdir=pathlib.Path(workdir).absolute(),
        dataset=dataset,
        mixture=mixture,
        objective=objective,
        tower=tower,
        optimizer=transformation,
        steps=steps,
        queries=queries,
        examples=examples,
        demand=wanted,
        metric=metric,
    )


def blank_state(run: Run) -> TrainState:
    """A state of the right structure and no particular values, to restore into.

    Args:
      run: the run.

    Returns:
      The state.
    """
    index, dim = run.config.index, run.dataset.dim
    shapes = IndexParams(
        centroids=np.zeros((index.lists, dim), np.float32),
        codebooks=np.zeros((index.codebooks, index.codewords, dim // index.codebooks), np.float32),
        rotation=np.zeros((dim, dim), np.float32),
    )
    return init_state(shapes, initial_tower(run), run.optimizer)
