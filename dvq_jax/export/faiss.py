"""The index as FAISS reads it: `index.faiss`, an IndexPreTransform of the rotation over an IndexIVFPQ.

`faiss.read_index` opens it as one of its own; its inner product scores are ⟨v, R(v̂ + û)⟩ of queries that went
through the query tower (the rotation is in the index). The lists and codes are the trained ones, bit by bit.
"""

import os
import pathlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from dvq_jax import files
from dvq_jax.errors import InputError
from dvq_jax.export import beside, manifest
from dvq_jax.export.manifest import Manifest
from dvq_jax.export.verify import verify
from dvq_jax.towers import Tower
from dvq_jax.types import Encoding, IndexParams

if TYPE_CHECKING:
    from dvq_jax.huggingface import Encoder

try:
    import faiss
    from faiss.contrib import inspect_tools
except ModuleNotFoundError as error:
    raise InputError('the FAISS format needs the faiss package; pip install "dvq_jax[faiss]".') from error

NAME = 'index.faiss'


def write(
    out: str | os.PathLike,
    *,
    params: IndexParams,
    encoding: Encoding,
    doc_ids: Iterable[str],
    tower: Tower | None = None,
    encoder: 'Encoder | None' = None,
    nprobe: int = 10,
    step: int = 0,
    config: dict[str, Any] | None = None,
) -> Manifest:
    """Writes an index folder that FAISS and `dvq_jax.open_index` open.

    It is written aside, opened, held against the reference search, and renamed.

    Example:
      faiss.write('INDEX', params=params, encoding=encoding, doc_ids=ids)

    Args:
      out: the folder to create.
      params: the index; K a power of two.
      encoding: N documents.
      doc_ids: N ids, in row order; may be a generator.
      tower: the query tower; None is the identity.
      encoder: of query texts, to go with the index, so that it can be searched by text.
      nprobe: P for a searcher that is not told.
      step: the training step, for the manifest.
      config: the training config, for the manifest, which keeps its hash.

    Returns:
      The manifest.

    Raises:
      InputError: K is not a power of two, or `out` exists or cannot be written.
      MismatchError: FAISS does not search what was written as the reference does.
    """
    params, encoding = beside.on_host(params, encoding)
    nprobe = min(nprobe, len(params.centroids))
    beside.check_encoder(encoder, len(params.rotation))
    with files.atomic_folder(out) as folder:
        faiss.write_index(build(params, encoding, nprobe=nprobe), str(folder / NAME))
        written = beside.write(
            folder,
            engine='faiss',
            engine_version=faiss.__version__,
            params=params,
            encoding=encoding,
            doc_ids=doc_ids,
            tower=tower or Tower(),
            encoder=encoder,
            lookup='float',
            reorder='none',
            step=step,
            config=config,
        )
        verify(open_engine(folder, written), params=params, encoding=encoding, nprobe=nprobe)
    return written


def build(params: IndexParams, encoding: Encoding, *, nprobe: int) -> faiss.IndexPreTransform:
    """The FAISS index of encoded documents; document numbers are rows.

    Args:
      params: the index, numpy; K a power of two.
      encoding: N documents, numpy, in one list or more each.
      nprobe: P for a searcher that is not told.

    Returns:
      The index.

    Raises:
      InputError: K is not a power of two.
    """
    (lists, dim), (books, codewords, _) = params.centroids.shape, params.codebooks.shape
    bits = codewords.bit_length() - 1
    if 1 << bits != codewords:
        raise InputError(
            f'a codebook has {codewords} codewords and FAISS takes a power of two; train with one.'
        )
    quantizer = faiss.IndexFlatIP(dim)
    quantizer.add(params.centroids)
    index = faiss.IndexIVFPQ(quantizer, dim, lists, books, bits, faiss.METRIC_INNER_PRODUCT)
    faiss.copy_array_to_vector(params.codebooks.ravel(), index.pq.centroids)
    index.is_trained, index.by_residual, index.nprobe = True, True, nprobe
    packed = encoding.codes if bits == 8 else faiss.pack_bitstrings(encoding.codes.astype(np.int32), bits)
    order = np.argsort(encoding.lists, kind='stable')
    bounds = np.searchsorted(encoding.lists[order], np.arange(lists + 1))
    for number in range(lists):
        entries = order[bounds[number] : bounds[number + 1]]
        if len(entries):
            codes, rows = np.ascontiguousarray(packed[entries]), entries % encoding.documents
            index.invlists.add_entries(number, len(entries), faiss.swig_ptr(rows), faiss.swig_ptr(codes))
    index.ntotal = len(encoding.lists)
    rotation = inspect_tools.make_LinearTransform_matrix(np.ascontiguousarray(params.rotation.T))
    whole = faiss.IndexPreTransform(rotation, index)
    whole.ntotal = index.ntotal
    # FAISS holds bare pointers to these; Python must not free them before the index.
    whole.referenced_objects, index.referenced_objects = [rotation, index], [quantizer]
    return whole


def _once(scores: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The best k documents of [q, n] entries, each by the mean of its entries' scores."""
    best, found = np.full((len(rows), k), -np.inf, np.float32), np.full((len(rows), k), -1, np.int32)
    for query, (values, entries) in enumerate(zip(scores, rows, strict=True)):
        documents, places = np.unique(entries[entries >= 0], return_inverse=True)
        means = np.bincount(places, values[entries >= 0]) / np.maximum(np.bincount(places), 1)
        order = np.argsort(-means, kind='stable')[:k]
        best[query, : len(order)], found[query, : len(order)] = means[order], documents[order]
    return best, found


def names(stated: Manifest) -> tuple[str, ...]:
    """The files that `open_engine` opens."""
    del stated
    return (NAME,)


def open_engine(folder: str | os.PathLike, stated: Manifest) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Opens an index folder with FAISS, after `manifest.check` of its files.

    Args:
      folder: the index folder.
      stated: its manifest.

    Returns:
      A function (rotated [q, D] float32, *, k, nprobe) -> (scores [q, k] float32, rows [q, k] int32), best
      first, padded with -inf and -1.

    Raises:
      InputError: the file is not such an index.
    """
    path = pathlib.Path(folder) / NAME
    try:
        whole = faiss.read_index(str(path))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f'{path}: FAISS cannot read it ({reason}); export the index again.') from error
    index = faiss.downcast_index(whole.index) if isinstance(whole, faiss.IndexPreTransform) else None
    found = (
        (index.ntotal, index.d, index.nlist, index.pq.M, index.pq.ksub)
        if isinstance(index, faiss.IndexIVFPQ) and index.metric_type == faiss.METRIC_INNER_PRODUCT
        else None
    )
    entries = stated.copies * stated.documents
    manifest.require(path, found == (entries, stated.dim, stated.lists, stated.books, stated.codewords))

    def search(rotated: np.ndarray, *, k: int, nprobe: int) -> tuple[np.ndarray, np.ndarray]:
        probes = faiss.SearchParametersIVF(nprobe=min(nprobe, stated.lists))
        wanted = stated.copies * k
        scores, rows = faiss.downcast_index(whole.index).search(rotated, wanted, params=probes)
        scores, rows = np.where(rows >= 0, scores, -np.inf), rows.astype(np.int32)
        return (scores, rows) if stated.copies == 1 else _once(scores, rows, k)

    return search
