"""The best documents by bfloat16 products, on accelerators: what `screened` chooses from there.

Products are rounded to bfloat16 when they are written: they are read again, and memory is slower than matrix
units. Of each block of documents a query keeps few, by a Top-K of so few that a GPU needs no sort for it, and
whose order of ties does not matter; only where several blocks have filled a query's places are these cut to
the best. How good a document can be that was dropped is known: no better than the worst that was kept, of its
block or of all.
"""

import functools
import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dvq_jax import exact
from dvq_jax.progress import Progress
from dvq_jax.quantizer import to_bfloat16
from dvq_jax.stream import Stream
from dvq_jax.types import Array

ROUNDED = 2.0**-8  # by how much a written product is off at most, relative to itself

_TILE = 4096  # queries that a device scores at once
_FEWEST = 128  # documents of a block that a query keeps at least; a GPU's Top-K that does not sort ends there
_EVEN = 2  # and at least so many times what each block would have of the best were they spread evenly
_PLACES = 16  # blocks between two cuts
_ORDERLESS = {'is_stable': False} if 'is_stable' in inspect.signature(jax.lax.top_k).parameters else {}

# Rows [q, K'], their products [q, K'], best first, the most that one has of those that are dropped [q], and
# `rounded`'s norms.
Chosen = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def search(
    stream: Stream, wide: int, *, middle: np.ndarray, query_block: int
) -> Callable[[np.ndarray, Progress], Chosen]:
    """Search by rounded products.

    Args:
      stream: the corpus, on devices each of which takes a share of the queries.
      wide: K', how many documents a query gets, at most N.
      middle: [D] float32, what documents are taken relative to.
      query_block: the most queries that a search is given.

    Returns:
      search(queries [q ≤ query_block, D] bfloat16, progress) -> what was chosen; `progress` counts scores.
    """
    devices, total, blocks = stream.devices, len(stream.corpus), stream.blocks
    each = min(wide, stream.width, max(_FEWEST, _EVEN * -(-wide // blocks)))
    tile, places = min(_TILE, query_block), min(_PLACES, blocks)
    mapped = functools.partial(jax.pmap, devices=devices)
    settings = {'each': each, 'first': wide, 'total': total}
    add = mapped(functools.partial(_add, **settings), in_axes=(0, 0, 0, None, None), donate_argnums=0)
    cut = mapped(functools.partial(_cut, wide=wide), donate_argnums=0)
    prepare, put = mapped(rounded, in_axes=(0, None)), mapped(lambda x: x)
    columns = wide + places * each

    def run(queries: np.ndarray, progress: Progress) -> Chosen:
        padded = put(exact.in_tiles(queries, tile, devices=len(devices), query_block=query_block))
        shape = padded.shape[:-1]
        scores = np.full((*shape, columns), -np.inf, np.float32)
        state = put((scores, np.zeros(scores.shape, np.int32), np.full(shape, -np.inf, np.float32)))
        norms, place = [], 0
        for start, docs in stream:
            if len(norms) > 1:
                jax.block_until_ready(norms[-2])  # devices are at the block before, and have what is next
                progress.add(len(queries) * stream.width)
            if place == places:
                state, place = cut(state), 0
            docs, some = prepare(docs, middle)
            state, place = add(state, padded, docs, start, place), place + 1
            norms.append(some)
        scores, ids, dropped = (np.asarray(x).reshape(-1, *x.shape[3:])[: len(queries)] for x in cut(state))
        progress.add(len(queries) * (total - stream.width * max(0, len(norms) - 2)))
        scores, ids = scores[:, :wide], ids[:, :wide]
        if wide < total:
            dropped = np.maximum(dropped, scores[:, -1])
        return ids, scores, dropped, np.max([some[0] for some in norms], axis=0)

    return run


def rounded(docs: Array, middle: Array) -> tuple[Array, Array]:
    """Documents [n, D] relative to the middle; their largest norm, and the most by which one is rounded."""
    docs = docs.astype(jnp.float32) - middle
    near = to_bfloat16(docs)
    norms = jnp.stack([jnp.linalg.norm(x, axis=1).max() for x in (docs, docs - near)])
    return near.astype(jnp.bfloat16), norms


def _add(
    state: tuple[Array, Array, Array],
    queries: Array,
    docs: Array,
    start: Array,
    place: Array,
    *,
    each: int,
    first: int,
    total: int,
) -> tuple[Array, Array, Array]:
    """Writes the best of a block to a place of products and rows [tiles, q, ...]; dropped is [tiles, q]."""
    scores, ids, dropped = state
    best_of = functools.partial(_best, docs=docs, start=start, each=each, total=total)
    new_scores, new_ids = jax.lax.map(best_of, queries)  # one after the other: scores of one tile are held
    if each < len(docs):
        dropped = jnp.maximum(dropped, jnp.min(new_scores, axis=-1))
    at = (0, 0, first + place * each)
    write = jax.lax.dynamic_update_slice
    return write(scores, new_scores, at), write(ids, new_ids, at), dropped


def _best(queries: Array, *, docs: Array, start: Array, each: int, total: int) -> tuple[Array, Array]:
    """Products and rows [q, each] of the best of a block [n, D], which may have rows beyond the last.

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
    scores, places = jax.lax.top_k(members.reshape(len(queries), -1), each, **_ORDERLESS)
    return scores, jnp.take_along_axis(rows.reshape(len(queries), -1), places, axis=-1)


def _cut(state: tuple[Array, Array, Array], *, wide: int) -> tuple[Array, Array, Array]:
    """Leaves the best of each query, in the first places."""
    scores, ids, dropped = state

    def one(tile: tuple[Array, Array]) -> tuple[Array, Array]:
        scores, ids = tile
        best, places = jax.lax.top_k(scores, wide)
        rest = jnp.full((len(scores), scores.shape[1] - wide), -jnp.inf)
        return (
            jnp.concatenate([best, rest], axis=1),
            ids.at[:, :wide].set(jnp.take_along_axis(ids, places, axis=1)),
        )

    return *jax.lax.map(one, (scores, ids)), dropped
