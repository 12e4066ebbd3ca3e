"""Lists that queries reach: centroids and assignment learned from where the training queries go.

k-means puts a document where it is nearest. A search finds it only in a list that its queries probe, and
these are the lists of the largest ⟨q, o⟩. So, from the centroids of k-means, rounds of

1. centroids: minimise the cross-entropy between where a query's documents are, the teacher's softmax over its
   Top-K summed by list, and where it looks, the softmax of ⟨q, o⟩ over all L lists; plus what a search then
   scans, Σ_l p_l·n_l (p_l the share of queries that look into l, n_l the share of documents there), so that
   lists do not grow where everybody looks; plus the distance of each centroid from the mean of its documents,
   which the codebooks have to pay for;
2. assignment: a document goes to the list i of the least ‖v − o_i‖² − γ·(share of its queries that probe i)
   + μ·(share of all queries that probe i). The document's share counts a few more queries, which probe
   nothing, so that what few want stays near.

Where documents are stored in a second list too, that is chosen in the same way for the queries that probe the
first the least.

A list is probed to the degree 1/(1 + r/P)², r its rank for the query from 0, P the probes meant for serving.
All weights are relative to the scale of the data: distances to k-means' own distortion, scores to the spread
of the teacher's Top-K.
"""

import functools
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils

from dvq_jax import blocks, host, preemption, stages
from dvq_jax.codewords import sums_added, sums_on_host
from dvq_jax.corpus import (
    BLOCK,
    ROWS,
    assign_corpus,
    by_blocks,
    by_rows,
    one_behind,
    over_rows,
    rows_at_once,
    spread,
)
from dvq_jax.demand import Demand
from dvq_jax.progress import Progress
from dvq_jax.types import Array, IndexParams

_PRECISION = jax.lax.Precision.HIGHEST
_PARTS = 8  # of the corpus, whose sums are added up in order, whatever processes of as many devices made them
_SUMMED = 65_536  # documents that a thread sums, and bytes of sums that all threads hold
_SUMS = 2**31
_BATCH = 512  # queries in a step
_DEPTH = 50  # of the Top-K, documents that a query is led to
_QUERIES = 32  # that decide on a document's list
_RATE = 0.0125  # of Adam, relative to the centroids' root mean square
_TEMPERATURE = 0.5  # of the softmax over lists, in spreads; that over documents is the training's
_TEACHER_TEMPERATURE = 1.25
_SCANNED = 1.0  # weight of what is scanned, relative to lists of equal size
_TETHER = 2.0  # weight of the distance from the documents' mean, in distortions
_GAIN = 0.75  # γ, in distortions
_DOUBT = 2.0  # weight of the queries that are not known, which look everywhere
_SECOND_GAIN = 3.75  # γ of second lists: distance has had its say in the first
_PRICE = 0.04  # μ, in distortions, for a list that is probed as often as the mean


def learn(
    centroids: np.ndarray,
    corpus: np.ndarray,
    demand: Demand,
    *,
    rounds: int,
    passes: float,
    nprobe: int,
    copies: int,
    seed: int,
    kept: stages.Kept = stages.unkept,
) -> tuple[np.ndarray, np.ndarray]:
    """Moves centroids and documents to where queries look; all processes call.

    Args:
      centroids: [L, D] float32, of k-means, in the caller's space.
      corpus: [N, D] float, may be memory-mapped.
      demand: the training queries.
      rounds: of centroids, then assignment.
      passes: over the queries in a round.
      nprobe: P, the probes meant for serving.
      copies: lists that a document is stored in, 1 or 2.
      seed: of the batches.
      kept: who keeps what a round has moved, and what each pass over the corpus has made.

    Returns:
      centroids [L, D] float32 and lists [copies·N] int32, all first lists before all second ones.
    """

    def first(where: stages.Where) -> stages.Arrays:
        lists = assign_corpus(_lists_alone(centroids), corpus, parts=where('lists'))
        return _with_sums(corpus, centroids=centroids, lists=lists, parts=where('sums'))

    now = kept('lists-0', first)
    distortion = _distortion(now)
    route = functools.partial(assign, corpus=corpus, demand=demand, nprobe=nprobe, distortion=distortion)
    steps = math.ceil(passes * len(demand.queries) / _BATCH)
    progress = Progress('route', total=rounds * steps, unit='steps')

    def one_round(number: int, now: stages.Arrays) -> tuple[stages.Arrays, np.ndarray]:
        train = functools.partial(_train, now, demand, steps=steps, distortion=distortion)
        moved = kept(f'centroids-{number + 1}', lambda _: train(seed=(seed, number)))

        def routed(where: stages.Where) -> stages.Arrays:
            lists = route(moved['centroids'], where=where)
            return _with_sums(corpus, centroids=moved['centroids'], lists=lists, parts=where('sums'))

        return kept(f'lists-{number + 1}', routed), moved['loss']

    for number in range(rounds):
        now, loss = one_round(number, now)
        progress.add(steps, note=f'loss {loss:.4g}')
    progress.done(note=f'distortion {_distortion(now) / distortion:.3f} of k-means')
    moved, lists = now['centroids'], now['lists']
    if copies == 1:
        return moved, lists
    second = kept('second-lists', lambda where: {'lists': route(moved, taken=lists, where=where)})
    return moved, np.concatenate([lists, second['lists']])


def _lists_alone(centroids: np.ndarray) -> IndexParams:
    """An index in the caller's space whose one codebook leaves residuals as they are."""
    dim = centroids.shape[1]
    return IndexParams(centroids, np.zeros((1, 1, dim), np.float32), np.eye(dim, dtype=np.float32))


class _Sums:
    """The sums of documents by list, and of their squares; a `blocks.Work`.

    A block is 'sums' [L, D] and 'squares' [1], Σ‖v‖², both float64, so blocks are few.
    """

    label, unit = 'sum', 'documents'

    def __init__(self, corpus: np.ndarray, lists: np.ndarray, count: int):
        self._corpus, self._lists, self._count = corpus, lists, count
        self.blocks = blocks.cut(len(corpus), -(-len(corpus) // _PARTS))

    def size(self, number: int) -> int:
        """How many documents a block has."""
        return self.blocks[number].stop - self.blocks[number].start

    def __call__(self, number: int, progress: Progress) -> stages.Arrays:
        """Sums a block."""
        docs, lists = self._corpus[self.blocks[number]], self._lists[self.blocks[number]]
        sums, squares = np.zeros((self._count, docs.shape[1])), np.zeros(1)
        way = _sums_on_host if host.is_all_there_is() else _sums_on_devices
        for total, square in way(docs, lists, self._count, progress):
            sums += total
            squares += square
        return {'sums': sums, 'squares': squares}


def _sums_on_host(
    docs: np.ndarray, lists: np.ndarray, count: int, progress: Progress
) -> Iterator[tuple[np.ndarray, float]]:
    """The sums [L, D] float32 of some documents after the other, by threads, and of their squares."""

    def share(part: slice) -> tuple[int, np.ndarray, float]:
        total, square = np.zeros((count, docs.shape[1]), np.float32), 0.0
        for rows, block in by_blocks(docs[part]):
            square += np.sum(np.vecdot(block, block), dtype=np.float64)
            total += sums_on_host(lists[part][rows], block, words=count)
        return part.stop - part.start, total, square

    shares = blocks.cut(len(docs), _SUMMED)
    # Each thread has a total, and a part of one.
    at_once = max(1, min(host.cores(), _SUMS // (8 * count * docs.shape[1])))
    for first in range(0, len(shares), at_once):
        for done, *found in host.on_threads(share, shares[first : first + at_once]):
            progress.add(done)
            yield tuple(found)


def _sums_on_devices(
    docs: np.ndarray, lists: np.ndarray, count: int, progress: Progress
) -> Iterator[tuple[np.ndarray, float]]:
    """The same of what each device has taken."""
    fan = jax.local_device_count()
    totals = np.zeros((fan, count, docs.shape[1]), np.float32), np.zeros(fan, np.float32)
    parts = blocks.cut(len(docs), BLOCK * fan)

    def added() -> Iterator[tuple[slice, Array]]:
        nonlocal totals
        for rows, block in one_behind((rows, spread((docs[rows], lists[rows]), BLOCK)) for rows in parts):
            totals = _summed()(*totals, *block)
            yield rows, totals[1]

    for rows, squares in one_behind(added()):
        jax.block_until_ready(squares)
        progress.add(rows.stop - rows.start)
    yield from zip(*map(np.asarray, totals), strict=True)


@functools.cache
def _summed() -> Callable:
    return jax.pmap(_add_block, devices=jax.local_devices(), donate_argnums=0)


def _add_block(total: Array, squares: Array, docs: Array, lists: Array) -> tuple[Array, Array]:
    """Adds documents [n, D], zeros where padded, to the sums of their lists and of their squares."""
    docs = docs.astype(jnp.float32)
    parts = docs.reshape(-1, ROWS, docs.shape[1]), lists.reshape(-1, ROWS)
    total = jax.lax.scan(lambda total, some: (sums_added(total, some[1], some[0]), None), total, parts)[0]
    return total, squares + jnp.sum(jnp.square(docs))


def _with_sums(
    corpus: np.ndarray, *, centroids: np.ndarray, lists: np.ndarray, parts: blocks.Parts | None = None
) -> stages.Arrays:
    """Both arrays, and the documents' 'sums' by list, [L, D], and 'squares', [1]."""
    work = _Sums(corpus, lists, len(centroids))
    found = blocks.finish(work, parts, quiet=True)
    sums, squares = np.zeros(centroids.shape), np.zeros(1)
    for number in range(len(work.blocks)):
        block = found[number]
        sums += block['sums']
        squares += block['squares']
    return {'centroids': centroids, 'lists': lists, 'sums': sums.astype(np.float32), 'squares': squares}


def _distortion(now: stages.Arrays) -> float:
    """The mean ‖v − o‖² of documents and the centroids of their lists."""
    centroids = now['centroids']
    cross = np.sum(centroids * now['sums'], dtype=np.float64)
    sizes = np.bincount(now['lists'], minlength=len(centroids))
    norms = np.sum(sizes * np.sum(centroids**2, axis=1))
    return float(now['squares'][0] - 2 * cross + norms) / float(np.sum(sizes))


@functools.cache
def _adam(steps: int) -> optax.GradientTransformation:
    """Of rate 1, which decays: a round multiplies by its own, so that all rounds share a compiled step."""
    return optax.adam(optax.cosine_decay_schedule(1.0, steps))


@functools.partial(jax.jit, static_argnames='optimizer', donate_argnums=(0, 1))
def _step(
    centroids: Array,
    opt_state: optax.OptState,
    queries: Array,
    targets: tuple[Array, Array],
    means: Array,
    shares: Array,
    *,
    optimizer: optax.GradientTransformation,
    rate: float,
    temperature: float,
    tether: float,
) -> tuple[Array, optax.OptState, Array]:
    held, weights = targets
    batch, count = len(queries), len(centroids)
    places = jnp.arange(batch)[:, None]
    wanted = jnp.zeros((batch, count)).at[places, held].add(weights)

    def loss_fn(centroids):
        scores = jnp.matmul(queries, centroids.T, precision=_PRECISION) / temperature
        looks = jax.nn.log_softmax(scores, axis=-1)
        reach = -jnp.mean(jnp.sum(wanted * looks, axis=-1))
        scanned = count * jnp.sum(jnp.mean(jnp.exp(looks), axis=0) * shares)
        away = jnp.sum(shares * jnp.sum(jnp.square(centroids - means), axis=-1))
        return reach + _SCANNED * scanned + tether * away

    loss, gradient = jax.value_and_grad(loss_fn)(centroids)
    updates, opt_state = optimizer.update(gradient, opt_state, centroids)
    return centroids + rate * updates, opt_state, loss


def _train(
    now: stages.Arrays, demand: Demand, *, steps: int, distortion: float, seed: tuple[int, int]
) -> stages.Arrays:
    """The first half of a round, 'centroids' and the last 'loss'; every process does the same."""
    centroids, lists = now['centroids'], now['lists']
    sizes = np.bincount(lists, minlength=len(centroids))
    rms = float(np.sqrt(np.mean(np.square(centroids, dtype=np.float64))))
    optimizer = _adam(steps)
    depth = min(_DEPTH, demand.topk_ids.shape[1])
    scores = demand.topk_scores[:, :depth] / (_TEACHER_TEMPERATURE * demand.spread)
    weights = np.exp(scores - scores[:, :1])
    weights /= weights.sum(axis=1, keepdims=True)
    shares = jnp.asarray(sizes / len(lists), jnp.float32)
    means = jnp.asarray(now['sums'] / np.maximum(sizes, 1)[:, None])
    rng = np.random.default_rng(seed)
    learnt, loss = jnp.array(centroids), jnp.zeros(())
    opt_state = optimizer.init(learnt)
    for _ in range(steps):
        preemption.leave_if_noticed()
        rows = rng.integers(0, len(demand.queries), _BATCH)
        learnt, opt_state, loss = _step(
            learnt,
            opt_state,
            demand.queries[rows],
            (lists[demand.topk_ids[rows, :depth]], weights[rows]),
            means,
            shares,
            optimizer=optimizer,
            rate=_RATE * rms,
            temperature=_TEMPERATURE * demand.spread,
            tether=_TETHER / distortion,
        )
    # Where sums have no order, as on GPUs, processes may differ in the last bits; from here on they must not.
    return {'centroids': np.asarray(multihost_utils.broadcast_one_to_all(learnt)), 'loss': np.asarray(loss)}


def _probed(centroids: Array, degrees: Array, queries: Array) -> Array:
    """[n, depth] the lists that a query probes, best first, one for each of `degrees`."""
    scores = jnp.matmul(queries, centroids.T, precision=_PRECISION)
    return jax.lax.top_k(scores, len(degrees))[1].astype(jnp.int32)


def _cheapest(
    centroids: Array,
    prices: Array,
    probed_by: Array,
    degrees: Array,
    gain: Array,
    docs: Array,
    taken: Array,
    queries: Array,
    weights: Array,
) -> Array:
    """[n] the list of each document, given its queries [n, b], their weights, and all queries' `_probed`.

    Row Q of that is for queries that are none, and holds L, which is dropped.
    It is another than taken [n], a list or -1, and for those queries that do not probe that one.
    """
    docs, lists = docs.astype(jnp.float32), probed_by[queries]
    places = jnp.arange(len(docs))
    shares = weights / (jnp.sum(weights, axis=1, keepdims=True) + _DOUBT)
    shares *= 1.0 - jnp.sum(jnp.where(lists == taken[:, None, None], degrees, 0.0), axis=-1)
    probed = jnp.zeros((len(docs), len(centroids)))
    probed = probed.at[places[:, None, None], lists].add(shares[:, :, None] * degrees, mode='drop')
    gaps = jnp.sum(jnp.square(centroids), axis=-1) - 2.0 * jnp.matmul(docs, centroids.T, precision=_PRECISION)
    costs = gaps - gain * probed + prices
    costs = jnp.where(jnp.arange(len(centroids)) == taken[:, None], jnp.inf, costs)
    least = jnp.min(costs, axis=1, keepdims=True)
    return jnp.min(jnp.where(costs == least, jnp.arange(len(centroids)), len(centroids)), axis=1)


def _cheapest_block(
    centroids: Array, prices: Array, probed_by: Array, degrees: Array, gain: Array, *rows: Array
) -> Array:
    """`_cheapest` of more documents than go together: each has a row of L numbers."""
    cheapest = functools.partial(_cheapest, centroids, prices, probed_by, degrees, gain)
    return by_rows(cheapest, *rows)


def assign(
    centroids: np.ndarray,
    corpus: np.ndarray,
    demand: Demand,
    *,
    nprobe: int,
    distortion: float,
    taken: np.ndarray | None = None,
    where: stages.Where = stages.nowhere,
) -> np.ndarray:
    """The list of each document, by distance, its queries, and the price of the list; see the module's text.

    Each device holds 16·Q·P bytes: the lists that queries probe.

    Args:
      centroids: [L, D] float32, in the caller's space.
      corpus: [N, D] float, may be memory-mapped.
      demand: the training queries.
      nprobe: P, the probes meant for serving.
      distortion: mean ‖v − o‖² of k-means, the unit of γ and μ.
      taken: [N] int32, the documents' first lists, where it is their second that is wanted.
      where: finished blocks are kept, and shared by processes.

    Returns:
      [N] int32.
    """
    count = len(centroids)
    depth = min(4 * nprobe, count)
    degrees = (1.0 / (1.0 + np.arange(depth) / nprobe) ** 2).astype(np.float32)
    asked = demand.queries
    settings = {'size': BLOCK, 'label': 'probe', 'parts': where('probed')}
    probed = over_rows(_probed, (centroids, degrees), lambda rows: (asked[rows],), len(asked), **settings)
    looked = np.bincount(probed[:, :nprobe].reshape(-1), minlength=count)
    prices = (_PRICE * distortion * looked / looked.mean()).astype(np.float32)
    gain = np.float32((_GAIN if taken is None else _SECOND_GAIN) * distortion)
    taken = np.full(len(corpus), -1, np.int32) if taken is None else taken

    def read(rows: slice) -> tuple[np.ndarray, ...]:
        queries, weights, _ = demand.of(np.arange(rows.start, rows.stop), _QUERIES)
        return corpus[rows], taken[rows], queries, weights

    # The last row pads, and probes no list there is: on a GPU many zeros for one place would queue there.
    probed = np.concatenate([probed, np.full_like(probed[:1], count)])
    shared = (centroids, prices, probed, degrees, gain)
    settings = {'size': rows_at_once(len(corpus)), 'label': 'route documents', 'parts': where('lists')}
    return over_rows(_cheapest_block, shared, read, len(corpus), **settings)
