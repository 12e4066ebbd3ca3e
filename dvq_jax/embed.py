"""Texts to vectors by an encoder: blocks of texts, in them batches of like length, on all devices.

A block of consecutive texts is finished, and stored, together (`blocks`). In it texts go from long to short,
in batches padded to one of a few lengths: a batch has as many texts a device as fit a fixed count of tokens,
so there is one compiled shape a length. Shapes on a device do not depend on how many devices there are, and
neither do the vectors.
"""

import functools
import hashlib
import pathlib
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from dvq_jax import blocks, files, host, huggingface, peers
from dvq_jax.progress import Progress
from dvq_jax.texts import Texts
from dvq_jax.transformer import Transformer

_COMPARED, _ALIKE = 64, 0.99  # queries that an encoder is tried on, and how near it has to come
_BLOCK = 2**15  # texts that are finished together
_TOKENS_ON_HOST, _TOKENS = 4096, 32_768  # in a device's batch
# That texts are padded to, and multiples of the last: near each other where most texts are.
_LENGTHS = (8, 16, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256, 384, 512)


def padded_length(tokens: int, longest: int) -> int:
    """The length that a text of so many tokens is padded to, at most `longest`."""
    last = _LENGTHS[-1]
    lengths = (*_LENGTHS, last * -(-tokens // last))
    return min(longest, next(length for length in lengths if length >= tokens))


def _rows(length: int) -> int:
    """Texts in a device's batch."""
    return max(1, (_TOKENS_ON_HOST if host.is_all_there_is() else _TOKENS) // length)


def _batches(lengths: np.ndarray, longest: int, devices: int) -> Iterator[tuple[int, np.ndarray]]:
    """(padded length, rows) of texts that go together, long ones first."""
    order, start = np.argsort(-lengths, kind='stable'), 0
    while start < len(order):
        length = padded_length(int(lengths[order[start]]), longest)
        rows = order[start : start + devices * _rows(length)]
        yield length, rows
        start += len(rows)


@functools.cache
def _compiled(module: Transformer):
    """One for all encoders of an architecture: training measures its encoder again and again."""
    return jax.pmap(lambda params, tokens: module.apply({'params': params}, tokens))


class Embedder:
    """Embeds texts with an encoder.

    Args:
      encoder: from `huggingface.load`.

    Example:
      vectors = Embedder(huggingface.load('all-MiniLM-L6-v2'))(['a text', 'another one'])
    """

    def __init__(self, encoder: huggingface.Encoder):
        self._encoder = encoder
        self._apply = _compiled(encoder.module)
        self._longest = encoder.tokenizer.truncation['max_length']

    @functools.cached_property
    def _params(self):
        place = jax.pmap(lambda params, _: params, in_axes=(None, 0))
        return place(dict(self._encoder.params), np.arange(jax.local_device_count()))

    def __call__(self, texts: Sequence[str], progress: Progress | None = None) -> np.ndarray:
        """Embeds.

        Args:
          texts: n strings.
          progress: to count them.

        Returns:
          [n, D] float32.
        """
        tokens = self._encoder.tokens(texts)
        devices = jax.local_device_count()
        vectors = np.empty((len(texts), self._encoder.module.shape.dim), np.float32)
        waiting: tuple[np.ndarray, jax.Array] | None = None
        for length, rows in _batches(np.array([len(ids) for ids in tokens]), self._longest, devices):
            size = _rows(length)
            batch = np.full((devices * size, length), -1, np.int32)
            for place, row in enumerate(rows):
                batch[place, : len(tokens[row])] = tokens[row]
            found = rows, self._apply(self._params, batch.reshape(devices, size, length))
            self._take(waiting, vectors, progress)  # while the devices are busy with the next
            waiting = found
        self._take(waiting, vectors, progress)
        return vectors

    @staticmethod
    def _take(
        found: tuple[np.ndarray, jax.Array] | None, vectors: np.ndarray, progress: Progress | None
    ) -> None:
        if found is not None:
            rows, made = found
            vectors[rows] = np.asarray(made).reshape(-1, vectors.shape[1])[: len(rows)]
            if progress is not None:
                progress.add(len(rows))


def compare(encoder: huggingface.Encoder, examples: Sequence[dict[str, Any]]) -> None:
    """Says on stderr where an encoder is not the one that made the embeddings of queries.

    Args:
      encoder: from `huggingface.load`.
      examples: of a dataset with texts; the first of them are tried.
    """
    tried = [examples[row] for row in range(min(_COMPARED, len(examples)))]
    vectors = np.stack([example['embedding'] for example in tried])
    made = Embedder(encoder)([example['text'] for example in tried])
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(made, axis=1)
    alike = float(np.mean(np.sum(vectors * made, axis=1) / np.maximum(norms, 1e-12)))
    if alike < _ALIKE:
        print(
            f'{encoder.folder}: its vectors are not those of the dataset (cosine {alike:.3f}); encoder, '
            'pooling, normalize, prefix and max_length should be those that encoded the queries',
            file=sys.stderr,
            flush=True,
        )


class Embedding:
    """The embedding of a file of texts, cut into blocks; a `blocks.Work`.

    A block is 'vectors' [n, D].

    Args:
      encoder: from `huggingface.load`.
      texts: the file.
      dtype: of what is stored, float16 or float32.
    """

    label, unit = 'embed', 'texts'

    def __init__(self, encoder: huggingface.Encoder, texts: Texts, *, dtype: np.dtype):
        self._encoder, self._texts, self._dtype = encoder, texts, np.dtype(dtype)
        self._embed = Embedder(encoder)
        self.blocks = blocks.cut(len(texts), _BLOCK)

    @property
    def shape(self) -> tuple[int, int]:
        """[N, D]."""
        return len(self._texts), self._encoder.module.shape.dim

    def identity(self) -> str:
        """A digest of all that the vectors depend on."""
        encoder = self._encoder
        weights = files.sha256(encoder.folder / huggingface.WEIGHTS)
        settings = [weights, encoder.tokenizer.to_str(), repr(encoder.module), self._texts.digest()]
        settings += [encoder.prefix, str(self._dtype), str(_BLOCK)]
        return hashlib.sha256(repr(settings).encode()).hexdigest()

    def size(self, number: int) -> int:
        """How many texts a block has."""
        return self.blocks[number].stop - self.blocks[number].start

    def __call__(self, number: int, progress: Progress) -> dict[str, np.ndarray]:
        """Embeds a block."""
        vectors = self._embed(self._texts.read(self.blocks[number]), progress)
        return {'vectors': vectors.astype(self._dtype)}


def embed_file(
    encoder: huggingface.Encoder, texts: Texts, out: pathlib.Path, *, dtype: str = 'float16'
) -> tuple[int, int]:
    """Embeds a file of texts, resumable by block; the processes of a `jax.distributed` run share the blocks.

    A killed call leaves its finished blocks in `.OUT.blocks`; the same call goes on from there.

    Args:
      encoder: from `huggingface.load`.
      texts: the file.
      out: the `.npy` to write, in row order.
      dtype: 'float16' or 'float32'.

    Returns:
      Its shape, [N, D].

    Raises:
      InputError: a line without a text, or nothing can be written there, in this process or in another.
    """
    with peers.all_or_none():
        files.check_output(out)
        work = Embedding(encoder, texts, dtype=np.dtype(dtype))
        folder = files.make_folder(out.with_name(f'.{out.name}.blocks'))
        parts = blocks.Parts(folder, f'{work.identity()[:16]}.')
    blocks.finish(work, parts)
    with peers.all_or_none():
        if jax.process_index() == 0:
            with files.atomic_file(out) as aside:
                array = np.lib.format.open_memmap(aside, 'w+', np.dtype(dtype), work.shape)
                for number, rows in enumerate(work.blocks):
                    array[rows] = parts[number]['vectors']
                array.flush()
            shutil.rmtree(folder)
    return work.shape
