"""How much device memory a training step takes, before it is compiled."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Literal

from dvq_jax import nearest_gpu
from dvq_jax.losses import Term, pair_width
from dvq_jax.quantizer import block_size
from dvq_jax.transformer import Architecture

_BYTES = 4  # of a float32

# Floats that a step holds beside its arguments by the CPU's compiler, see `step_bytes`. All along, for each
# parameter that is trained, code of a document, and pair of documents that RankNet compares:
_UPDATED, _CODE, _PAIR = 1.1, 2.6, 2.0
# Then, for each float of: documents while codes are chosen, and where they are copied; pooled ones;
# distances; documents that are scored, and where queries are trained; documents whose choice is relaxed, and
# where centroids are trained.
_CHOSEN, _COPIED, _POOLED, _DISTANCE, _SCORED, _ASKED = 0.4, 3.3, 0.9, 3.5, 1.2, 1.3
_RELAXED, _MOVED = 1.0, 1.9
# Floats of each token in each layer of a text encoder, for each of: D, the inner width, heads times tokens.
_HIDDEN, _INNER, _ATTENTION = 12.6, 3.7, 3.8


def encoder_floats(shape: Architecture, *, queries: int, length: int, remat: bool = False) -> int:
    """Hidden states that a text encoder keeps for its gradient.

    With H heads, an inner width of I, b queries of T tokens and n layers, in floats:

        n·b·T·(12.6·D + 3.7·I + 3.8·H·T)

    fitted to what XLA's CPU compiler plans for shapes from MiniLM's to BERT-base's. With `remat` one layer's,
    and n·b·T·D of all layers' inputs: by arithmetic alone, for the CPU's compiler undoes it.

    Args:
      shape: of the encoder.
      queries: b, of a device.
      length: T, tokens that each is padded to.
      remat: hidden states are computed again for the gradient.

    Returns:
      Floats.
    """
    tokens = queries * length
    layer = _HIDDEN * shape.dim + _INNER * shape.inner + _ATTENTION * shape.heads * length
    return round(tokens * (layer + shape.layers * shape.dim if remat else shape.layers * layer))


@dataclasses.dataclass(frozen=True)
class Step:
    """What a training step's memory depends on.

    Attributes:
      batch_size: B, queries in a global batch.
      candidates: C, documents that each brings.
      dim: D.
      lists: L.
      codebooks: M.
      codewords: K.
      terms: the losses, from `losses.parse_objective`.
      devices: that share the batch.
      in_batch: whether queries are scored against each other's documents.
      estimator: see `quantizer.straight_through`.
      dynamic: whether documents are re-assigned to lists at every step.
      trained: groups that the optimizer does not freeze.
      tower_parameters: of the query tower.
      tower_floats: that a tower holds in between, `encoder_floats` of one that reads text.
    """

    batch_size: int
    candidates: int
    dim: int
    lists: int
    codebooks: int
    codewords: int
    terms: tuple[Term, ...]
    devices: int = 1
    in_batch: bool = True
    estimator: Literal['hard', 'softmax'] = 'hard'
    dynamic: bool = False
    trained: Collection[str] = ('centroids', 'codebooks', 'tower')
    tower_parameters: int = 0
    tower_floats: int = 0

    @property
    def documents(self) -> int:
        """n, what a device's queries bring, where no two of them bring the same."""
        return self.batch_size // self.devices * self.candidates

    @property
    def pooled(self) -> int:
        """p, what all queries bring, where they are scored against it."""
        return self.documents * self.devices if self.in_batch else 0

    @property
    def scores(self) -> int:
        """b·n' of a device's queries."""
        return self.batch_size // self.devices * self.scored

    @property
    def scored(self) -> int:
        """n', the documents that a query is scored against."""
        return self.pooled or self.candidates


def step_bytes(step: Step, *, platform: str = 'cpu') -> int:
    """Peak device memory of a training step, on each device.

    With n = B·C/devices documents of a device's b = B/devices queries, p = n·devices documents that are
    pooled (in-batch; else 0), n' documents that a query is scored against (p, or C), and θ of all Θ
    parameters trained, in floats:

        arguments   Θ + 2·θ + n·D

    and beside them, by the compiler for CPUs (TPUs' plans less, for it keeps much on the chip),

        all along   1.1·θ + 2.6·n·M + 2·pairs
        and the most of
          codes     (0.4·n + 0.9·p)·D + 3.5·min(n·K, 2²²)
          copies    (3.3·n + 0.9·p)·D + r
          lists     3.5·min(n·L, 2²²) + r, where they are dynamic
          scores    (1.2 + 1.3·[tower or rotation trained])·max(n, p)·D + m·b·n' + r

    Here r = (1 + 1.9·[centroids trained])·n·D with the estimator 'softmax', else 0; pairs are those that
    RankNet compares at once, at most 2²⁰ unless b·n' is more; for m see `_matrices`.

    A GPU's compiler fuses more, and does more at once. With p' = p where there are several devices, else 0,

        all along   0.7·θ + 1.7·n·M + 0.2·pairs + 3.7 MiB for the products' library
        and the most of
          codes     0.85·n·D + 0.95·n·M·max(16, 2^⌈log₂ S⌉), or without its kernel + 3.5·min(n·K, 2²²)
          copies    (1.15·n + 3.45·p')·D + r, and with 'softmax' + 3.5·min(n·K, 2²²)
          lists     (1.3, or with 'softmax' 3.1)·min(n·L, 2²²) + 1.85·n·D + r/4, where they are dynamic
          scores    (0.85·n + 3.35·p' + 1.15·[tower or rotation trained]·max(n, p))·D
                    + (4.75 + 9·[RankNet])·b·n' + r

    where r = (1.2 + 0.4·[centroids trained] + 1.6·[dynamic])·n·D with 'softmax', else 0.

    The factors were fitted to what XLA plans for CPUs and for an H100. `benchmarks/step_memory.py` draws
    steps, compiles them, and says how many of those above 10 MiB are within 20 % (docs/performance.md).

    Args:
      step: the step.
      platform: of the devices, as JAX names it.

    Returns:
      Bytes.

    Example:
      terms = losses.parse_objective('listnet')
      sizes = {'batch_size': 128, 'candidates': 200, 'dim': 768, 'lists': 10_000, 'codebooks': 64}
      step_bytes(Step(**sizes, codewords=256, terms=terms)) / 2**30
    """
    parameters = {
        'centroids': step.lists * step.dim,
        'codebooks': step.codewords * step.dim,
        'rotation': step.dim**2,
        'tower': step.tower_parameters,
    }
    trained = {group: parameters[group] for group in step.trained if parameters[group]}
    moments = sum(trained.values())
    arguments = sum(parameters.values()) + 2 * moments + step.documents * step.dim
    beside = (_beside_on_gpu if platform == 'gpu' else _beside)(step, trained)
    return round(_BYTES * (arguments + beside + step.tower_floats))


def _beside(step: Step, trained: Mapping[str, int]) -> float:
    documents, pooled = step.documents * step.dim, step.pooled * step.dim
    relaxed = (_RELAXED + _MOVED * ('centroids' in trained)) * documents * (step.estimator == 'softmax')
    peaks = (
        _CHOSEN * documents + _POOLED * pooled + _distances(step, step.codewords),
        _COPIED * documents + _POOLED * pooled + relaxed,
        _distances(step, step.lists) * step.dynamic + relaxed,
        (_SCORED + _ASKED * _asked(trained)) * max(documents, pooled)
        + _matrices(step) * step.scores
        + relaxed,
    )
    moved = _UPDATED * sum(trained.values())
    return moved + _CODE * step.documents * step.codebooks + _PAIR * _pairs(step) + max(peaks)


def _beside_on_gpu(step: Step, trained: Mapping[str, int]) -> float:
    """With the factors of `step_bytes`'s docstring."""
    documents, pooled = step.documents * step.dim, step.pooled * step.dim * (step.devices > 1)
    soft, ranked = step.estimator == 'softmax', any(term.name == 'ranknet' for term in step.terms)
    relaxed = (1.2 + 0.4 * ('centroids' in trained) + 1.6 * step.dynamic) * documents * soft
    width, distances = step.dim // step.codebooks, 3.5 * _compared(step, step.codewords)
    if nearest_gpu.fits(step.codewords, width):
        found = 0.95 * step.documents * step.codebooks * nearest_gpu.padded(width)
    else:
        found = distances
    assigned = (3.1 if soft else 1.3) * _compared(step, step.lists) + 1.85 * documents + relaxed / 4
    asked = _asked(trained) * max(documents, step.pooled * step.dim)
    peaks = (
        0.85 * documents + found,
        1.15 * documents + 3.45 * pooled + relaxed + distances * soft,
        assigned * step.dynamic,
        0.85 * documents + 3.35 * pooled + 1.15 * asked + (4.75 + 9 * ranked) * step.scores + relaxed,
    )
    moved = 0.7 * sum(trained.values())
    codes, pairs = 1.7 * step.documents * step.codebooks, 0.2 * _pairs(step)
    library = 3.7 * 2**20 / _BYTES
    return moved + codes + pairs + library + max(peaks)


def _asked(trained: Mapping[str, int]) -> bool:
    """Whether a gradient goes to queries before they are scored."""
    return 'tower' in trained or 'rotation' in trained


def _compared(step: Step, centers: int) -> int:
    """Distances that are there at once."""
    return block_size(step.documents, centers=centers) * centers


def _distances(step: Step, centers: int) -> float:
    return _DISTANCE * _compared(step, centers)


def _pairs(step: Step) -> int:
    ranked = any(term.name == 'ranknet' for term in step.terms)
    return step.scores * pair_width(step.scored, scores=step.scores) * ranked


def _matrices(step: Step) -> float:
    """m, how often a step holds the scores of all its queries: 2.3 + 2.3·t, with t losses.

    KL adds 1, RankNet 6, and 3 more beside another loss in frozen lists. The contrastive loss counts 1/2
    beside another; MSE 1/2 alone, and 0 where margin-MSE is all there is beside it. Where queries have their
    own documents, in frozen lists, XLA does not take one student after the other: 2.3 + 3.75·t, and KL adds
    nothing.
    """
    names = {term.name for term in step.terms}
    several = len(names) > 1
    count = len(names) - ('contrastive' in names and several) / 2
    if names <= {'mse', 'margin_mse'}:
        count = 1 if 'margin_mse' in names else 1 / 2
    each, more = (2.3, 'kl' in names) if step.dynamic or step.in_batch else (3.75, 0)
    ranked = ('ranknet' in names) * (6 + 3 * (several and not step.dynamic))
    return 2.3 + each * count + more + ranked
