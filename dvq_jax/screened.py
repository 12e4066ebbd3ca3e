"""The exact Top-K where there are matrix units for bfloat16: rounded products choose, float32 ranks.

Accelerators and some hosts' cores (`host.has_matrix_units`) multiply bfloat16 several times as fast as
float32. How far a rounded product is off at most, e, is known (`rounding`). Each query keeps its best K' > K
documents by rounded products, and these are scored again in float32. What was dropped has rounded products of
at most what is known too, on a host the K'-th. So where the K-th score is larger than that by e, the K are
the exact ones; queries of which that is not so are searched for again by `exact`. Exact is, as anywhere, up
to the rounding of float32 scores.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dvq_jax import device_screen, exact, host, rounding
from dvq_jax.blocks import cut
from dvq_jax.progress import Progress
from dvq_jax.stream import Stream
from dvq_jax.types import Array

# Rows [q, k] and their scores [q, k], best first, and whether a query is to be searched for again [q].
Answer = tuple[np.ndarray, np.ndarray, np.ndarray]

_FEWEST = 2**27  # scores from which on this pays, for it compiles, and ranks K' documents again
_OF = 64  # documents for each that a query gets, at least
_SAMPLE = 4096  # documents whose mean is taken
_MORE = 32  # documents that a host keeps beyond K, at least; else half of K
_SCORES = 2**23  # that are computed at once: the last cache should hold them
_WIDEST = 4096  # documents of them
_RANKED = 64  # queries whose documents a thread, or a device, ranks in one go


def pays(documents: int, queries: int, k: int) -> bool:
    """Whether a screen is faster here: it compiles, keeps more than K, and ranks that again."""
    units = host.has_matrix_units() or not host.is_all_there_is()
    return units and documents * queries >= _FEWEST and documents >= _OF * k


def on_devices(stream: Stream, k: int, *, query_block: int) -> exact.Search:
    """Search by a screen on devices, and by `exact.on_devices` where that leaves the answer open.

    Args:
      stream, k, query_block: as `exact.on_devices` takes them.

    Returns:
      As `exact.on_devices`.
    """
    corpus, middle = stream.corpus, _mean(stream.corpus)
    wide = _kept_on_devices(len(corpus), k)
    choose = device_screen.search(stream, k, wide, middle=middle, query_block=query_block)
    ranked = functools.partial(_ranked, k=k)
    ranked = jax.pmap(ranked, in_axes=(0, 0, None), devices=stream.devices)

    def answer(queries: np.ndarray, progress: Progress) -> Answer:
        found = choose(queries, progress)
        if stream.kept is not None:
            found = ranked(stream.kept, found, middle)
            return tuple(np.array(x).reshape(-1, *x.shape[2:])[: len(queries)] for x in found)
        found = (np.asarray(x).reshape(-1, *x.shape[2:])[: len(queries)] for x in found)
        return _ranked_on_host(corpus, *found, middle=middle, k=k, corpus_block=stream.width)

    return _search(answer, exact.on_devices(stream, k, query_block=query_block))


def on_host(corpus: np.ndarray, k: int, *, corpus_block: int) -> exact.Search:
    """Search by a screen on a host's cores, and by `exact.on_host` where that leaves the answer open.

    Args:
      corpus: [N, D] float16 or float32, usually memory-mapped.
      k: how many documents a query gets, at most N.
      corpus_block: documents that are read at once where the screen is not enough, and ranked at once.

    Returns:
      As `exact.on_devices`.
    """
    corpus = np.asarray(corpus)  # a memory map's own class is slow to index
    middle, plain = _mean(corpus), exact.on_host(corpus, k, corpus_block=corpus_block)

    def answer(queries: np.ndarray, progress: Progress) -> Answer:
        queries = np.asarray(queries, np.float32)
        found = _screen_on_host(corpus, queries, middle, _kept(len(corpus), k), progress)
        return _ranked_on_host(corpus, queries, *found, middle=middle, k=k, corpus_block=corpus_block)

    return _search(answer, plain)


def largest_block(documents: int, k: int, corpus_block: int) -> int:
    """How many documents a device scores at once, see `device_screen.largest_block`."""
    return device_screen.largest_block(documents, _kept_on_devices(documents, k), corpus_block)


def _kept(count: int, k: int) -> int:
    """K', of `count` documents."""
    return min(count, k + max(k // 2, _MORE))


def _kept_on_devices(count: int, k: int) -> int:
    """The same where products are rounded once more, and one query to search for again costs what many do."""
    return min(count, k + 2 * max(k, _MORE))


def _search(answer: Callable[[np.ndarray, Progress], Answer], plain: exact.Search) -> exact.Search:
    """Search by what answers most queries, and by a plain search where that leaves the answer open."""
    hopeless = False

    def search(queries: np.ndarray, progress: Progress) -> tuple[np.ndarray, np.ndarray]:
        nonlocal hopeless
        if hopeless:
            return plain(queries, progress)
        ids, scores, again = answer(queries, progress)
        rest = np.flatnonzero(again)
        if len(rest):
            hopeless = len(rest) > len(queries) // 2
            uncounted = Progress('mine', total=None, unit='scores', every=float('inf'))
            ids[rest], scores[rest] = plain(queries[rest], uncounted)
        return ids, scores

    return search


def _mean(corpus: np.ndarray) -> np.ndarray:
    rows = np.unique(np.linspace(0, len(corpus) - 1, _SAMPLE).astype(np.int64))
    return np.mean(corpus[rows], axis=0, dtype=np.float64).astype(np.float32)


@functools.partial(jax.jit, donate_argnames='out', keep_unused=True)
def _products(queries: Array, docs: Array, middle: Array, reach: Array, out: Array) -> tuple[Array, Array]:
    """[q, n] float32 of rounded queries and documents, in `out`'s memory; and the largest norms so far."""
    near, norms = rounding.rounded(docs, middle)
    contracted = (((1,), (1,)), ((), ()))
    products = jax.lax.dot_general(queries, near, contracted, preferred_element_type=jnp.float32)
    return products, jnp.maximum(reach, norms)


def _screen_on_host(
    corpus: np.ndarray, queries: np.ndarray, middle: np.ndarray, wide: int, progress: Progress
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """As `device_screen.Chosen`, without the queries."""
    count, dim = corpus.shape
    width = 1 << (min(max(_SCORES // len(queries), 1), _WIDEST).bit_length() - 1)
    kept = exact.reservoirs(len(queries), wide, width)
    coarse = queries.astype(jnp.bfloat16)
    operands, center, reach = jax.device_put((coarse, middle, np.zeros(2, np.float32)))
    out = jax.device_put(np.zeros((len(queries), width), np.float32))
    view = []  # of `out`; emptied before its memory is given away again, for a thread may long hold `add`

    def add(part: tuple[slice, exact.Reservoir]) -> None:  # of the tile, below
        share, reservoir = part
        reservoir.add(view[0][share], tile.start)

    for tile in cut(count, width):
        docs = corpus[tile]
        if len(docs) < width:
            filling = np.broadcast_to(middle.astype(corpus.dtype), (width - len(docs), dim))
            docs = np.concatenate([docs, filling])
        # Products take all cores, and then the reservoirs do: side by side they would wait for each other.
        out, reach = _products(operands, docs, center, reach, out)
        view.append(np.from_dlpack(out)[:, : tile.stop - tile.start])  # `np.asarray` would stay with `out`
        host.each(add, kept)
        view.clear()
        progress.add(len(queries) * (tile.stop - tile.start))
    ids, products = exact.best(kept)
    dropped = products[:, -1] if wide < count else np.full(len(queries), -np.inf, np.float32)
    return ids, products, dropped, rounding.error(queries, coarse, np.asarray(reach), middle)


def _ranked_on_host(
    corpus: np.ndarray,
    queries: np.ndarray,
    ids: np.ndarray,
    products: np.ndarray,
    dropped: np.ndarray,
    error: np.ndarray,
    *,
    middle: np.ndarray,
    k: int,
    corpus_block: int,
) -> Answer:
    """The best k by float32 of what was chosen: of those rows whose products say that they may be."""
    unwanted = products < (products[:, k - 1] - 2 * error)[:, None]
    ids, scores = _rank(corpus, queries, ids, ~unwanted, k, corpus_block)
    return ids, scores, ~(scores[:, -1] - queries @ middle > dropped + error)  # again too where it is NaN


def _rank(
    corpus: np.ndarray, queries: np.ndarray, ids: np.ndarray, wanted: np.ndarray, k: int, corpus_block: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best k by float32 of those rows [q, K'] of each query that are wanted, and their scores."""
    scores = np.full(ids.shape, -np.inf, np.float32)

    def score(some: slice) -> None:
        for query in range(some.start, some.stop):  # of the block, below
            places = np.flatnonzero(inside[query])
            if not len(places):
                continue
            docs = np.asarray(block[ids[query, places] - start], np.float32)
            scores[query, places] = np.vecdot(docs, queries[query])  # row by row, so that equal rows tie

    for start in range(0, len(corpus), corpus_block):  # a disk is read in one direction
        block = corpus[start : start + corpus_block]
        inside = wanted & (ids >= start) & (ids < start + corpus_block)
        if np.count_nonzero(inside) > len(block):  # rows are wanted more than once, and widened once
            block = np.asarray(block, np.float32)
        host.each(score, cut(len(queries), _RANKED))
    keys = np.sort(exact.order_keys(scores, ids), axis=1)[:, : -k - 1 : -1]
    return exact.rows_of(keys), exact.scores_of(keys)


def _ranked(
    corpus: Array, found: device_screen.Chosen, middle: Array, *, k: int
) -> tuple[Array, Array, Array]:
    """An `Answer` on a device with the corpus [n, D], from all that was chosen."""
    ids = jnp.sort(found.ids, axis=-1)  # top_k prefers earlier positions: ties go to the lowest row

    def score(part: tuple[Array, Array]) -> Array:
        rows, query = part
        # Not a product of matrices, which would round, and of which equal rows need not tie.
        return jnp.sum(corpus[rows].astype(jnp.float32) * query, axis=-1)

    scores = jax.lax.map(score, (ids, found.queries), batch_size=_RANKED)
    scores, places = jax.lax.top_k(scores, k)
    center = jnp.matmul(found.queries, middle, precision=jax.lax.Precision.HIGHEST)
    again = ~(scores[:, -1] - center > found.dropped + found.error)  # so too where it is NaN
    return jnp.take_along_axis(ids, places, axis=-1), scores, again
