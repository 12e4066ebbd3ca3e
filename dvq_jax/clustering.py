"""k-means, product quantization and its optimized form.

k-means minimises Σ_i min_k ‖x_i − c_k‖² by Lloyd's iterations. PQ is k-means in each of the M subspaces
of the residuals. OPQ (Ge et al., CVPR 2013, the non-parametric form) alternates PQ with the orthogonal
Procrustes problem, R = U·Vᵀ of the SVD of Σ_i x_i·x̂_iᵀ. Passes over the sample are those of `points`.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from dvq_jax import preemption
from dvq_jax.errors import InputError
from dvq_jax.points import Points, place
from dvq_jax.progress import Progress
from dvq_jax.types import Array

_PRECISION = jax.lax.Precision.HIGHEST


def _repair(centers: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> None:
    """Moves each empty center beside one drawn by its number of points; both then share those points."""
    for group in range(len(centers)):
        weights = counts[group].astype(np.float64)
        for empty in np.flatnonzero(weights == 0):
            donors = np.maximum(weights - 1, 0)
            donor = rng.choice(len(donors), p=donors / donors.sum())
            tilt = np.where(np.arange(centers.shape[-1]) % 2, 1 - 2**-10, 1 + 2**-10)
            centers[group, empty] = centers[group, donor] * tilt
            centers[group, donor] *= 2 - tilt
            weights[empty] = weights[donor] = weights[donor] / 2


@functools.partial(jax.jit, static_argnames='count')
def _plus_plus(values: Array, key: Array, *, count: int) -> Array:
    """k-means++ seeding (Arthur and Vassilvitskii, 2007): each next row is drawn ∝ its squared distance."""
    squares = jnp.sum(jnp.square(values), axis=-1)
    uniforms = jax.random.uniform(key, (count,))

    def squared_distances(row):
        products = jnp.matmul(values, values[row], precision=_PRECISION)
        return jnp.maximum(squares - 2.0 * products + squares[row], 0.0).at[row].set(0.0)

    def pick(step, state):
        rows, nearest = state
        mass = jnp.cumsum(nearest)
        row = jnp.searchsorted(mass, uniforms[step] * mass[-1], side='right').clip(0, len(values) - 1)
        return rows.at[step].set(row), jnp.minimum(nearest, squared_distances(row))

    first = (uniforms[0] * len(values)).astype(jnp.int32)
    state = jnp.zeros(count, jnp.int32).at[0].set(first), squared_distances(first)
    return jax.lax.fori_loop(1, count, pick, state)[0]


def seed_centers(
    sample: np.ndarray, count: int, *, groups: int, seeding: Literal['sample', 'plusplus'], seed: int
) -> np.ndarray:
    """Rows of the sample to start k-means from.

    Args:
      sample: [n, D] float32.
      count: K, centers per group.
      groups: G, subspaces of width D/G, each seeded with rows of its own.
      seeding: 'sample' draws rows uniformly without replacement; 'plusplus' is k-means++, which costs as
        much as a Lloyd iteration but K dependent steps.
      seed: of the draw.

    Returns:
      [G, K, D/G] float32.

    Raises:
      InputError: fewer rows than centers.
    """
    if len(sample) < count:
        raise InputError(
            f'k-means: {count} centers need {count} documents or more, the training sample has '
            f'{len(sample)}; ask for fewer lists or codewords, or give more documents.'
        )
    grouped = sample.reshape(len(sample), groups, -1)
    centers = []
    for group in range(groups):
        if seeding == 'plusplus':
            key = jax.random.fold_in(jax.random.key(seed), group)
            rows = np.asarray(_plus_plus(jnp.asarray(grouped[:, group]), key, count=count))
        else:
            rows = np.random.default_rng((seed, group)).choice(len(sample), count, replace=False)
        centers.append(grouped[rows, group])
    return np.stack(centers).astype(np.float32)


def _lloyd(
    points: Points,
    centers: np.ndarray,
    *,
    iterations: int,
    seed: int,
    spherical: bool = False,
    progress: Progress | None = None,
) -> tuple[np.ndarray, float]:
    """Lloyd's iterations from the given centers; returns them and the distortion before the last move."""
    rng = np.random.default_rng(seed)
    distortion = float('nan')
    for _ in range(iterations):
        preemption.leave_if_noticed()
        totals, counts, squared = (np.array(x) for x in points.lloyd_sums(centers))
        distortion = float(squared / counts[0].sum())
        centers = totals / np.maximum(counts, 1)[..., None]
        _repair(centers, counts, rng)
        if spherical:
            centers /= np.maximum(np.linalg.norm(centers, axis=-1, keepdims=True), 1e-12)
        if progress is not None:
            progress.add(1, note=f'distortion {distortion:.5g}')
    return centers, distortion


def kmeans(
    sample: np.ndarray,
    count: int,
    *,
    iterations: int,
    groups: int = 1,
    seeding: Literal['sample', 'plusplus'] = 'sample',
    spherical: bool = False,
    seed: int = 0,
) -> np.ndarray:
    """k-means by Lloyd's iterations, in each of G subspaces: assign to the nearest center, move to the mean.

    A center without points is moved beside one that has many.

    Args:
      sample: [n, D] float32.
      count: K, centers per group.
      iterations: of assign and move.
      groups: G; divides D. More than one makes it product quantization.
      seeding: see `seed_centers`.
      spherical: scale the centers to unit norm after each iteration.
      seed: of seeding and repair.

    Returns:
      [G, K, D/G] float32.

    Raises:
      InputError: fewer rows than centers.
    """
    centers = seed_centers(sample, count, groups=groups, seeding=seeding, seed=seed)
    progress = Progress('k-means' if groups == 1 else 'PQ', total=iterations, unit='iterations')
    centers, distortion = _lloyd(
        place(sample), centers, iterations=iterations, seed=seed, spherical=spherical, progress=progress
    )
    progress.done(note=f'distortion {distortion:.5g}')
    return centers


def procrustes(moment: np.ndarray) -> np.ndarray:
    """The orthogonal R that minimises Σ_i ‖x_i·R − x̂_i‖²: R = U·Vᵀ where U·Σ·Vᵀ = Σ_i x_iᵀ·x̂_i.

    Args:
      moment: [D, D] float, Σ_i x_iᵀ·x̂_i.

    Returns:
      [D, D] float32.
    """
    left, _, right = np.linalg.svd(moment.astype(np.float64))
    return (left @ right).astype(np.float32)


def opq(
    sample: np.ndarray,
    *,
    codebooks: int,
    codewords: int,
    iterations: int,
    pq_iterations: int,
    seeding: Literal['sample', 'plusplus'] = 'sample',
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Optimized product quantization: a rotation and codebooks for the rotated points.

    Alternates one k-means iteration of the codebooks with Procrustes; the codebooks carry over.

    Args:
      sample: [n, D] float32.
      codebooks: M; divides D.
      codewords: K.
      iterations: alternations.
      pq_iterations: k-means iterations in the final rotation.
      seeding: see `seed_centers`.
      seed: of seeding and repair.

    Returns:
      codebooks [M, K, S] float32 and rotation [D, D] float32.

    Raises:
      InputError: fewer rows than codewords.
    """
    centers = seed_centers(sample, codewords, groups=codebooks, seeding=seeding, seed=seed)
    points = place(sample)
    rotation = np.eye(sample.shape[1], dtype=np.float32)
    progress = Progress('OPQ', total=iterations + pq_iterations, unit='iterations')
    for step in range(iterations):
        rotated = points.rotated(rotation)
        centers, distortion = _lloyd(rotated, centers, iterations=1, seed=seed + step)
        rotation = procrustes(rotation @ np.asarray(rotated.moment(centers)))
        progress.add(1, note=f'distortion {distortion:.5g}')
    centers, distortion = _lloyd(
        points.rotated(rotation), centers, iterations=pq_iterations, seed=seed, progress=progress
    )
    progress.done(note=f'distortion {distortion:.5g}')
    return centers, rotation
