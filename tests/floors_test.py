"""Floors against the products that our functions make, counted in what JAX traces."""

import functools
import pathlib
import sys

import jax
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.interpreters import partial_eval

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / 'benchmarks'))

import floors
import speed_floors
import speed_step

from dvq_jax import codes, exact, points, quantizer, towers
from dvq_jax.train_step import init_state

DOCS, DIM, LISTS, BOOKS, WORDS = 48, 32, 24, 4, 16
INDEX = jax.tree.map(
    jax.numpy.asarray, speed_step.make_index(dim=DIM, codebooks=BOOKS, lists=LISTS, codewords=WORDS)
)
POINTS = np.random.default_rng(0).normal(size=(DOCS, DIM)).astype(np.float32)


def products(function, *args):
    """FLOPs of all matrix products in a function."""
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    return _products(partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])


def _products(jaxpr):
    count = 0
    for step in jaxpr.eqns:
        if step.primitive.name == 'dot_general':
            (contracted, _), _ = step.params['dimension_numbers']
            left = step.invars[0].aval.shape
            count += 2 * step.outvars[0].aval.size * int(np.prod([left[axis] for axis in contracted]))
        inner = list(jaxprs_in_params(step.params))
        if step.primitive.name == 'cond':  # of platforms, whose last branch is the CPU's
            inner = inner[-1:]
        count += step.params.get('length', 1) * sum(map(_products, inner))
    return count


@pytest.mark.parametrize('estimator', ['hard', 'softmax'])
@pytest.mark.parametrize('tower_rate', [None, 1e-4])
def test_a_steps_floor_is_its_products(estimator, tower_rate):
    rates = {'centroids': 1e-2, 'codebooks': 1e-2, 'rotation': None, 'tower': tower_rate}
    tower = towers.build('linear' if tower_rate else 'identity')
    adam, step = speed_step.plain_step(tower, rates, estimator=estimator)
    sizes, parameters = {'batch_size': 8, 'candidates': 6, 'dim': DIM}, DIM**2 if tower_rate else 0
    state = init_state(INDEX, towers.initial_params(tower, DIM, seed=0), adam)
    shape = {'lists': LISTS, 'codewords': WORDS, 'tower_parameters': parameters}
    floor = floors.step(**sizes, **shape, estimator=estimator)
    optimizer = 10 * ((LISTS + WORDS) * DIM + parameters)  # no products
    # Left out of the floor: the queries' rotation, and a tower that is trained, both there and back.
    of_queries = (4 if tower_rate else 1) * 2 * 8 * DIM**2
    found = products(step, state, speed_step.make_batch(**sizes))
    assert found == floor.flops - optimizer + of_queries


def test_encodings_floor_is_its_products():
    sizes = {'documents': DOCS, 'dim': DIM, 'width': 2}
    floor = floors.encoding(**sizes, lists=LISTS, codebooks=BOOKS, codewords=WORDS)
    assert products(lambda docs: quantizer.encode(INDEX, docs), POINTS) == floor.flops
    assert floor.bytes == DOCS * (2 * DIM + BOOKS + 4)
    floor = floors.assignment(**sizes, lists=LISTS)
    assert (
        products(lambda docs: quantizer.nearest(docs[:, None], INDEX.centroids[None]), POINTS) == floor.flops
    )
    assert floor.bytes == DOCS * (2 * DIM + 4)


def test_choosings_floor_is_its_products():
    each, sweeps = 3, 2
    queries = np.ones((DOCS, each, DIM), np.float32)
    numbers, lists = np.ones((DOCS, each), np.float32), np.zeros(DOCS, np.int32)
    given = codes.codeword_products(INDEX.codebooks), POINTS, queries, numbers, numbers, lists
    choose = functools.partial(codes.encode_for, INDEX, ridge=1.0, sweeps=sweeps)
    counts = {'documents': DOCS, 'queries': 7, 'wanted': DOCS, 'pairs': DOCS * each, 'sweeps': sweeps}
    floor = floors.choosing(**counts, dim=DIM, codebooks=BOOKS, codewords=WORDS, width=2)
    again = 2 * DOCS * DIM**2  # the documents' rotation, which the compiler finds twice and makes once
    assert products(choose, *given) == floor.flops + again
    assert floor.bytes == DOCS * (2 * DIM + BOOKS + 4) + 4 * 7 * DIM


def test_minings_floor_is_its_products():
    best, ids = np.zeros((8, 3), np.float32), np.zeros((8, 3), np.int32)
    merge = functools.partial(exact._merge, group=2, total=DOCS)
    floor = floors.mining(documents=DOCS, queries=8, dim=DIM, topk=3, width=2)
    assert products(merge, best, ids, POINTS[:8], POINTS, np.int32(0)) == floor.flops
    assert floor.bytes == 2 * DOCS * DIM + 8 * 8 * 3
    twice = floors.mining(documents=DOCS, queries=8193, dim=DIM, topk=3, width=2)
    assert twice.bytes == 2 * 2 * DOCS * DIM + 8 * 8193 * 3


def test_clusterings_floor_is_its_products():
    weights = np.ones(DOCS, np.float32)
    floor = floors.kmeans(documents=DOCS, dim=DIM, centers=WORDS, iterations=2)
    iteration = products(points._lloyd_block, POINTS, weights, INDEX.codebooks)
    assert 2 * (iteration + DOCS * DIM) == floor.flops and floor.bytes == 2 * 4 * DOCS * DIM
    floor = floors.opq(documents=DOCS, dim=DIM, codewords=WORDS, iterations=3, pq_iterations=2)
    both = 2 * 2 * DOCS * DIM**2  # rotation and moment
    assert floor.flops == 5 * (iteration + DOCS * DIM) + 3 * both
    assert floor.bytes == (5 + 3) * 4 * DOCS * DIM


def test_searchs_floor_counts_what_is_scanned():
    sizes = {'queries': 5, 'dim': DIM, 'lists': LISTS, 'codebooks': BOOKS, 'codewords': WORDS}
    floor = floors.search(**sizes, scanned=20.0)
    rotated = products(lambda queries: quantizer.rotate(INDEX, queries), POINTS[:5])
    to_lists = products(lambda queries: queries @ INDEX.centroids.T, POINTS[:5])
    tables = 2 * 5 * WORDS * DIM
    assert floor.flops == rotated + to_lists + tables + 5 * 20 * BOOKS
    assert floor.bytes == 4 * (LISTS + WORDS) * DIM + 5 * 20 * BOOKS / 2  # 4 bits a code


def test_a_floor_is_what_takes_longer():
    peaks = floors.Peaks(float32=10.0, bfloat16=40.0, bytes=2.0)
    floor = floors.Floor(flops=100.0, bytes=10.0)
    assert floor.seconds(peaks, 'float32') == 100 / 10 and floor.seconds(peaks, 'bfloat16') == 10 / 2
    assert floor + floor == floor * 2 == floors.Floor(200.0, 20.0)


def test_peaks_are_measured_and_looked_up(monkeypatch):
    assert all(x.float32 < x.bfloat16 and 1e11 < x.bytes < 1e13 for x in floors.DATASHEETS.values())
    monkeypatch.setattr(floors, 'probe', lambda: floors.Peaks(1.0, 2.0, 3.0))
    assert list(floors.peaks()) == ['measured']
    monkeypatch.setitem(floors.DATASHEETS, jax.devices()[0].device_kind, floors.Peaks(4.0, 5.0, 6.0))
    assert floors.peaks()['datasheet'] == {'float32': 4.0, 'bfloat16': 5.0, 'bytes': 6.0}


def test_a_probe_finds_what_a_device_does():
    found = floors.probe(256)
    # Between a core of long ago and more than any host or device has.
    assert 1e8 < found.float32 < 1e16 and 1e8 < found.bfloat16 < 1e16 and 1e8 < found.bytes < 1e14


def test_a_report_has_the_share_of_each_floor():
    sizes = {'documents': 1000, 'queries': 100, 'dim': 32, 'topk': 5}
    row = {**sizes, 'seconds': {'ours': 2.0}}
    floor = floors.mining(**sizes, width=4)
    peaks = {'float32': floor.flops, 'bfloat16': 4 * floor.flops, 'bytes': 1e12}
    stored = {'mining': {'cores': 2, 'peaks': {'measured': peaks}, 'rows': [row]}}
    ((part, found),) = speed_floors.reached(stored)
    assert (part, found.path, found.seconds, found.floor) == ('mining', 'mining', 2.0, floor)
    assert found.fraction(peaks, 'float32') == 0.5 and found.fraction(peaks, 'bfloat16') == 0.125


def test_search_is_compared_with_peaks_of_the_same_cores():
    row = {'documents': 90, 'queries': 10, 'dim': 8, 'lists': 4, 'codebooks': 2, 'codewords': 16, 'nprobe': 2}
    row |= {'documents_scanned': {'exported': 45}, 'queries_per_second': {'exported': 5.0, 'reference': 2.0}}
    stored = {'search': {'cores': 2, 'rows': [{**row, 'cores': 1}, {**row, 'cores': 2}]}}
    assert [found.seconds for _, found in speed_floors.reached(stored)] == [2.0, 5.0]
