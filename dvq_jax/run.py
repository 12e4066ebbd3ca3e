"""A run, before it starts: the config checked, and turned into what the training loop works with."""

import dataclasses
import pathlib

import flax.linen as nn
import ml_collections
import numpy as np
import optax

from dvq_jax import evaluate, losses, metrics, optimizer, towers
from dvq_jax.candidates import Mixture, parse_mixture
from dvq_jax.dataset import Dataset, open_dataset
from dvq_jax.errors import InputError
from dvq_jax.train_step import Objective, TrainState, init_state
from dvq_jax.types import IndexParams


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
      queries: held out, to evaluate checkpoints on.
      metric: of those, the one that decides which checkpoint is best.
    """

    config: ml_collections.FrozenConfigDict
    workdir: pathlib.Path
    dataset: Dataset
    mixture: Mixture
    objective: Objective
    tower: nn.Module
    optimizer: optax.GradientTransformation
    queries: evaluate.Queries
    metric: str

    @property
    def dynamic(self) -> bool:
        """Whether documents are re-assigned to lists at every step."""
        return self.config.quantizer.assignment == 'dynamic'


def _objective(config: ml_collections.ConfigDict, mixture: Mixture) -> Objective:
    if config.quantizer.assignment not in ('frozen', 'dynamic'):
        raise InputError(
            f"quantizer.assignment is {config.quantizer.assignment!r}; use 'frozen' or 'dynamic'."
        )
    if config.quantizer.estimator not in ('hard', 'softmax'):
        raise InputError(f"quantizer.estimator is {config.quantizer.estimator!r}; use 'hard' or 'softmax'.")
    if config.loss.temperature <= 0:
        raise InputError(f'loss.temperature is {config.loss.temperature}; use a positive number.')
    terms = losses.parse_objective(config.loss.name)
    if mixture.size == 1 and not mixture.in_batch and [term.name for term in terms] != ['mse']:
        raise InputError(
            f'candidates {config.candidates!r} give each query a single document, which {config.loss.name} '
            "cannot rank; add '+ib', bring more documents, or use mse."
        )
    return Objective(
        terms=terms,
        temperature=config.loss.temperature,
        ivf_weight=config.loss.ivf_weight,
        pq_weight=config.loss.pq_weight,
        scale_ivf_to_pq=config.loss.scale_ivf_to_pq,
        in_batch=mixture.in_batch,
        dynamic=config.quantizer.assignment == 'dynamic',
        estimator=config.quantizer.estimator,
        estimator_temperature=config.quantizer.temperature,
    )


def _check_metric(name: str, queries: evaluate.Queries, dataset: Dataset) -> str:
    known = evaluate.TEACHER_METRICS + (() if queries.positives is None else metrics.NAMES)
    if name not in known:
        without = (
            ''
            if queries.positives is not None
            else f', for the dev queries of {dataset.folder} have no labels'
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
    mixture = parse_mixture(config.candidates)
    objective = _objective(config, mixture)
    tower = towers.build(config.tower.name, **config.tower.args)
    transformation = optimizer.build(
        config.optimizer.rates.to_dict(),
        steps=config.train.steps,
        warmup=config.optimizer.warmup,
        schedule_name=config.optimizer.schedule,
        weight_decay=config.optimizer.weight_decay,
        clip_norm=config.optimizer.clip_norm,
    )
    dataset = open_dataset(config.data.dataset)
    queries = evaluate.held_out_queries(dataset)
    return Run(
        config=ml_collections.FrozenConfigDict(config),
        workdir=pathlib.Path(workdir).absolute(),
        dataset=dataset,
        mixture=mixture,
        objective=objective,
        tower=tower,
        optimizer=transformation,
        queries=queries,
        metric=_check_metric(config.eval.metric, queries, dataset),
    )


def blank_state(run: Run) -> TrainState:
    """A state of the right structure and no particular values, to restore into.

    Args:
      run: the run.

    Returns:
      The state.

    Raises:
      InputError: M does not divide D.
    """
    index, dim = run.config.index, run.dataset.dim
    if index.codebooks < 1 or dim % index.codebooks:
        raise InputError(
            f'index.codebooks is {index.codebooks}, which does not divide the dimension {dim}; '
            f'use a divisor of {dim}.'
        )
    shapes = IndexParams(
        centroids=np.zeros((index.lists, dim), np.float32),
        codebooks=np.zeros((index.codebooks, index.codewords, dim // index.codebooks), np.float32),
        rotation=np.zeros((dim, dim), np.float32),
    )
    return init_state(shapes, towers.initial_params(run.tower, dim, seed=run.config.seed), run.optimizer)
