"""The similarity functions between teacher and student scores (eqs. 7 to 11 of the paper), by name.

Every loss takes scores first and the rest as keywords, and returns one value per query; the caller averages
over the global batch. A document whose `where` is False (padding) takes no part; a query with none left costs
0. Below, T and S are teacher and student scores divided by the temperature, n the number of documents that
take part, and σ the softmax over them.

With unit-norm embeddings scores lie in [−1, 1], and the temperature decides what a list-wise loss can see:
about 0.05 works, 1.0 trains next to nothing.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dvq_jax.errors import InputError
from dvq_jax.types import Array

PAIRS = 2**20  # of documents, for all queries together, that are held at once: what a cache has room for


def _mask(where: Array | None, scores: Array) -> Array:
    return jnp.ones(scores.shape, bool) if where is None else jnp.broadcast_to(where, scores.shape)


def _mean(values: Array, where: Array) -> Array:
    count = jnp.sum(where, axis=-1)
    return jnp.sum(jnp.where(where, values, 0.0), axis=-1) / jnp.maximum(count, 1)


def _log_softmax(scores: Array, where: Array) -> Array:
    return jax.nn.log_softmax(jnp.where(where, scores, jnp.finfo(scores.dtype).min), axis=-1)


def mse(teacher: Array, student: Array, *, where: Array | None = None, temperature: float = 1.0) -> Array:
    """Squared difference of scores (eq. 7): 1/n Σ_d (T_d − S_d)².

    Args:
      teacher: [..., C] float32, teacher scores.
      student: [..., C] float32, student scores.
      where: [..., C] bool, the documents that take part; None for all.
      temperature: divides both scores.

    Returns:
      [...] float32.
    """
    where = _mask(where, student)
    return _mean(jnp.square((teacher - student) / temperature), where)


def margin_mse(
    teacher: Array, student: Array, *, where: Array | None = None, temperature: float = 1.0
) -> Array:
    """Squared difference of margins over all pairs (eq. 8): 1/n² Σ_{d,d'} ((T_d − T_d') − (S_d − S_d'))².

    With e = T − S this is 2·(mean(e²) − mean(e)²), twice the variance of e, so no pair is ever formed.

    Args:
      teacher: [..., C] float32, teacher scores.
      student: [..., C] float32, student scores.
      where: [..., C] bool, the documents that take part; None for all.
      temperature: divides both scores.

    Returns:
      [...] float32.
    """
    where = _mask(where, student)
    error = (teacher - student) / temperature
    centered = error - _mean(error, where)[..., None]
    return 2.0 * _mean(jnp.square(centered), where)


def pair_width(documents: int, *, scores: int) -> int:
    """How many of a query's documents `ranknet` compares with all of them at once, for all queries.

    Args:
      documents: C.
      scores: of all queries.

    Returns:
      At most 64, of even blocks; at most `PAIRS` pairs, unless it is 1. From two documents on there are two
      blocks at least: of one XLA makes no loop, and keeps all that it holds for the gradient.
    """
    blocks = max(2, -(-documents // max(1, min(64, PAIRS // scores))))
    return -(-documents // blocks)


def ranknet(teacher: Array, student: Array, *, where: Array | None = None, temperature: float = 1.0) -> Array:
    """Pairwise logistic loss weighted by the teacher's margin (eq. 9).

    2/(n(n−1)) Σ_{T_d > T_d'} (T_d − T_d') · log(1 + exp(S_d' − S_d)): the mean over unordered pairs.

    Pairs are summed block by block and made again in the backward pass: memory is bounded, not C² a query.

    Args:
      teacher: [..., C] float32, teacher scores.
      student: [..., C] float32, student scores.
      where: [..., C] bool, the documents that take part; None for all.
      temperature: divides both scores.

    Returns:
      [...] float32.
    """
    where = _mask(where, student)
    teacher, student = teacher / temperature, student / temperature
    count = student.shape[-1]
    width = pair_width(count, scores=student.size)
    blocks = -(-count // width)
    pad = [(0, 0)] * (student.ndim - 1) + [(0, blocks * width - count)]

    def blocked(values):
        padded = jnp.pad(values, pad)
        return jnp.moveaxis(padded.reshape(*values.shape[:-1], blocks, width), -2, 0)

    @jax.checkpoint
    def add_block(total, block):
        upper_teacher, upper_student, upper_where = block
        margin = upper_teacher[..., :, None] - teacher[..., None, :]
        valid = (margin > 0) & upper_where[..., :, None] & where[..., None, :]
        cost = jax.nn.softplus(student[..., None, :] - upper_student[..., :, None])
        return total + jnp.sum(jnp.where(valid, margin * cost, 0.0), axis=(-2, -1)), None

    # The zero is made from the scores so that it varies over the mapped axis as they do.
    zero = jnp.sum(student, axis=-1) * 0.0
    total, _ = jax.lax.scan(add_block, zero, (blocked(teacher), blocked(student), blocked(where)))
    n = jnp.sum(where, axis=-1)
    return total * 2.0 / jnp.maximum(n * (n - 1), 1)


def kl(teacher: Array, student: Array, *, where: Array | None = None, temperature: float = 1.0) -> Array:
    """KL divergence of the student's distribution from the teacher's (eq. 11).

    KL(σ(S) ‖ σ(T)) = Σ_d σ(S)_d · (log σ(S)_d − log σ(T)_d): the student comes first, as in the paper.

    Args:
      teacher: [..., C] float32, teacher scores.
      student: [..., C] float32, student scores.
      where: [..., C] bool, the documents that take part; None for all.
      temperature: divides both scores.

    Returns:
      [...] float32.
    """
    where = _mask(where, student)
    log_teacher = _log_softmax(teacher / temperature, where)
    log_student = _log_softmax(student / temperature, where)
    terms = jnp.exp(log_student) * (log_student - log_teacher)
    return jnp.sum(jnp.where(where, terms, 0.0), axis=-1)


def listnet(teacher: Array, student: Array, *, where: Array | None = None, temperature: float = 1.0) -> Array:
    """Cross-entropy of the two softmaxes (the paper's choice): −Σ_d σ(T)_d · log σ(S)_d.

    Args:
      teacher: [..., C] float32, teacher scores.
      student: [..., C] float32, student scores.
      where: [..., C] bool, the documents that take part; None for all.
      temperature: divides both scores.

    Returns:
      [...] float32.
    """
    where = _mask(where, student)
    target = jnp.exp(_log_softmax(teacher / temperature, where))
    log_student = _log_softmax(student / temperature, where)
    return -jnp.sum(jnp.where(where, target * log_student, 0.0), axis=-1)


def contrastive(
    positives: Array, student: Array, *, where: Array | None = None, temperature: float = 1.0
) -> Array:
    """Softmax loss of the labelled documents: −1/|P| Σ_{p∈P} log σ(S)_p.

    Args:
      positives: [..., C] bool, the query's relevant documents.
      student: [..., C] float32, student scores.
      where: [..., C] bool, the documents that take part; None for all.
      temperature: divides the scores.

    Returns:
      [...] float32; 0 for a query with no relevant document among the candidates.
    """
    where = _mask(where, student)
    return -_mean(_log_softmax(student / temperature, where), where & positives)


DISTILLATION: dict[str, Callable[..., Array]] = {
    'mse': mse,
    'margin_mse': margin_mse,
    'ranknet': ranknet,
    'kl': kl,
    'listnet': listnet,
}
NAMES = (*DISTILLATION, 'contrastive')


class Term(NamedTuple):
    """One weighted loss of an objective."""

    name: str
    weight: float


def parse_objective(text: str) -> tuple[Term, ...]:
    """Reads an objective: names joined by '+', each with an optional weight.

    Args:
      text: such as 'listnet' or 'listnet+0.5*contrastive'.

    Returns:
      The terms, in order.

    Raises:
      InputError: an unknown name, or a weight that is not a positive number.

    Example:
      parse_objective('listnet+0.5*contrastive')  # (Term('listnet', 1.0), Term('contrastive', 0.5))
    """
    terms = []
    for part in text.split('+'):
        weight, _, name = part.strip().rpartition('*')
        name = name.strip()
        if name not in NAMES:
            raise InputError(f'loss {text!r}: {name!r} is not a loss; use one of {", ".join(NAMES)}.')
        try:
            value = float(weight or 1.0)
        except ValueError:
            value = -1.0
        if not 0 < value < float('inf'):
            raise InputError(f'loss {text!r}: the weight {weight!r} is not a positive number.')
        terms.append(Term(name, value))
    return tuple(terms)


def objective(
    terms: tuple[Term, ...],
    teacher: Array,
    student: Array,
    positives: Array,
    *,
    where: Array | None = None,
    temperature: float = 1.0,
) -> Array:
    """The weighted sum of an objective's losses, per query.

    Args:
      terms: from `parse_objective`.
      teacher: [..., C] float32, teacher scores.
      student: [..., C] float32, student scores.
      positives: [..., C] bool, the query's relevant documents.
      where: [..., C] bool, the documents that take part; None for all.
      temperature: divides the scores.

    Returns:
      [...] float32.
    """
    total = jnp.zeros(student.shape[:-1], student.dtype)
    for name, weight in terms:
        if name == 'contrastive':
            value = contrastive(positives, student, where=where, temperature=temperature)
        else:
            value = DISTILLATION[name](teacher, student, where=where, temperature=temperature)
        total += weight * value
    return total
