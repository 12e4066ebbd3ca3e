"""The best documents by bfloat16 products, on accelerators: what `screened` chooses from there.

Products are rounded to bfloat16 when they are written: they are read again, and memory is slower than matrix
units. Of each block of documents a query keeps few, by a Top-K of so few that a GPU needs no sort for it, and
whose order of ties does not matter; only where several blocks have filled a query's places are these cut to
the best. How good a document can be that was dropped is known: no better than the worst that was kept, of its
block or of all.
"""

import collections
import functools
import inspect
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dvq_jax import exact, rounding
from dvq_jax.blocks import even
from dvq_jax.progress import Progress
from dvq_jax.stream import Stream
from dvq_jax.types import Array

_TILE = 4096  # queries that a device scores at once
_NARROWEST = 8192  # documents up to which it pays to score fewer at once
_FEWEST = 128  # documents of a block that a query keeps at least; a GPU's Top-K that does not sort ends there
_EVEN = 2  # and at least so many times what each block would have of the best were they spread evenly
_PLACES = 16  # blocks between two cuts
_ORDERLESS = {'is_stable': False} if 'is_stable' in inspect.signature(jax.lax.top_k).parameters else {}


class Chosen(NamedTuple):
    """What was chosen for queries, on their devices.

    Attributes:
      queries: [devices, q, D] float32.
      ids: [devices, q, K'] int32, rows of the corpus.
      products: [devices, q, K'] float32, rounded, best first, relative to the middle.
      dropped: [devices, q] float32, the most that any other document's may be.
      error: [devices, q] float32, how far products from the k-th on are off at most.
    """

    queries: Array
    ids: Array
    products: Array
    dropped: Array
    error: Array


class _State(NamedTuple):
    """Of [tiles, q, places] of a device: products and rows; the most that was dropped [tiles, q]; `reach`."""

    products: Array
    ids: Array
    dropped: Array
    reach: Array


def largest_block(documents: int, wide: int, corpus_block: int) -> int:
    """How many documents to score at once at most: many, of which few are kept.

    Args:
      documents: N.
      wide: K', how many a query gets.
      corpus_block: how many there are of float32; of products half as large twice as many.

    Returns:
      So many that about `_FEWEST` of them are enough for a query to keep, or `_NARROWEST`.
    """
    blocks = -(-_EVEN * wide // _FEWEST)
    return min(2 * corpus_block, max(_NARROWEST, -(-documents // blocks)))


def search(
    stream: Stream, k: int, wide: int, *, middle: np.ndarray, query_block: int
) -> Callable[[np.ndarray, Progress], Chosen]:
    """Search by rounded products.

    Args:
      stream: the corpus, on devices each of which takes a share of the queries.
      k: how many documents a query is to get in the end.
      wide: K', how many it gets here, k to N.
      middle: [D] float32, what documents are taken relative to.
      query_block: the most queries that a search is given.

    Returns:
      search(queries [q ≤ query_block, D] float16 or float32, progress) -> what was chosen, for as many as
      fill the tiles of all devices; `progress` counts scores.
    """
    devices, total, blocks = stream.devices, len(stream.corpus), stream.blocks
    each = min(wide, stream.width, max(_FEWEST, _EVEN * -(-wide // blocks)))
    tile, places = even(query_block, _TILE, multiple=len(devices)), min(_PLACES, blocks)
    mapped = functools.partial(jax.pmap, devices=devices)
    begin = mapped(functools.partial(_begin, places=wide + places * each))
    middle = jnp.asarray(middle)
    size = stream.corpus.shape[1] * jnp.dtype(jnp.bfloat16).itemsize
    rounded = stream.through(functools.partial(rounding.rounded, middle=middle), size=size)
    add = functools.partial(_add, each=each, first=wide, total=total)
    add = mapped(add, in_axes=(0, 0, 0, 0, None, None), donate_argnums=0)
    cut = mapped(functools.partial(_cut, wide=wide), donate_argnums=0)
    end = mapped(functools.partial(_end, k=k, wide=wide, total=total), in_axes=(0, 0, 0, None))

    def run(queries: np.ndarray, progress: Progress) -> Chosen:
        count = len(queries)
        tiles = exact.in_tiles(queries, tile, devices=len(devices), query_block=query_block)
        queries, coarse, state = begin(tiles)
        ahead, place = collections.deque(), 0
        for start, (docs, reach) in rounded():
            if len(ahead) == 2:  # devices have two blocks to do before this one
                done, scores = ahead.popleft()
                jax.block_until_ready(done)
                progress.add(scores)
            if place == places:
                state, place = cut(state), 0
            state, done = add(state, coarse, docs, reach, start, place)
            place += 1
            ahead.append((done, count * min(stream.width, total - start)))
        for _, scores in ahead:  # to wait for these would leave devices without work
            progress.add(scores)
        return end(queries, coarse, cut(state), middle)

    return run


def _begin(queries: Array, *, places: int) -> tuple[Array, Array, _State]:
    """Queries [tiles, q, D] of float32, the same rounded, and nothing chosen."""
    queries = queries.astype(jnp.float32)
    shape = (*queries.shape[:-1], places)
    products, ids = jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32)
    state = _State(products, ids, jnp.full(shape[:-1], -jnp.inf), jnp.zeros(2))
    return queries, queries.astype(jnp.bfloat16), state


def _add(
    state: _State,
    queries: Array,
    docs: Array,
    reach: Array,
    start: Array,
    place: Array,
    *,
    each: int,
    first: int,
    total: int,
) -> tuple[_State, Array]:
    """Writes the best of a block to a place behind the `first`; and a number, there when that is done."""
    best_of = functools.partial(_best, docs=docs, start=start, each=each, total=total)
    products, ids = jax.lax.map(best_of, queries)  # one after the other: products of one tile are held
    dropped = state.dropped
    if each < len(docs):
        dropped = jnp.maximum(dropped, jnp.min(products, axis=-1))
    write, at = jax.lax.dynamic_update_slice, (0, 0, first + place * each)
    state = _State(
        write(state.products, products, at),
        write(state.ids, ids, at),
        dropped,
        jnp.maximum(state.reach, reach),
    )
    return state, jnp.max(products)


def _best(queries: Array, *, docs: Array, start: Array, each: int, total: int) -> tuple[Array, Array]:
    """Products and rows [q, each] of the best of a block [n, D], whose rows from `total` on are padding.

    First the best groups of consecutive documents by their maxima, then the best members of those.
    """
    group = exact.group_of(len(docs), each)
    groups, contracted = len(docs) // group, (((1,), (1,)), ((), ()))
    products = jax.lax.dot_general(queries, docs, contracted, preferred_element_type=jnp.bfloat16)
    products = products.reshape(-1, groups, group)
    rows = start + jnp.arange(groups * group, dtype=jnp.int32).reshape(groups, group)
    maxima = jnp.max(jnp.where(rows < total, products, -jnp.inf), axis=-1).astype(jnp.float32)
    chosen = jax.lax.top_k(maxima, min(each, groups), **_ORDERLESS)[1]
    members = jnp.take_along_axis(products, chosen[:, :, None], axis=1).astype(jnp.float32)
    rows = start + chosen[:, :, None] * group + jnp.arange(group, dtype=jnp.int32)
    members = jnp.where(rows < total, members, -jnp.inf)
    best, places = jax.lax.top_k(members.reshape(len(queries), -1), each, **_ORDERLESS)
    return best, jnp.take_along_axis(rows.reshape(len(queries), -1), places, axis=-1)


def _cut(state: _State, *, wide: int) -> _State:
    """Leaves the best of each query, in the first places."""

    def one(tile: tuple[Array, Array]) -> tuple[Array, Array]:
        products, ids = tile
        best, places = jax.lax.top_k(products, wide)
        ids = ids.at[:, :wide].set(jnp.take_along_axis(ids, places, axis=1))
        return jnp.full_like(products, -jnp.inf).at[:, :wide].set(best), ids

    products, ids = jax.lax.map(one, (state.products, state.ids))
    return state._replace(products=products, ids=ids)


def _end(
    queries: Array, coarse: Array, state: _State, middle: Array, *, k: int, wide: int, total: int
) -> Chosen:
    """What a cut has left."""
    products, ids, dropped = state.products[..., :wide], state.ids[..., :wide], state.dropped
    if wide < total:
        dropped = jnp.maximum(dropped, products[..., -1])
    # Which are in doubt is decided from the k-th down to the last, or to the best that was dropped.
    least = jnp.where(dropped > -jnp.inf, dropped, products[..., -1])
    written = jnp.max(jnp.abs(jnp.stack([products[..., k - 1], products[..., -1], least])), axis=0)
    error = rounding.error(queries, coarse, state.reach, middle) + rounding.WRITTEN * written
    found = Chosen(queries, ids, products, dropped, error)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)
