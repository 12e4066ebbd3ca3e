"""What a TPU's compiler plans for the functions that do the work, at the size of MS MARCO; no TPU is needed.

pip install libtpu
python benchmarks/compiled.py --out=docs/results/compiled.json

They are compiled ahead of time for v5e, 16 GiB a chip, and nothing runs. Memory is arguments, results and
what is in between; of a step it is held against `memory.step_bytes`.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')  # do not look for a TPU's host

import jax
import jax.numpy as jnp
from absl import flags
from jax.experimental import topologies
from speed_step import plain_step

from dvq_jax import cli, corpus, encode, files, host, memory, points, towers
from dvq_jax.train_step import init_state
from dvq_jax.types import Batch, IndexParams

_OUT = flags.DEFINE_string('out', 'docs/results/compiled.json', 'The numbers, JSON.')
_ONLY = flags.DEFINE_string('only', '', 'Functions whose names hold this.')

_TOPOLOGY = 'v5e:2x2'
_B, _C, _D, _L, _M, _K = 128, 200, 768, 10_000, 64, 256
_QUERIES = 502_939  # that MS MARCO trains with
_BLOCK = 8192  # documents, of passes over a corpus
_WIDTH = 64  # queries that codes are chosen for


_pmap = jax.pmap


def _shape(*shape: int, kind: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, kind)


def _index(*devices: int) -> IndexParams:
    return IndexParams(
        centroids=_shape(*devices, _L, _D),
        codebooks=_shape(*devices, _M, _K, _D // _M),
        rotation=_shape(*devices, _D, _D),
    )


def _step(devices: int, *, estimator: str, products: str, dynamic: bool) -> tuple[Callable, tuple, int]:
    """The training step, what it takes, and the memory that the formula says."""
    b, ints = _B // devices, {'kind': jnp.int32}
    batch = Batch(
        queries=_shape(devices, b, _D),
        doc_ids=_shape(devices, b, _C, **ints),
        docs=_shape(devices, b, _C, _D),
        lists=_shape(devices, b, _C, **ints),
        positives=_shape(devices, b, 1, **ints),
    )
    rates = {'centroids': 1e-2, 'codebooks': 1e-2, 'rotation': None, 'tower': 1e-4}
    tower = towers.build('linear')
    adam, step = plain_step(tower, rates, estimator=estimator, products=products, dynamic=dynamic)
    params = jax.eval_shape(lambda: towers.initial_params(tower, _D, seed=0))
    state = jax.eval_shape(lambda index, tree: init_state(index, tree, adam), _index(), params)
    shape = {'batch_size': _B, 'candidates': _C, 'dim': _D, 'lists': _L, 'codewords': _K}
    said = memory.step_bytes(
        **shape, devices=devices, estimator=estimator, dynamic=dynamic, tower_parameters=_D * _D
    )
    return step, (state, batch), said


def _passes(devices: int) -> Iterator[tuple[str, Callable, tuple]]:
    """What goes over a corpus or a sample, by name, and what it takes."""
    ints = {'kind': jnp.int32}
    docs = _shape(devices, _BLOCK, _D, kind=jnp.float16)
    lists, index, width = _shape(devices, _BLOCK, **ints), _index(devices), _D // _M
    yield 'assign', corpus._on_devices(corpus._assign_block), ((index,), (docs, None))
    yield 'encode', encode._compiled('encode'), (index, docs, None)
    products = _shape(devices, _M, _K, width * (width + 1) // 2)
    table = _shape(devices, -(-(_QUERIES + 1) // 8) * 8, _D)
    wanted = (_shape(devices, _BLOCK, _WIDTH, **ints), *[_shape(devices, _BLOCK, _WIDTH)] * 2)
    chosen = (index, products, table, _shape(), _shape(**ints), docs, lists, wanted)
    yield 'choose codes', encode._compiled('choose'), chosen
    sample = (devices, 8 // devices, 32, 1024)
    spread = points.DevicePoints(_shape(*sample, _D), _shape(*sample))
    yield 'k-means iteration', points._lloyd_sums, (spread, _shape(1, _L, _D))
    yield 'PQ iteration', points._lloyd_sums, (spread, _shape(_M, _K, width))
    yield 'OPQ moment', points._moment, (spread, _shape(_M, _K, width))


def _plan(name: str, devices: int, function: Callable, args: tuple) -> dict[str, Any]:
    begin = time.perf_counter()
    found = function.lower(*args).compile().memory_analysis()
    size = found.argument_size_in_bytes + found.output_size_in_bytes
    size += found.temp_size_in_bytes - found.alias_size_in_bytes
    row = {'name': name, 'devices': devices, 'bytes': size, 'seconds': round(time.perf_counter() - begin, 1)}
    print(row, file=sys.stderr, flush=True)
    return row


def _map_over(devices: int) -> None:
    """Lets all that is mapped from now on be mapped over so many chips that are not there."""
    chips = topologies.get_topology_desc(platform='tpu', topology_name=_TOPOLOGY).devices[:devices]
    jax.pmap = lambda function, **settings: _pmap(function, **{**settings, 'devices': chips})
    importlib.reload(points)  # which maps its functions as it is imported
    for mapped in (encode._compiled, corpus._on_devices):
        mapped.cache_clear()


def measure(only: str = '') -> list[dict[str, Any]]:
    """Compiles all of them, for one chip and for four.

    Args:
      only: what their names hold.

    Returns:
      A row each: 'name', 'devices', 'bytes' of memory on each, 'seconds' of compilation, and of a step what
      the formula says, 'predicted'.
    """
    rows = []
    for devices in (1, 4):
        _map_over(devices)
        for estimator, products, dynamic in (
            ('hard', 'float32', False),
            ('hard', 'bfloat16', False),
            ('hard', 'float32', True),
            ('softmax', 'float32', False),
            ('softmax', 'float32', True),
        ):
            name = f'step, {estimator}, {products}{", dynamic" if dynamic else ""}'
            if only in name:
                step, args, said = _step(devices, estimator=estimator, products=products, dynamic=dynamic)
                rows.append({**_plan(name, devices, step, args), 'predicted': said})
        rows += [_plan(name, devices, *given) for name, *given in _passes(devices) if only in name]
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown.

    Args:
      rows: of `measure`.

    Returns:
      A table.
    """
    lines = ['| function | chips | memory of each, GiB | formula, GiB |', '|---|---:|---:|---:|']
    for row in rows:
        said = f'{row["predicted"] / 2**30:.2f}' if 'predicted' in row else ''
        lines.append(f'| {row["name"]} | {row["devices"]} | {row["bytes"] / 2**30:.2f} | {said} |')
    return '\n'.join(lines)


def main() -> None:
    """Compiles, stores and prints."""
    path = files.check_output(_OUT.value)
    with mock.patch.object(host, 'is_all_there_is', return_value=False):  # blocks as on accelerators
        rows = measure(_ONLY.value)
    versions = {name: __import__(name).__version__ for name in ('jax', 'jaxlib')}
    with files.atomic_file(path) as aside:
        stored = {'topology': _TOPOLOGY, 'versions': versions, 'rows': rows}
        aside.write_text(json.dumps(stored, indent=1) + '\n', encoding='utf-8')
    print(table(rows))


if __name__ == '__main__':
    cli.run(main)
