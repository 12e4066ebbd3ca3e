"""Training steps of any shape that are compiled and do not run, and the memory that the compiler plans."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import absent
import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from processes import apart
from speed_step import plain_step

from dvq_jax import losses, memory, optimizer, towers
from dvq_jax.train_step import init_state
from dvq_jax.transformer import Architecture, Transformer
from dvq_jax.types import Batch, IndexParams

_POSITIVES = 64  # that a query has at most
_RATE = 1e-3
_SUMS = ('listnet+contrastive', 'listnet+ranknet', 'mse+kl', 'kl+contrastive', 'mse+margin_mse')


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A text encoder that is trained as the query tower.

    Attributes:
      layers, heads: of it.
      inner: width of its feed-forward layers.
      length: tokens of a query.
    """

    layers: int
    heads: int
    inner: int
    length: int


@dataclasses.dataclass(frozen=True)
class Shape:
    """A training step, by what its memory depends on.

    Attributes:
      batch_size, candidates, dim, lists, codebooks, codewords: B, C, D, L, M, K.
      loss: as `losses.parse_objective` takes it.
      estimator, dynamic, in_batch, products: as a config has them.
      devices: that share the batch.
      tower: its name.
      trained: groups that are not frozen.
      encoder: that is the tower instead.
    """

    batch_size: int
    candidates: int
    dim: int
    lists: int
    codebooks: int
    codewords: int
    loss: str = 'listnet'
    estimator: str = 'hard'
    dynamic: bool = False
    in_batch: bool = True
    products: str = 'float32'
    devices: int = 1
    tower: str = 'linear'
    trained: tuple[str, ...] = ('centroids', 'codebooks', 'tower')
    encoder: Encoder | None = None


def _tower(shape: Shape) -> tuple[Any, tuple[int, ...], int]:
    """The query tower, the shape of a query's tokens, and the floats that it holds in between."""
    if not shape.encoder:
        return towers.build(shape.tower), (), 0
    about = dataclasses.asdict(shape.encoder)
    length = about.pop('length')
    architecture = Architecture(
        words=30_522, positions=512, types=2, dim=shape.dim, activation='gelu', epsilon=1e-12, **about
    )
    queries = shape.batch_size // shape.devices
    floats = memory.encoder_floats(architecture, queries=queries, length=length)
    return Transformer(architecture, pooling='mean', normalize=True), (length,), floats


def build(shape: Shape, *, platform: str = 'cpu') -> tuple[Callable, tuple, int]:
    """A step that takes shapes alone.

    Args:
      shape: of the step.
      platform: that `memory.step_bytes` is asked about.

    Returns:
      The step by `jax.pmap`, the state and the batch that it takes, and the bytes of `memory.step_bytes`.
    """
    queries = (shape.devices, shape.batch_size // shape.devices)
    docs, dim = (shape.devices, queries[1] * shape.candidates), shape.dim
    floats, ints = (functools.partial(jax.ShapeDtypeStruct, dtype=kind) for kind in (jnp.float32, jnp.int32))
    tower, tokens, held = _tower(shape)
    batch = Batch(
        queries=floats((*queries, dim)),
        doc_ids=ints(docs),
        docs=floats((*docs, dim)),
        lists=ints(docs),
        positives=ints((*queries, _POSITIVES)),
        tokens=ints((*queries, *tokens)) if tokens else None,
    )
    index = IndexParams(
        centroids=floats((shape.lists, dim)),
        codebooks=floats((shape.codebooks, shape.codewords, dim // shape.codebooks)),
        rotation=floats((dim, dim)),
    )
    one = np.zeros((1, *(tokens or (dim,))), np.int32 if tokens else np.float32)
    params = jax.eval_shape(lambda: tower.init(jax.random.key(0), one)).get('params', {})
    adam, step = plain_step(
        tower,
        {group: _RATE if group in shape.trained else None for group in optimizer.GROUPS},
        loss=shape.loss,
        estimator=shape.estimator,
        dynamic=shape.dynamic,
        products=shape.products,
        in_batch=shape.in_batch,
    )
    state = jax.eval_shape(lambda index, tree: init_state(index, tree, adam), index, params)
    shared = {field.name for field in dataclasses.fields(memory.Step)}
    about = {name: value for name, value in vars(shape).items() if name in shared}
    said = memory.Step(
        **about,
        terms=losses.parse_objective(shape.loss),
        tower_parameters=sum(x.size for x in jax.tree.leaves(params)),
        tower_floats=held,
    )
    return step, (state, batch), memory.step_bytes(said, platform=platform)


def planned(function: Callable, args: tuple) -> int:
    """Bytes of a device that the compiler plans for a mapped function: what it takes, returns and holds."""
    plan = function.lower(*args).compile().memory_analysis()
    size = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
    return size + plan.temp_size_in_bytes


def _compiled(shapes: list[Shape], target: str) -> list[dict[str, Any]]:
    """Of so many devices, in a process of its own, which has them or makes believe that it has."""
    if target != 'cpu':
        absent.map_over(target, shapes[0].devices)
    rows = []
    for shape in shapes:
        step, args, said = build(shape, platform=absent.PLATFORMS.get(target, target))
        rows.append({**dataclasses.asdict(shape), 'predicted': said, 'planned': planned(step, args)})
    return rows


def versions() -> dict[str, str]:
    """Of whose compiler it is."""
    return {'jax': jax.__version__, 'jaxlib': jaxlib.__version__}


def measure(shapes: Iterable[Shape], *, target: str = 'cpu') -> list[dict[str, Any]]:
    """Compiles steps, those of each number of devices in a process that has so many.

    Args:
      shapes: of the steps.
      target: 'cpu', or an accelerator that need not be there, one of `absent.PLATFORMS`.

    Returns:
      A row a step, those of a number of devices together: its shape, and a device's bytes, 'predicted' and
      'planned'.
    """
    by_devices: dict[int, list[Shape]] = {}
    for shape in shapes:
        by_devices.setdefault(shape.devices, []).append(shape)
    rows = []
    for count, some in by_devices.items():
        forced = {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': f'--xla_force_host_platform_device_count={count}'}
        rows += apart(functools.partial(_compiled, some, target), environment=forced)
    return rows


def draw(count: int, *, seed: int) -> list[Shape]:
    """Steps as configs may ask for them.

    Args:
      count: how many.
      seed: of the draw.

    Returns:
      Steps of B 64 to 512, C 8 to 200, D 64 to 768, M 16 to 96, L 64 to 10 000, 1 to 8 devices, every loss
      and some sums.
    """
    rng, shapes = np.random.default_rng(seed), []

    def one_of(*values: Any) -> Any:
        return values[rng.integers(len(values))]

    while len(shapes) < count:
        shape = Shape(
            batch_size=one_of(64, 96, 128, 200, 256, 512),
            candidates=one_of(8, 12, 16, 24, 32, 64, 100, 150, 200),
            dim=one_of(64, 96, 128, 256, 384, 512, 768),
            lists=one_of(64, 256, 512, 1024, 2048, 4096, 10_000),
            codebooks=one_of(16, 24, 32, 48, 64, 96),
            codewords=one_of(16, 256),
            loss=one_of(*['listnet'] * 4, *losses.NAMES, *_SUMS),
            estimator=one_of('hard', 'softmax'),
            dynamic=one_of(True, False),
            in_batch=one_of(True, True, False),
            devices=one_of(1, 1, 1, 2, 4, 8),
            tower=one_of('linear', 'linear', 'identity', 'mlp'),
            trained=one_of(*[Shape.trained] * 3, optimizer.GROUPS),
        )
        if shape.dim % shape.codebooks == shape.batch_size % shape.devices == 0:
            shapes.append(shape)
    return shapes
