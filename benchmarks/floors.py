"""What each hot path cannot do without, FLOPs and bytes, and what the device does at most of either.

Letters are those of `dvq_jax.types`. A multiplication and an addition are two FLOPs; only matrix products are
counted, and of bytes what goes to memory and back where all that fits a cache stays in it. So no program is
faster than `Floor.seconds`, and some cannot reach it. docs/performance.md has the same as a table.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dvq_jax import host
from dvq_jax.quantizer import Products
from dvq_jax.teacher import QUERY_BLOCK
from dvq_jax.types import Array

_FLOAT = 4  # bytes


@dataclasses.dataclass(frozen=True)
class Peaks:
    """What a device does at most in a second.

    Attributes:
      float32: FLOPs of matrix products of float32 operands, none of which is rounded.
      bfloat16: the same of bfloat16 operands, summed in float32.
      bytes: that its memory reads and writes.
    """

    float32: float
    bfloat16: float
    bytes: float


@dataclasses.dataclass(frozen=True)
class Floor:
    """FLOPs of matrix products, and bytes that must move."""

    flops: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: 'Floor') -> 'Floor':
        return Floor(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: float) -> 'Floor':
        return Floor(times * self.flops, times * self.bytes)

    def seconds(self, peaks: Peaks, products: Products) -> float:
        """max(FLOPs / peak of such products, bytes / bandwidth)."""
        return max(self.flops / getattr(peaks, products), self.bytes / peaks.bytes)


def mining(*, documents: int, queries: int, dim: int, topk: int, width: int) -> Floor:
    """2·Q·N·D FLOPs; the corpus once for each block of queries, w·N·D, and results, 8·Q·k.

    Args:
      documents, queries, dim: N, Q, D.
      topk: k, documents that a query gets.
      width: w, bytes of a number of the corpus.
    """
    reads = -(-queries // QUERY_BLOCK)
    return Floor(2 * queries * documents * dim, reads * width * documents * dim + 8 * queries * topk)


def encoding(*, documents: int, dim: int, lists: int, codebooks: int, codewords: int, width: int) -> Floor:
    """Rotation, assignment and codes: 2·N·D² + 2·N·L·D + 2·N·K·D FLOPs; w·N·D read, (M + 4)·N written.

    Args:
      documents, dim, lists, codebooks, codewords: N, D, L, M, K; L is 0 where lists are decided.
      width: w, bytes of a number of the corpus.
    """
    flops = 2 * documents * dim * (dim + lists + codewords)
    return Floor(flops, documents * (width * dim + codebooks + 4))


def choosing(
    *,
    documents: int,
    queries: int,
    wanted: int,
    pairs: int,
    dim: int,
    codebooks: int,
    codewords: int,
    sweeps: int,
    width: int,
) -> Floor:
    """Codes for queries, in lists that are decided: `encoding`, then with S = D/M

    - of each pair 2·D·S FLOPs for the quadratic form, and 4·D + T·4·D for what is scored and still missing;
    - of each document that is wanted (S + 1)·K·D for the squares of the codewords, and T·2·D·(K + S);
    - of each query 4·D bytes.

    Args:
      documents, queries, dim, codebooks, codewords: N, Q, D, M, K.
      wanted: documents that have queries.
      pairs: of such a document and a query.
      sweeps: T.
      width: w, bytes of a number of the corpus.
    """
    part = dim // codebooks
    of_pairs = pairs * dim * (2 * part + 4 + 4 * sweeps)
    of_documents = wanted * dim * ((part + 1) * codewords + 2 * sweeps * (codewords + part))
    about = {'documents': documents, 'dim': dim, 'codebooks': codebooks, 'codewords': codewords}
    return encoding(**about, lists=0, width=width) + Floor(of_pairs + of_documents, _FLOAT * queries * dim)


def assignment(*, documents: int, dim: int, lists: int, width: int) -> Floor:
    """2·N·L·D FLOPs; w·N·D read, 4·N written.

    Args:
      documents, dim, lists: N, D, L.
      width: w, bytes of a number of the corpus.
    """
    return Floor(2 * documents * lists * dim, documents * (width * dim + 4))


def kmeans(*, documents: int, dim: int, centers: int, iterations: int) -> Floor:
    """T·(2·n·L·D + n·D) FLOPs; 4·T·n·D read. PQ of K codewords is k-means of K centers.

    Args:
      documents, dim, centers, iterations: n, D, L, T.
    """
    flops = documents * dim * (2 * centers + 1)
    return Floor(flops, _FLOAT * documents * dim) * iterations


def opq(*, documents: int, dim: int, codewords: int, iterations: int, pq_iterations: int) -> Floor:
    """T iterations of PQ, each with 4·n·D² FLOPs for rotation and moment and 4·n·D more read; then T' of PQ.

    The SVD of each iteration, O(D³), is left out.

    Args:
      documents, dim, codewords, iterations, pq_iterations: n, D, K, T, T'.
    """
    fit = {'documents': documents, 'dim': dim, 'centers': codewords}
    turned = Floor(4 * documents * dim**2, _FLOAT * documents * dim) * iterations
    return kmeans(**fit, iterations=iterations + pq_iterations) + turned


def step(
    *,
    batch_size: int,
    candidates: int,
    dim: int,
    lists: int,
    codewords: int,
    estimator: str = 'hard',
    tower_parameters: int = 0,
) -> Floor:
    """A training step with in-batch documents and frozen lists: the sum of

    - distances, 2·B·C·K·D FLOPs; 4·B·C·D read; with 'softmax' 8·B·C·K·D more on the way back;
    - scores, 3·2·B·(B·C)·D forward (teacher and both students) and 2·2·B·(B·C)·D backward (two students, to
      documents), as much again to queries where their tower is trained; twice 3·4·B²·C bytes;
    - the rotation of documents, 2·B·C·D², and 4·D² read;
    - the optimizer, 10·θ and 24·θ bytes, parameters and two moments read and written, θ = (L + K)·D and the
      tower's.

    Args:
      batch_size, candidates, dim, lists, codewords: B, C, D, L, K.
      estimator: 'hard' or 'softmax', see `quantizer.straight_through`.
      tower_parameters: trained in the query tower; what it computes itself, for B queries, is left out.
    """
    docs, theta = batch_size * candidates, (lists + codewords) * dim + tower_parameters
    passes, students = {'hard': 1, 'softmax': 5}[estimator], 2
    distances = Floor(passes * 2 * docs * codewords * dim, _FLOAT * docs * dim)
    often = 1 + students + students * (2 if tower_parameters else 1)
    scores = Floor(often * 2 * batch_size * docs * dim, 2 * 3 * _FLOAT * batch_size * docs)
    rotation = Floor(2 * docs * dim**2, _FLOAT * dim**2)
    return distances + scores + rotation + Floor(10 * theta, 6 * _FLOAT * theta)


def search(*, queries: int, dim: int, lists: int, codebooks: int, codewords: int, scanned: float) -> Floor:
    """2·Q·(D + L + K)·D FLOPs for rotation, lists and tables, and M additions a document scanned.

    Bytes: 4·(L + K)·D of centroids and codewords, and codes, M·⌈log₂ K⌉/8 a document scanned.

    Args:
      queries, dim, lists, codebooks, codewords: Q, D, L, M, K.
      scanned: documents that a query meets, P/L·N where lists are even.
    """
    met = queries * scanned * codebooks
    flops = 2 * queries * dim * (dim + lists + codewords) + met
    return Floor(flops, _FLOAT * (lists + codewords) * dim + met * (codewords - 1).bit_length() / 8)


# By `jax.Device.device_kind`. NVIDIA's datasheets "A100", "H100", "H200" and "L4 Tensor Core GPU", whose
# numbers of tensor cores "with sparsity" are twice these; float32 is that of the other cores, for tensor
# cores round it. Google's pages cloud.google.com/tpu/docs/v5e, v5p and v6e; a TPU makes a product of float32
# of six of bfloat16 (`jax.lax.Precision.HIGHEST`), so a sixth.
_A100 = {'float32': 19.5e12, 'bfloat16': 312e12}
_H100 = {'float32': 67e12, 'bfloat16': 989e12}
DATASHEETS = {
    'NVIDIA A100-SXM4-40GB': Peaks(**_A100, bytes=1.555e12),
    'NVIDIA A100-PCIE-40GB': Peaks(**_A100, bytes=1.555e12),
    'NVIDIA A100-SXM4-80GB': Peaks(**_A100, bytes=2.039e12),
    'NVIDIA A100 80GB PCIe': Peaks(**_A100, bytes=1.935e12),
    'NVIDIA H100 80GB HBM3': Peaks(**_H100, bytes=3.35e12),
    'NVIDIA H100 PCIe': Peaks(float32=51e12, bfloat16=756e12, bytes=2e12),
    'NVIDIA H200': Peaks(**_H100, bytes=4.8e12),
    'NVIDIA L4': Peaks(float32=30.3e12, bfloat16=121e12, bytes=0.3e12),
    'TPU v5 lite': Peaks(float32=197e12 / 6, bfloat16=197e12, bytes=0.819e12),
    'TPU v5': Peaks(float32=459e12 / 6, bfloat16=459e12, bytes=2.765e12),
    'TPU v6 lite': Peaks(float32=918e12 / 6, bfloat16=918e12, bytes=1.638e12),
}

_ROUNDS, _CALLS = 3, 4  # the best round counts; calls of a round run one into the other


def _fastest(call: Callable[[Any], Any], first: Any) -> float:
    """Seconds of a call that is given what the one before has returned, the best of some rounds."""
    held, seconds = jax.block_until_ready(call(first)), []
    for _ in range(_ROUNDS):
        begin = time.perf_counter()
        for _ in range(_CALLS):
            held = call(held)
        jax.block_until_ready(held)
        seconds.append((time.perf_counter() - begin) / _CALLS)
    return min(seconds)


@jax.jit
def _product(x: Array) -> Array:
    return jnp.matmul(x, x, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)


@functools.partial(jax.jit, donate_argnums=0)
def _one_more(x: Array) -> Array:
    return x + 1


def probe(size: int | None = None) -> Peaks:
    """What one device, or this host, does at most, as large products and a large array in memory show.

    Args:
      size: rows and columns of the factors; None takes what such a device needs.

    Returns:
      The peaks. Of a host float32 is the better of BLAS and XLA, for its paths take both.
    """
    size = size or (2048 if host.is_all_there_is() else 8192)
    factor = np.random.default_rng(0).standard_normal((size, size), np.float32)
    seconds = {}
    for name, kind in (('float32', jnp.float32), ('bfloat16', jnp.bfloat16)):
        held = jnp.asarray(factor, kind)
        seconds[name] = _fastest(lambda _, held=held: _product(held), held)
    if host.is_all_there_is():
        seconds['float32'] = min(seconds['float32'], _fastest(lambda _: factor @ factor, factor))
    flops = {name: 2 * size**3 / value for name, value in seconds.items()}
    array = jnp.zeros((32, size, size // 2), jnp.float32)
    moved = 2 * array.nbytes  # read and written
    return Peaks(**flops, bytes=moved / _fastest(_one_more, array))


def peaks() -> dict[str, dict[str, float]]:
    """Peaks of one device as JSON holds them: 'measured', and of the 'datasheet' where that is known."""
    found = {'measured': probe()}
    if (kind := jax.devices()[0].device_kind) in DATASHEETS:
        found['datasheet'] = DATASHEETS[kind]
    return {name: dataclasses.asdict(value) for name, value in found.items()}
