"""How near `memory.step_bytes` comes to what a compiler plans, for training steps drawn at random.

python benchmarks/step_memory.py --steps=200 --seed=2 --out=docs/results/step_memory.json
python benchmarks/step_memory.py --target=h100 --steps=200 --seed=7 --out=docs/results/step_memory_h100.json

Nothing runs: steps are compiled for forced devices of a CPU, or for accelerators that need not be there
(`absent`), and what a step takes is its arguments, results and all that is in between. Steps of less than
10 MiB do not count, for no device is short of that.
"""

import json
import pathlib

import absent
import performance_tables
from absl import flags
from plans import draw, measure, versions

from dvq_jax import cli, files

_STEPS = flags.DEFINE_integer('steps', 200, 'To draw.')
_SEED = flags.DEFINE_integer('seed', 0, 'Of the draw.')
_TARGET = flags.DEFINE_enum('target', 'cpu', ['cpu', *absent.PLATFORMS], 'Whose compiler.')
_OUT = flags.DEFINE_string('out', 'docs/results/step_memory.json', 'The numbers, JSON.')


def main() -> None:
    """Compiles, stores and prints."""
    path = pathlib.Path(_OUT.value)
    rows = measure(draw(_STEPS.value, seed=_SEED.value), target=_TARGET.value)
    with files.atomic_file(path) as aside:
        stored = {'target': _TARGET.value, 'versions': versions(), 'seed': _SEED.value, 'rows': rows}
        aside.write_text(json.dumps(stored, indent=1) + '\n', encoding='utf-8')
    print(performance_tables.step_memory(stored))


if __name__ == '__main__':
    cli.run(main)
