"""A corpus as devices read it, a block after the other, many times over."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dvq_jax.blocks import even
from dvq_jax.types import Array

_SHARE = 0.5  # of a device's memory that a corpus may take


def room(devices: Sequence[jax.Device], *, beside: int = 0) -> float:
    """What a corpus may take of each device's memory: half of what is left, beside other things to come.

    Args:
      devices: that hold it.
      beside: bytes of the other things.

    Returns:
      Bytes; 0 where a device does not say how much it has, as CPUs.
    """
    told = [device.memory_stats() or {} for device in devices]
    left = min(stats.get('bytes_limit', 0) - stats.get('bytes_in_use', 0) for stats in told)
    return max(0.0, _SHARE * (left - beside))


def width_of(documents: int, largest: int) -> int:
    """How many documents a block has: few and even blocks, rounded up to what groups can be cut of.

    Args:
      documents: N.
      largest: the most, before it is rounded up.

    Returns:
      A multiple of the power of two that is its square root or just above.
    """
    width = even(documents, largest)
    multiple = 1 << math.ceil(math.log2(width) / 2)
    return -(-width // multiple) * multiple


class Stream:
    """The blocks of a corpus on each of some devices.

    Where all of it takes no more than half of a device's memory it stays there, and is sent once; else each
    time that it is read. The next block is on its way while devices are at this one.

    Args:
      corpus: [N, D] float16 or float32, usually memory-mapped.
      devices: each of them gets all of it.
      largest: documents in a block, see `width_of`.

    Attributes:
      corpus: as given.
      devices: as given.
      width: documents in a block; the last one is filled up with the last document.
      blocks: how many there are.
      kept: [devices, n, D] of the corpus's dtype, all blocks, once they have been read; None where there is
        no room.

    Example:
      blocks = Stream(corpus, jax.local_devices(), largest=131_072).through(lambda docs: docs)
      for start, docs in blocks():
          ...                         # docs [devices, width, D] are rows start to start + width
    """

    def __init__(self, corpus: np.ndarray, devices: Sequence[jax.Device], *, largest: int):
        # A memory map's own class is slow to index.
        self.corpus, self.devices, self.kept = np.asarray(corpus), devices, None
        self.width = width_of(len(corpus), largest)
        self.blocks = -(-len(corpus) // self.width)
        self._sent = 0  # blocks, that are kept
        self._size = self.blocks * self.width * corpus.shape[1] * corpus.itemsize
        self._room = room(devices)
        self._keeps = self._size <= self._room
        self._send = jax.pmap(lambda _, docs: docs, in_axes=(0, None), devices=devices)
        write = jax.lax.dynamic_update_slice
        self._write = jax.pmap(
            lambda kept, docs, start: write(kept, docs, (start, 0)),
            in_axes=(0, 0, None),
            devices=devices,
            donate_argnums=0,
        )

    def through(
        self, function: Callable[[Array], Any], *, size: int | None = None
    ) -> Callable[[], Iterator[tuple[int, Any]]]:
        """The blocks as a function makes them, of which it gets one [width, D] on each device.

        Where blocks are kept it is compiled together with their reading, so that they are read once.

        Args:
          function: of a block.
          size: bytes of what it makes of a document; where there is room for all of that beside the corpus,
            it is made once, and kept too. None makes it each time.

        Returns:
          What iterates over (start, what the function makes, [devices, ...]), as often as it is called.
        """
        # JAX keeps these functions, so they must not hold this object, and with it the corpus.
        width = self.width

        def read(kept: Array, start: Array) -> Any:
            return function(jax.lax.dynamic_slice(kept, (start, 0), (width, kept.shape[1])))

        made = jax.pmap(function, devices=self.devices)
        made_of_kept = jax.pmap(read, in_axes=(0, None), devices=self.devices)
        keeps = size is not None and self._size + size * self.blocks * width <= self._room
        kept = []

        def blocks() -> Iterator[tuple[int, Any]]:
            for number in range(self.blocks):
                start = number * width
                if number < len(kept):
                    yield start, kept[number]
                    continue
                sent = number < self._sent
                block = made_of_kept(self.kept, start) if sent else made(self._sent_block(number))
                if keeps:
                    kept.append(block)
                yield start, block

        return blocks

    def _sent_block(self, number: int) -> Array:
        """A block from the host on all devices, which keep it where there is room."""
        start = number * self.width
        docs = self.corpus[start : start + self.width]
        if len(docs) < self.width:
            docs = np.pad(docs, ((0, self.width - len(docs)), (0, 0)), 'edge')
        docs = self._send(np.arange(len(self.devices)), docs)
        if self._keeps:
            self.kept = self._write(self._empty() if self.kept is None else self.kept, docs, start)
            self._sent += 1
        return docs

    def _empty(self) -> Array:
        shape, kind = (self.blocks * self.width, self.corpus.shape[1]), self.corpus.dtype
        make = jax.pmap(lambda _: jnp.zeros(shape, kind), devices=self.devices)
        return make(np.arange(len(self.devices)))
