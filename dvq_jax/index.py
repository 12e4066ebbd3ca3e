"""An exported index, opened for search: one class for every engine."""

import functools
import os
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from dvq_jax import blocks, host
from dvq_jax.errors import InputError
from dvq_jax.export import beside, ids, manifest, transform
from dvq_jax.export.manifest import Manifest
from dvq_jax.ids import Ids
from dvq_jax.search import check_nprobe

_BLOCK = 4096  # queries that an engine with threads of its own gets at once
_TILE = 256  # queries that a core takes at once: what is made of them stays in its cache
_SHARE = 128  # queries for which another thread pays


class Index:
    """N documents, ready to be searched; made by `open_index`.

    `manifest` says what it is, `ids` has the documents' ids by row.

    Args:
      stated: the manifest.
      query_transform: queries to the index's space.
      engine: (rotated [q, D], *, k, nprobe) -> (scores [q, k], rows [q, k]).
      doc_ids: the documents' ids.
      encoder: the folder of the text encoder; None where the index has none.
      side_by_side: whether the engine is called by a thread for each core, for it has none of its own.
    """

    def __init__(
        self,
        *,
        stated: Manifest,
        query_transform: transform.QueryTransform,
        engine: Callable[..., tuple[np.ndarray, np.ndarray]],
        doc_ids: Ids,
        encoder: pathlib.Path | None,
        side_by_side: bool,
    ):
        self.manifest = stated
        self.ids = doc_ids
        self._encoder = encoder
        self._transform, self._engine, self._side_by_side = query_transform, engine, side_by_side

    def __len__(self) -> int:
        return self.manifest.documents

    def search_rows(
        self, queries: np.ndarray, *, k: int = 100, nprobe: int = 10
    ) -> tuple[np.ndarray, np.ndarray]:
        """Finds documents, by row.

        Args:
          queries: [q, D] float, in the caller's space, before the query tower.
          k: documents wanted for each query.
          nprobe: P, the lists to search, at most L.

        Returns:
          scores [q, k] float32, best first, and rows [q, k] int32; -inf and -1 where the probed lists hold
          fewer than k documents.

        Raises:
          InputError: queries of another dimension or not finite, k below 1, or nprobe not in [1, L].
        """
        queries = np.asarray(queries)
        if queries.ndim != 2 or queries.shape[1] != self.manifest.dim:
            raise InputError(
                f'the queries are {list(queries.shape)} and the index takes [queries, {self.manifest.dim}]; '
                'encode them with the model that encoded the documents.'
            )
        if k < 1:
            raise InputError(f'k is {k}; ask for at least 1 document.')
        check_nprobe(nprobe, self.manifest.lists)
        scores, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int32)

        def search(share: Sequence[slice]) -> None:
            for some in share:
                _check_finite(queries, some)
                scores[some], rows[some] = self._engine(self._transform(queries[some]), k=k, nprobe=nprobe)

        host.each(search, self._shares(len(queries)))
        return scores, rows

    def _shares(self, count: int) -> list[list[slice]]:
        """Blocks of queries for each thread, the same for all; another thread where that pays."""
        if not count:
            return []
        threads = min(host.cores(), max(1, count // _SHARE)) if self._side_by_side else 1
        largest = _TILE if self._side_by_side else _BLOCK
        found = blocks.cut(count, blocks.even(count, largest, multiple=threads))
        each = -(-len(found) // threads)
        return [found[start : start + each] for start in range(0, len(found), each)]

    def search(self, queries: np.ndarray, *, k: int = 100, nprobe: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """Finds documents, by id.

        Example:
          scores, ids = dvq_jax.open_index('INDEX').search(queries, k=10, nprobe=10)

        Args:
          queries: [q, D] float, in the caller's space, before the query tower.
          k: documents wanted for each query.
          nprobe: P, the lists to search, at most L.

        Returns:
          scores [q, k] float32, best first, and ids [q, k] of str objects; -inf and '' where the probed lists
          hold fewer than k documents.

        Raises:
          InputError: as `search_rows`.
        """
        scores, rows = self.search_rows(queries, k=k, nprobe=nprobe)
        return scores, self.ids.take(rows)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds query texts by the index's own encoder.

        Args:
          texts: q strings.

        Returns:
          [q, D] float32, as `search` takes them.

        Raises:
          InputError: the index has no encoder, its packages are not installed, or texts are no strings.
        """
        if self._encoder is None:
            raise InputError('the index has no text encoder; export it with --encoder=FOLDER.')
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise InputError(f'texts are {texts!r:.60}; give a list of strings.')
        return self._embedder(list(texts))

    @functools.cached_property
    def _embedder(self) -> Callable[[list[str]], np.ndarray]:
        from dvq_jax import embed, huggingface

        return embed.Embedder(huggingface.load(self._encoder))

    def search_text(
        self, texts: Sequence[str], *, k: int = 100, nprobe: int = 10
    ) -> tuple[np.ndarray, np.ndarray]:
        """Finds documents for query texts, by id; `search` of what `embed` makes of them.

        Example:
          scores, ids = dvq_jax.open_index('INDEX').search_text(['how to copy a folder'], k=10)

        Args:
          texts: q strings.
          k: documents wanted for each.
          nprobe: P, the lists to search, at most L.

        Returns:
          scores and ids, as `search`.

        Raises:
          InputError: as `embed` and `search_rows`.
        """
        return self.search(self.embed(texts), k=k, nprobe=nprobe)


def _check_finite(queries: np.ndarray, some: slice) -> None:
    finite = np.isfinite(queries[some])
    if not finite.all():
        row = some.start + int(np.flatnonzero(~finite.all(axis=1))[0])
        raise InputError(f'query {row} (from 0) holds NaN or infinity; encode it again or drop it.')


def open_index(path: str | os.PathLike) -> Index:
    """Opens what `export` wrote.

    Every file is held against the manifest (size and SHA-256) before it is opened, and nothing in the folder
    is executed, whoever wrote it: it holds arrays, and no pickle is read.

    Example:
      index = open_index('INDEX')

    Args:
      path: the index folder.

    Returns:
      The index.

    Raises:
      InputError: there is no such index, or it is damaged, half-written or of another version.
    """
    folder = pathlib.Path(path)
    stated = manifest.read(folder)
    if stated.engine == 'scann':
        from dvq_jax.export import scann as engine
    else:
        from dvq_jax.export import faiss as engine
    encoder = beside.encoder_files(stated)
    beside.check_encoder_files(folder, stated)
    manifest.check(folder, stated, (*beside.NAMES, *encoder, *engine.names(stated)))
    return Index(
        stated=stated,
        query_transform=transform.QueryTransform.read(
            folder / transform.NAME, name=stated.tower, args=stated.tower_args, dim=stated.dim
        ),
        engine=engine.open_engine(folder, stated),
        doc_ids=ids.read(folder / ids.NAME, count=stated.documents),
        encoder=folder / beside.ENCODER if encoder else None,
        side_by_side=stated.engine == 'scann',
    )
