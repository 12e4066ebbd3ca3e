"""How much device memory a training step takes, before it is compiled."""

from typing import Literal

from dvq_jax.quantizer import DISTANCES
from dvq_jax.transformer import Architecture

_BYTES = 4  # of a float32

# Floats that a step holds at its peak beside its arguments, for each float of: the documents of a device;
# those that its queries are scored against, as teacher and students have them; the distances of one codebook;
# scores, and what the losses make of them; what is trained.
_OWN, _POOLED, _DISTANCES, _SCORES, _UPDATES = 0.6, 2.75, 1.0, 4.5, 1.65
# The same for a device's documents where the choice is relaxed, and for distances to centroids that are held
# at once where lists are chosen in the step.
_RELAXED, _DYNAMIC = 1.8, 1.2
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


def step_bytes(
    *,
    batch_size: int,
    candidates: int,
    dim: int,
    lists: int,
    codewords: int,
    devices: int = 1,
    in_batch: bool = True,
    estimator: Literal['hard', 'softmax'] = 'hard',
    dynamic: bool = False,
    tower_parameters: int = 0,
    tower_floats: int = 0,
) -> int:
    """Peak device memory of a training step, on each device.

    With n = B·C/devices documents brought by a device's b = B/devices queries, n' = n·devices documents that
    each query is scored against (in-batch; else its own C, so that n' = n and b·C scores), θ = L·D + K·D +
    tower parameters trained by Adam and a rotation of D² values, in floats:

        arguments   3·θ + D² + n·D
        in between  0.6·n·D + 2.75·n'·D + 1.0·n·K + 4.5·b·n' + 1.65·(θ + D²)
        'softmax'   1.8·n·D
        dynamic     1.2·min(n·L, 2²²)

    The number of codebooks does not matter: nothing is of size n·M·K. The factors were fitted to what XLA's
    CPU compiler plans for 27 shapes (B 64 to 512, C 16 to 200, D 128 to 768, M 16 to 96, K 16 and 256, L to
    10 000, 1 to 8 devices) with the estimator 'hard' and ListNet, which lie within 10 %, and for 24 of the
    other two, within 30 %. A GPU's compiler fuses more.

    Args:
      batch_size: B, queries in a global batch.
      candidates: C, documents that each brings.
      dim: D.
      lists: L.
      codewords: K.
      devices: that share the batch.
      in_batch: whether queries are scored against each other's documents.
      estimator: see `quantizer.straight_through`.
      dynamic: whether documents are re-assigned to lists at every step.
      tower_parameters: trained in the query tower.
      tower_floats: that a tower holds in between, `encoder_floats` of one that reads text.

    Returns:
      Bytes.

    Example:
      step_bytes(batch_size=128, candidates=200, dim=768, lists=10_000, codewords=256) / 2**30
    """
    queries = batch_size // devices
    docs = queries * candidates
    pooled = docs * devices if in_batch else docs
    scores = queries * (pooled if in_batch else candidates)
    trained = lists * dim + codewords * dim + tower_parameters
    arguments = 3 * trained + dim**2 + docs * dim
    between = _OWN * docs * dim + _POOLED * pooled * dim + _DISTANCES * docs * codewords
    between += _SCORES * scores + _UPDATES * (trained + dim**2)
    if estimator == 'softmax':
        between += _RELAXED * docs * dim
    if dynamic:
        between += _DYNAMIC * min(docs * lists, DISTANCES)
    return round(_BYTES * (arguments + between + tower_floats))
