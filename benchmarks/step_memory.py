"""How near `memory.step_bytes` comes to what a compiler plans, for training steps drawn at random.

python benchmarks/step_memory.py --steps=200 --out=docs/results/step_memory.json

Nothing runs: steps are compiled for forced devices of a CPU, and what a step takes is its arguments, results
and all that is in between. Steps of less than 10 MiB do not count, for no device is short of that.
"""

import json
import pathlib
from typing import Any

import numpy as np
import performance_tables
from absl import flags
from plans import Shape, measure

from dvq_jax import cli, files, losses, optimizer

_STEPS = flags.DEFINE_integer('steps', 200, 'To draw.')
_SEED = flags.DEFINE_integer('seed', 0, 'Of the draw.')
_OUT = flags.DEFINE_string('out', 'docs/results/step_memory.json', 'The numbers, JSON.')

_SUMS = ('listnet+contrastive', 'listnet+ranknet', 'mse+kl', 'kl+contrastive', 'mse+margin_mse')


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


def main() -> None:
    """Compiles, stores and prints."""
    path = pathlib.Path(_OUT.value)
    rows = measure(draw(_STEPS.value, seed=_SEED.value))
    versions = {name: __import__(name).__version__ for name in ('jax', 'jaxlib')}
    with files.atomic_file(path) as aside:
        stored = {'versions': versions, 'seed': _SEED.value, 'rows': rows}
        aside.write_text(json.dumps(stored, indent=1) + '\n', encoding='utf-8')
    print(performance_tables.step_memory(stored))


if __name__ == '__main__':
    cli.run(main)
