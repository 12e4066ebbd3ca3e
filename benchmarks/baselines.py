"""The indexes that `quality.py` measures ours against, each trained by its own recipe.

FAISS and JPQ end in `IndexParams` and an `Encoding`, so that the reference search judges everybody alike.
ScaNN is judged by its own searcher, which looks codes up in tables rounded to 8 bits.
"""

import dataclasses
import functools
import pathlib
import tempfile
from collections.abc import Sequence

import faiss
import jax
import jax.numpy as jnp
import numpy as np
import optax
from faiss.contrib import inspect_tools
from scann.partitioning import partitioner_pb2
from scann.scann_ops.py import scann_ops_pybind

from dvq_jax import evaluate, metrics
from dvq_jax.candidates import is_positive
from dvq_jax.dataset import Dataset
from dvq_jax.errors import InputError
from dvq_jax.quantizer import reconstruct, rotate
from dvq_jax.types import Array, Encoding, IndexParams


def train_opq(corpus: np.ndarray, *, codebooks: int, codewords: int) -> np.ndarray:
    """FAISS's OPQ of the whole vectors, its own iteration counts on every document; it takes no seed.

    Args:
      corpus: [N, D] float32.
      codebooks: M.
      codewords: K, a power of two.

    Returns:
      R, [D, D] float32.
    """
    dim = corpus.shape[1]
    matrix = faiss.OPQMatrix(dim, codebooks)
    matrix.pq = pq = faiss.ProductQuantizer(dim, codebooks, codewords.bit_length() - 1)
    matrix.max_train_points = pq.cp.max_points_per_centroid = len(corpus)
    matrix.train(corpus)
    return np.ascontiguousarray(faiss.vector_to_array(matrix.A).reshape(dim, dim).T)


def train_ivfpq(
    corpus: np.ndarray,
    *,
    lists: int,
    codebooks: int,
    codewords: int,
    rotation: np.ndarray | None = None,
    inner_product_lists: bool = False,
    seed: int = 0,
) -> faiss.IndexPreTransform:
    """FAISS's own IVFPQ for inner products, of residuals, trained on every document.

    FAISS's iteration counts, but none of its sub-sampling: for 16 codewords it would see 4 096 documents.
    Lists are probed by inner product; without `inner_product_lists` they are trained and filled by L2.

    Args:
      corpus: [N, D] float32.
      lists: L.
      codebooks: M.
      codewords: K, a power of two.
      rotation: [D, D] float32, from `train_opq`; None is the identity.
      inner_product_lists: spherical k-means and filling by inner product, what FAISS's factory does for
        METRIC_INNER_PRODUCT.
      seed: of k-means and PQ.

    Returns:
      The index with the documents in it.
    """
    count, dim = corpus.shape
    bits = codewords.bit_length() - 1
    matrix = np.eye(dim, dtype=np.float32) if rotation is None else rotation
    transform = inspect_tools.make_LinearTransform_matrix(np.ascontiguousarray(matrix.T))
    flat = faiss.IndexFlatIP(dim)
    trainer = flat if inner_product_lists else faiss.IndexFlatL2(dim)
    index = faiss.IndexIVFPQ(trainer, dim, lists, codebooks, bits, faiss.METRIC_INNER_PRODUCT)
    index.cp.spherical, index.by_residual = inner_product_lists, True
    for clustering in (index.cp, index.pq.cp):
        clustering.seed, clustering.max_points_per_centroid = seed + 1, count
    rotated = transform.apply(corpus)
    index.train(rotated)
    index.add(rotated)
    if trainer is not flat:
        flat.add(trainer.reconstruct_n(0, lists))
        index.quantizer = flat
    whole = faiss.IndexPreTransform(transform, index)
    # FAISS holds bare pointers to these; Python must not free them before the index.
    whole.referenced_objects, index.referenced_objects = [transform, index], [flat, trainer]
    return whole


def convert(whole: faiss.IndexPreTransform) -> tuple[IndexParams, Encoding]:
    """What a FAISS index has learned, in our layout.

    FAISS rotates before it looks for a list, x ↦ A·x, so its centroids are in the rotated space as ours are,
    and R = Aᵀ.

    Args:
      whole: an IndexPreTransform of one linear transform over an IndexIVFPQ; document numbers are rows.

    Returns:
      The index and its documents, numpy.
    """
    index = faiss.downcast_index(whole.index)
    matrix = faiss.downcast_VectorTransform(whole.chain.at(0))
    dim, pq = index.d, index.pq
    params = IndexParams(
        centroids=index.quantizer.reconstruct_n(0, index.nlist),
        codebooks=faiss.vector_to_array(pq.centroids).reshape(pq.M, pq.ksub, pq.dsub),
        rotation=np.ascontiguousarray(faiss.vector_to_array(matrix.A).reshape(dim, dim).T),
    )
    encoding = Encoding(
        lists=np.empty(index.ntotal, np.int32), codes=np.empty((index.ntotal, pq.M), np.uint8)
    )
    for number in range(index.nlist):
        size = index.invlists.list_size(number)
        if size:
            rows = faiss.rev_swig_ptr(index.invlists.get_ids(number), size)
            packed = faiss.rev_swig_ptr(index.invlists.get_codes(number), size * index.code_size)
            encoding.lists[rows] = number
            encoding.codes[rows] = faiss.unpack_bitstrings(packed.reshape(size, -1), pq.M, pq.nbits)
    return params, encoding


@dataclasses.dataclass(frozen=True)
class ScannIndex:
    """An index that ScaNN trained.

    Attributes:
      searcher: ScaNN's.
      rows: [N] int, the corpus's row of each of its documents.
      centroids: [L, D] float32.
      sizes: [L] int, documents in each list; with SOAR each document is in two.
    """

    searcher: scann_ops_pybind.ScannSearcher
    rows: np.ndarray
    centroids: np.ndarray
    sizes: np.ndarray

    def search(self, queries: np.ndarray, *, k: int, nprobe: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores [q, k] float32, best first, and rows [q, k] int32; padded with -inf and -1."""
        found, scores = self.searcher.search_batched_parallel(
            queries, final_num_neighbors=k, leaves_to_search=nprobe
        )
        real = ~np.isnan(scores)
        return np.where(real, scores, -np.inf), np.where(real, self.rows[found], -1).astype(np.int32)

    def documents_scanned(self, queries: np.ndarray, *, nprobe: int) -> np.ndarray:
        """How many codes are scored for each query, [q] int."""
        scores = queries @ self.centroids.T
        return self.sizes[np.argpartition(-scores, nprobe - 1, axis=1)[:, :nprobe]].sum(axis=1)


def train_scann(
    corpus: np.ndarray,
    *,
    lists: int,
    codebooks: int,
    codewords: int,
    threshold: float | None = None,
    soar_lambda: float | None = None,
    seed: int = 0,
) -> ScannIndex:
    """ScaNN's own tree and asymmetric hashing, trained on every document, without reordering.

    Args:
      corpus: [N, D] float32.
      lists: L.
      codebooks: M; divides D.
      codewords: 16 (ScaNN's LUT16) or 256 (its LUT256).
      threshold: of anisotropic quantization; None quantizes by L2.
      soar_lambda: store each document in a second list as SOAR chooses it, with codes of its own.
      seed: of the order in which ScaNN sees the documents; it takes no other.

    Returns:
      The index.
    """
    count, dim = corpus.shape
    rows = np.random.default_rng(seed).permutation(count)
    builder = scann_ops_pybind.builder(corpus[rows], evaluate.DEPTH, 'dot_product')
    builder = builder.tree(
        num_leaves=lists,
        num_leaves_to_search=lists,
        training_sample_size=count,
        min_partition_size=1,
        soar_lambda=soar_lambda,
    ).score_ah(
        dimensions_per_block=dim // codebooks,
        anisotropic_quantization_threshold=float('nan') if threshold is None else threshold,
        training_sample_size=count,
        hash_type='lut16' if codewords == 16 else 'lut256',
    )
    searcher = builder.build()
    with tempfile.TemporaryDirectory() as folder:
        searcher.serialize(folder)
        tokens = np.load(pathlib.Path(folder) / 'datapoint_to_token.npy')
        tree = partitioner_pb2.SerializedPartitioner()
        tree.ParseFromString((pathlib.Path(folder) / 'serialized_partitioner.pb').read_bytes())
    root = tree.kmeans.kmeans_tree.root
    centroids = np.array([center.dimension for center in root.centers], np.float32)
    leaves = [child.leaf_id for child in root.children]
    # SOAR marks a document without a second list by -1.
    sizes = np.bincount(tokens[tokens >= 0], minlength=len(leaves))[leaves]
    return ScannIndex(searcher=searcher, rows=rows, centroids=centroids, sizes=sizes)


def evaluate_scann(
    index: ScannIndex, queries: evaluate.Queries, *, nprobe: Sequence[int]
) -> dict[str, dict[str, float]]:
    """As `evaluate.evaluate_index`, by ScaNN's searcher.

    Args:
      index: from `train_scann`.
      queries: what is judged.
      nprobe: the numbers of lists to probe; a larger one than there are lists probes all.

    Returns:
      nprobe as text -> metrics.
    """
    results = {}
    for probes in nprobe:
        real = min(probes, len(index.sizes))
        scores, rows = index.search(queries.embeddings, k=evaluate.DEPTH, nprobe=real)
        scanned = index.documents_scanned(queries.embeddings, nprobe=real)
        results[str(probes)] = {**judge(queries, rows, scores), 'docs_scanned': float(scanned.mean())}
    return results


def judge(queries: evaluate.Queries, rows: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """`metrics.NAMES`, where there are labels, and agreement with the teacher.

    Args:
      queries: what is judged.
      rows: [q, k] int, rows of the corpus, best first; -1 pads.
      scores: [q, k] float.

    Returns:
      Name -> mean over queries.
    """
    values = {
        name: metrics.teacher_agreement(rows, queries.teacher, metrics.depth(name))
        for name in evaluate.teacher_metrics(queries)
    }
    if queries.positives is None:
        return values
    found = [[queries.doc_ids[row] for row in query if row >= 0] for query in rows]
    qrels = {
        query: {queries.doc_ids[row]: 1 for row in relevant}
        for query, relevant in zip(queries.ids, queries.positives, strict=True)
    }
    return metrics.measure(qrels, metrics.to_run(queries.ids, found, scores)) | values


@dataclasses.dataclass(frozen=True)
class Labelled:
    """The training queries that have a label.

    Attributes:
      queries: [Q, D] float32.
      positives: [Q, G] int32, relevant rows of the corpus; -1 pads.
      topk: [Q, topk] int32, the teacher's rows, best first.
    """

    queries: np.ndarray
    positives: np.ndarray
    topk: np.ndarray


def read_labelled(dataset: Dataset) -> Labelled:
    """Reads the labelled training queries.

    Args:
      dataset: from `open_dataset`.

    Returns:
      The queries.

    Raises:
      InputError: there is none.
    """
    if not dataset.labelled:
        raise InputError(
            f'{dataset.folder}: JPQ trains on labels; prepare it with --qrels, or leave JPQ out.'
        )
    examples = dataset.train.columns()
    counts = np.diff(examples.offsets)
    some = examples.take(np.flatnonzero(counts))
    return Labelled(
        queries=some.embeddings, positives=some.padded_positives(counts.max()), topk=some.topk_ids
    )


def _jpq_loss(
    trained: dict[str, Array],
    params: IndexParams,
    docs: Encoding,
    queries: Array,
    doc_ids: Array,
    positives: Array,
    temperature: float,
) -> Array:
    """Softmax cross-entropy of each query's positive, column b of row b, against all documents brought."""
    params = params.replace(codebooks=trained['codebooks'])
    vectors = reconstruct(params, docs)
    scores = rotate(params, queries @ trained['query']) @ vectors.T / temperature
    own = jnp.eye(*scores.shape, dtype=bool)
    scores = jnp.where(is_positive(doc_ids, positives) & ~own, -jnp.inf, scores)
    return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(scores)))


def train_jpq(
    params: IndexParams,
    encoding: Encoding,
    labelled: Labelled,
    *,
    codebook_rate: float,
    query_rate: float,
    temperature: float,
    steps: int,
    batch_size: int = 128,
    seed: int = 0,
) -> tuple[IndexParams, np.ndarray]:
    """JPQ (Zhan et al., CIKM 2021): codes frozen, codewords and the query side trained on labels.

    A query brings its positive and a hard negative from the teacher's Top-K, and is scored against what the
    whole batch brought, by the codes. Lists and centroids stay as they are. Adam, cosine to 0.

    Args:
      params: the index to start from.
      encoding: [N] documents.
      labelled: the training queries.
      codebook_rate: learning rate of the codewords.
      query_rate: learning rate of the query side, a [D, D] map that starts at the identity.
      temperature: of the softmax.
      steps: of training.
      batch_size: queries in a batch.
      seed: of the batches.

    Returns:
      The index with its new codebooks, and the query map: queries @ map is what is searched with.
    """
    dim = params.rotation.shape[0]
    trained = {'codebooks': jnp.asarray(params.codebooks), 'query': jnp.eye(dim)}
    rates = {'codebooks': codebook_rate, 'query': query_rate}
    adams = {name: optax.adam(optax.cosine_decay_schedule(rate, steps)) for name, rate in rates.items()}
    optimizer = optax.multi_transform(adams, {name: name for name in rates})
    state = optimizer.init(trained)
    params = jax.tree.map(jnp.asarray, params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(trained, state, *batch):
        gradients = jax.grad(_jpq_loss)(trained, params, *batch, temperature)
        updates, state = optimizer.update(gradients, state, trained)
        return optax.apply_updates(trained, updates), state

    rng = np.random.default_rng(seed)
    for _ in range(steps):
        picked = rng.choice(len(labelled.queries), batch_size, replace=False)
        positives = labelled.positives[picked]
        doc_ids = np.concatenate([positives[:, 0], _hard_negatives(labelled.topk[picked], positives, rng)])
        docs = Encoding(lists=encoding.lists[doc_ids], codes=encoding.codes[doc_ids])
        trained, state = update(trained, state, docs, labelled.queries[picked], doc_ids, positives)
    return params.replace(codebooks=np.asarray(trained['codebooks'])), np.asarray(trained['query'])


def _hard_negatives(topk: np.ndarray, positives: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One document of each query's Top-K that is not among its positives, [b]."""
    wrong = (topk[:, :, None] != positives[:, None, :]).all(axis=-1)
    draws = np.where(wrong, rng.random(topk.shape), -1.0)
    return topk[np.arange(len(topk)), draws.argmax(axis=1)]
