"""Which documents a query is trained on: ground truth, the teacher's Top-K, in-batch, and their mixtures.

A mixture is written as its sources joined by '+', which covers every row of the paper's Table 3:

| text | each query brings | and is scored against |
|---|---|---|
| 'gt' | one of its relevant documents | what it brought |
| 'top200' | all of the teacher's first 200 | what it brought |
| 'top200:10' | 10 drawn from the teacher's first 200 | what it brought |
| 'gt+ib' | one of its relevant documents | what all queries of the global batch brought |
| 'gt+top200:10+ib' | a relevant document and 10 drawn | what all queries of the global batch brought |

Documents are drawn on the host, for all queries of a global batch by one generator, so that a draw depends on
the seed and the step alone and not on the number of processes or devices. In-batch, what several queries
bring is quantized once. Where each query has its own, to lay these out again costs more than that would save.
"""

import dataclasses
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dvq_jax.columns import Columns
from dvq_jax.errors import InputError
from dvq_jax.types import Array

_TOP = re.compile(r'top(\d+)(?::(\d+))?')
_WIDTHS = 8  # numbers of documents that a step is compiled for, at most


@dataclasses.dataclass(frozen=True)
class Mixture:
    """The sources of a query's candidates.

    Attributes:
      ground_truth: bring one relevant document, if the query has any.
      top_k: draw from the teacher's first `top_k` documents; 0 for none.
      draw: how many of them; equal to `top_k` for all.
      in_batch: score each query against what every query of the global batch brought.
    """

    ground_truth: bool
    top_k: int
    draw: int
    in_batch: bool

    @property
    def size(self) -> int:
        """C, the documents that each query brings."""
        return int(self.ground_truth) + self.draw


def parse_mixture(text: str) -> Mixture:
    """Reads a mixture.

    Args:
      text: such as 'gt+top200:10+ib'; see the module's table.

    Returns:
      The mixture.

    Raises:
      InputError: an unknown or repeated source, no source that brings documents, or a draw that is not
        in [1, K].

    Example:
      parse_mixture('top200:8+ib')  # Mixture(ground_truth=False, top_k=200, draw=8, in_batch=True)
    """
    ground_truth = in_batch = False
    top_k = draw = 0
    parts = [part.strip() for part in text.split('+')]
    kinds = [re.sub(r'\d.*', '', part) for part in parts]
    if len(set(kinds)) != len(kinds):
        raise InputError(f'candidates {text!r}: a source is given twice; give each of gt, topK, ib once.')
    for part in parts:
        if part == 'gt':
            ground_truth = True
        elif part == 'ib':
            in_batch = True
        elif match := _TOP.fullmatch(part):
            top_k = int(match[1])
            draw = int(match[2] or top_k)
            if not 1 <= draw <= top_k:
                raise InputError(f'candidates {text!r}: cannot draw {draw} of {top_k}; draw 1 to {top_k}.')
        else:
            raise InputError(f'candidates {text!r}: {part!r} is not a source; use gt, topK, topK:n or ib.')
    if not ground_truth and not top_k:
        raise InputError(f'candidates {text!r}: queries bring no document; add gt or topK, as in top200:8.')
    return Mixture(ground_truth=ground_truth, top_k=top_k, draw=draw, in_batch=in_batch)


class Draw(NamedTuple):
    """What chance decides for n queries, before their examples are read.

    Attributes:
      positives: [n] float64 in [0, 1), which of a query's relevant documents.
      ranks: [n, draw] int64, ascending, which of the teacher's documents.
    """

    positives: np.ndarray
    ranks: np.ndarray


def draw(mixture: Mixture, count: int, rng: np.random.Generator) -> Draw:
    """Draws for some queries.

    Args:
      mixture: the sources.
      count: n.
      rng: of this batch.

    Returns:
      The draw.
    """
    positives = rng.random(count)
    if mixture.draw == mixture.top_k:
        return Draw(positives, np.tile(np.arange(mixture.top_k), (count, 1)))
    chances = rng.random((count, mixture.top_k), np.float32)
    ranks = np.argpartition(chances, mixture.draw, axis=1)[:, : mixture.draw]
    return Draw(positives, np.sort(ranks, axis=1))


def bring(mixture: Mixture, drawn: Draw, examples: Columns) -> np.ndarray:
    """The documents that queries bring.

    Args:
      mixture: the sources.
      drawn: from `draw`, for the same mixture and as many queries.
      examples: n queries, with Top-K of at least mixture.top_k.

    Returns:
      [n, C] int32 rows of the corpus, a query's each once; -1 first where it has no relevant document, or has
      drawn it among the others.
    """
    own = np.take_along_axis(examples.topk_ids, drawn.ranks, axis=1)
    if not mixture.ground_truth:
        return own
    counts = np.diff(examples.offsets)
    labelled, first = counts > 0, np.full((len(own), 1), -1, np.int32)
    places = examples.offsets[:-1] + (drawn.positives * counts).astype(np.int64)
    first[labelled, 0] = examples.positives[places[labelled]]
    first[np.any(own == first, axis=1)] = -1
    return np.concatenate([first, own], axis=1)


def distinct(brought: np.ndarray) -> np.ndarray:
    """The documents of a global batch, each once, dealt out to the devices.

    Args:
      brought: [devices, ...] int32, what the queries of all devices bring, as many each; -1 pads.

    Returns:
      [devices, n] int32, rows of the corpus in ascending order; -1 fills up. n is one of at most 8 numbers,
      for a step is compiled for each that comes.

    Example:
      distinct(np.array([[7, 3, 7], [-1, 3, 5]]))  # [[3, 5], [7, -1]]
    """
    ordered = np.sort(brought, axis=None)  # `np.unique` takes 6 to 15 times as long
    found = ordered[np.diff(ordered, prepend=-1) > 0]
    width = _width(-(-len(found) // len(brought)), most=brought[0].size)
    doc_ids = np.full((len(brought), width), -1, np.int32)
    doc_ids.reshape(-1)[: len(found)] = found
    return doc_ids


def _width(count: int, *, most: int) -> int:
    """The count, at least 1 and at most `most`, rounded up to a multiple of an 8th of that."""
    step = -(-most // _WIDTHS)
    return min(most, step * -(-max(count, 1) // step))


def pool(values: Array, axis_name: str) -> Array:
    """Concatenates what every device of the mapped axis brought, in device order; differentiable.

    Args:
      values: [n, ...] this device's rows.
      axis_name: the mapped axis.

    Returns:
      [devices · n, ...].
    """
    return jax.lax.all_gather(values, axis_name, axis=0, tiled=True)


def is_positive(doc_ids: Array, positives: Array) -> Array:
    """Which candidates are relevant to each query.

    Args:
      doc_ids: [b, n] or [n] int32, candidates; -1 pads.
      positives: [b, G] int32, relevant documents of each query; -1 pads.

    Returns:
      [b, n] bool.
    """

    def add(found: Array, column: Array) -> tuple[Array, None]:
        return found | (doc_ids == column[:, None]), None

    # One of a query's positives at a time: [b, n, G] is never held.
    none = jnp.zeros((len(positives), doc_ids.shape[-1]), bool)
    return jax.lax.scan(add, none, positives.T)[0] & (doc_ids >= 0)
