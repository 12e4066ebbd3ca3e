"""What compilers plan for the functions that do the work, at the size of MS MARCO; no accelerator is needed.

python benchmarks/compiled.py --target=v5e --out=docs/results/compiled.json
python benchmarks/compiled.py --target=h100 --out=docs/results/compiled_h100.json

They are compiled ahead of time for a TPU v5e, 16 GiB a chip, or an H100, 80 GB, and nothing runs (`absent`).
Memory is arguments, results and what is in between; of a step it is held against `memory.step_bytes`.
"""

import functools
import importlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import absent
import jax
import jax.numpy as jnp
import optax
import performance_tables
import plans
from absl import flags

from dvq_jax import (
    blocks,
    cli,
    corpus,
    device_screen,
    encode,
    exact,
    files,
    placement,
    points,
    routing,
    screened,
    stream,
    teacher,
)
from dvq_jax.types import IndexParams

_OUT = flags.DEFINE_string('out', 'docs/results/compiled.json', 'The numbers, JSON.')
_TARGET = flags.DEFINE_enum('target', 'v5e', list(absent.PLATFORMS), 'For what.')
_ONLY = flags.DEFINE_string('only', '', 'Functions whose names hold this.')

# As in types.py; MS MARCO has N passages and trains with Q queries.
_B, _C, _D, _L, _M, _K, _N, _Q = 128, 200, 768, 10_000, 64, 256, 8_841_823, 502_939
_P = 10  # lists that routing means to be probed
_WIDTH = 64  # queries that a document's codes are chosen for
_TOP = 200  # documents that are mined for a query
_KEPT = 2**22  # documents that are kept, of mining
_SAMPLE = 8, 32, 1024  # shards, blocks and rows of what k-means learns from


def _shape(*shape: int, kind: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, kind)


def _index(*devices: int) -> IndexParams:
    return IndexParams(
        centroids=_shape(*devices, _L, _D),
        codebooks=_shape(*devices, _M, _K, _D // _M),
        rotation=_shape(*devices, _D, _D),
    )


def _steps(devices: int) -> Iterator[tuple[str, Callable, tuple, int]]:
    """The training steps, by name, what each takes, and the memory that the formula says."""
    sizes = {'batch_size': _B, 'candidates': _C, 'dim': _D, 'lists': _L, 'codebooks': _M, 'codewords': _K}
    for estimator, products, dynamic in (
        ('hard', 'float32', False),
        ('hard', 'bfloat16', False),
        ('hard', 'float32', True),
        ('softmax', 'float32', False),
        ('softmax', 'float32', True),
    ):
        ways = {'estimator': estimator, 'products': products, 'dynamic': dynamic}
        name = f'step, {estimator}, {products}{", dynamic" if dynamic else ""}'
        shape = plans.Shape(**sizes, **ways, devices=devices)
        yield name, *plans.build(shape, platform=absent.PLATFORMS[_TARGET.value])


def _mining(devices: int) -> Iterator[tuple[str, Callable, tuple]]:
    """A block of documents against a block of queries, by name, and what it takes."""
    most, ints = blocks.even(_Q, teacher.QUERY_BLOCK), {'kind': jnp.int32}
    width = stream.width_of(_N, screened.largest_block(_N, _TOP, teacher.CORPUS_BLOCK))
    queries = _tiles(most, exact._TILE, devices)
    merge = functools.partial(exact._merge_tiles, group=exact.group_of(width, _TOP), total=_N)
    merge = jax.pmap(merge, in_axes=(0, 0, 0, 0, None), donate_argnums=(0, 1))
    best = _shape(*queries, _TOP), _shape(*queries, _TOP, **ints)
    yield 'mining, float32', merge, (*best, _shape(*queries, _D), _shape(devices, width, _D), _shape(**ints))

    wide = screened._kept_on_devices(_N, _TOP)
    queries = _tiles(most, blocks.even(most, device_screen._TILE, multiple=devices), devices)
    places = wide + device_screen._PLACES * device_screen._FEWEST
    add = functools.partial(device_screen._add, each=device_screen._FEWEST, first=wide, total=_N)
    add = jax.pmap(add, in_axes=(0, 0, 0, 0, None, None), donate_argnums=0)
    kept = _shape(*queries, places), _shape(*queries, places, **ints), _shape(*queries), _shape(devices, 2)
    coarse, docs = (_shape(*rows, _D, kind=jnp.bfloat16) for rows in (queries, (devices, width)))
    given = device_screen._State(*kept), coarse, docs, _shape(devices, 2)
    yield 'mining, bfloat16', add, (*given, _shape(**ints), _shape(**ints))

    found = device_screen.Chosen(
        queries=_shape(devices, most // devices, _D),
        ids=_shape(devices, most // devices, wide, **ints),
        products=_shape(devices, most // devices, wide),
        dropped=_shape(devices, most // devices),
        error=_shape(devices, most // devices),
    )
    ranked = jax.pmap(functools.partial(screened._ranked, k=_TOP), in_axes=(0, 0, None))
    all_docs = _shape(devices, _KEPT, _D, kind=jnp.float16)
    yield 'mining, ranking', ranked, (all_docs, found, _shape(_D))


def _tiles(queries: int, tile: int, devices: int) -> tuple[int, int, int]:
    return devices, -(-queries // (tile * devices)), tile


def _routing(devices: int) -> Iterator[tuple[str, Callable, tuple]]:
    """What learns where queries look, by name, and what it takes."""
    ints, centroids, depth = {'kind': jnp.int32}, _shape(devices, _L, _D), 4 * _P
    shared = (centroids, _shape(devices, depth))
    queries = _shape(devices, corpus.BLOCK, _D)
    yield 'routing, probes', corpus._on_devices(routing._probed), (shared, (queries,))
    probed = _shape(devices, _Q + 1, depth, **ints)
    shared = (centroids, _shape(devices, _L), probed, _shape(devices, depth), _shape(devices))
    wanted = (
        _shape(devices, corpus.BLOCK, routing._QUERIES, **ints),
        _shape(devices, corpus.BLOCK, routing._QUERIES),
    )
    docs = (_shape(devices, corpus.BLOCK, _D, kind=jnp.float16), _shape(devices, corpus.BLOCK, **ints))
    yield 'routing, lists', corpus._on_devices(routing._cheapest_block), (shared, (*docs, *wanted))
    yield 'routing, sums', routing._summed(), (centroids, _shape(devices), *docs)
    adam = optax.adam(1e-2)
    step = functools.partial(routing._step, optimizer=adam, rate=1.0, temperature=1.0, tether=1.0)
    step = jax.pmap(step, donate_argnums=(0, 1))
    state = jax.eval_shape(jax.vmap(adam.init), centroids)
    batch = (devices, routing._BATCH)
    targets = (_shape(*batch, routing._DEPTH, **ints), _shape(*batch, routing._DEPTH))
    yield (
        'routing, step',
        step,
        (centroids, state, _shape(*batch, _D), targets, centroids, _shape(devices, _L)),
    )


def _passes(devices: int) -> Iterator[tuple[str, Callable, tuple]]:
    """What goes over a corpus or a sample, by name, and what it takes."""
    ints = {'kind': jnp.int32}
    docs = _shape(devices, corpus.BLOCK, _D, kind=jnp.float16)
    lists, index, width = _shape(devices, corpus.BLOCK, **ints), _index(devices), _D // _M
    yield 'assign', corpus._on_devices(corpus._assign_block), ((index,), (docs, None))
    yield 'encode', encode._compiled('encode'), (index, docs, None)
    products = _shape(devices, _M, width * (width + 1) // 2, _K)
    table = _shape(devices, -(-(_Q + 1) // 8) * 8, _D)
    wanted = (_shape(devices, corpus.BLOCK, _WIDTH, **ints), *[_shape(devices, corpus.BLOCK, _WIDTH)] * 2)
    chosen = (index, products, table, _shape(), _shape(**ints), docs, lists, wanted)
    yield 'choose codes', encode._compiled('choose'), chosen
    shards, *rest = _SAMPLE
    sample = (devices, shards // devices, *rest)
    spread = points.DevicePoints(_shape(*sample, _D), _shape(*sample))
    yield 'k-means iteration', points._lloyd_sums, (spread, _shape(1, _L, _D))
    yield 'PQ iteration', points._lloyd_sums, (spread, _shape(_M, _K, width))
    yield 'OPQ moment', points._moment, (spread, _shape(_M, _K, width))
    sharded = devices > 1
    rows = _shape(devices, -(-_N // devices) if sharded else _N, _D, kind=jnp.float16)
    ids = _shape(devices, _B // devices * _C, **ints)
    yield 'documents of a step', placement._fetch(sharded), (rows, ids)


def _plan(
    name: str, devices: int, function: Callable, args: tuple, predicted: int | None = None
) -> dict[str, Any]:
    begin = time.perf_counter()
    size = plans.planned(function, args)
    row = {'name': name, 'devices': devices, 'bytes': size, 'seconds': round(time.perf_counter() - begin, 1)}
    row |= {} if predicted is None else {'predicted': predicted}
    print(row, file=sys.stderr, flush=True)
    return row


def _map_over(devices: int) -> None:
    """Lets all that is mapped from now on be mapped over so many accelerators that are not there."""
    absent.map_over(_TARGET.value, devices)
    importlib.reload(points)  # which maps its functions as it is imported
    for mapped in (encode._compiled, corpus._on_devices, placement._fetch, routing._summed):
        mapped.cache_clear()


def _sizes() -> dict[str, int]:
    """By the letters of types.py, and what else the shapes depend on."""
    letters = {'B': _B, 'C': _C, 'D': _D, 'L': _L, 'M': _M, 'K': _K, 'N': _N, 'Q': _Q, 'P': _P}
    more = {'mined': _TOP, 'kept': _KEPT, 'queries of a document': _WIDTH}
    return {**letters, **more, 'sample': math.prod(_SAMPLE)}


def measure(only: str = '') -> list[dict[str, Any]]:
    """Compiles all of them, for one device and for four.

    Args:
      only: what their names hold.

    Returns:
      A row each: 'name', 'devices', 'bytes' of memory on each, 'seconds' of compilation, and of a step what
      the formula says, 'predicted'.
    """
    rows = []
    for devices in (1, 4):
        _map_over(devices)
        for parts in (_steps, _mining, _passes, _routing):
            rows += [_plan(name, devices, *given) for name, *given in parts(devices) if only in name]
    return rows


def main() -> None:
    """Compiles, stores and prints."""
    path = files.check_output(_OUT.value)
    rows = measure(_ONLY.value)
    with files.atomic_file(path) as aside:
        stored = {'target': _TARGET.value, 'versions': plans.versions(), 'sizes': _sizes(), 'rows': rows}
        aside.write_text(json.dumps(stored, indent=1) + '\n', encoding='utf-8')
    print(performance_tables.compiled(stored))


if __name__ == '__main__':
    cli.run(main)
