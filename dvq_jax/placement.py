"""Where the corpus is while an index is trained: on the host, or on the devices.

| placement | what a device holds | a step's documents come |
|---|---|---|
| 'host' | nothing | gathered by threads ahead of the step, up to 4·B·C·D bytes sent |
| 'replicated' | the corpus, 2·N·D bytes | from the device's own copy |
| 'sharded' | a share of its rows, 2·N·D/devices bytes | by collectives, up to 2·B·C·D bytes a device |

Devices hold 16 bits a number: float16 as it is in the file, so that nothing changes, and float32 rounded to
bfloat16. Centroids, codebooks, the tower and the optimizer's moments are on every device. That ends where
centroids and their two moments, 12·L·D bytes, do not fit beside a step: 9 GB for L 1 000 000 at D 768.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from dvq_jax.corpus import BLOCK
from dvq_jax.errors import InputError
from dvq_jax.progress import Progress
from dvq_jax.stream import room
from dvq_jax.types import Array, Batch

_AXIS = 'data'
PLACEMENTS = ('auto', 'host', 'replicated', 'sharded')


@dataclasses.dataclass(frozen=True)
class Placed:
    """A corpus on the devices.

    Attributes:
      rows: [local devices, n, D] float16 or bfloat16: all of the corpus, or the device's share of it; padded.
      sharded: which of the two.
    """

    rows: Array
    sharded: bool

    def bring(self, batch: Batch) -> Batch:
        """A batch with its documents, [local devices, n, D] float32, which stay on the devices."""
        return batch.replace(docs=_fetch(self.sharded)(self.rows, batch.doc_ids))


def _held_as(corpus: np.ndarray) -> np.dtype:
    return corpus.dtype if corpus.dtype == np.float16 else jnp.bfloat16


def choose(placement: str, corpus: np.ndarray, *, step_bytes: int) -> str:
    """Settles 'auto' by size.

    Args:
      placement: one of `PLACEMENTS`.
      corpus: [N, D].
      step_bytes: what a step takes, see `memory`.

    Returns:
      'host', 'replicated' or 'sharded'. For 'auto' the first of 'replicated' and 'sharded' that takes at most
      half of what a step leaves of a device's memory; 'host' where neither does, or where devices do not say
      how much they have, as CPUs.
    """
    if placement != 'auto':
        return placement
    left = room(jax.local_devices(), beside=step_bytes)
    size = 2 * corpus.shape[0] * corpus.shape[1]
    for name, devices in (('replicated', 1), ('sharded', jax.device_count())):
        if size / devices <= left:
            return name
    return 'host'


def place(placement: str, corpus: np.ndarray) -> Placed | None:
    """Reads the corpus onto the devices, block by block.

    Args:
      placement: from `choose`.
      corpus: [N, D] float16 or float32, may be memory-mapped.

    Returns:
      The corpus; None where it stays on the host.

    Raises:
      InputError: it does not fit.
    """
    if placement == 'host':
        return None
    sharded, local = placement == 'sharded', jax.local_device_count()
    count = -(-len(corpus) // jax.device_count()) if sharded else len(corpus)
    block = min(BLOCK, count)
    count = -(-count // block) * block
    first = np.zeros(local, np.int64)
    if sharded:
        first += count * (local * jax.process_index() + np.arange(local))
    kind = _held_as(corpus)
    progress = Progress('place', total=count, unit='documents a device')
    try:
        rows = _empty((count, corpus.shape[1]), kind)
        for start in range(0, count, block):
            some = [np.asarray(corpus[begin : begin + block], kind) for begin in first + start]
            full = [part if len(part) == block else np.resize(part, (block, part.shape[1])) for part in some]
            rows = _write()(rows, np.stack(full), start)
            progress.add(block)
        rows.block_until_ready()
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        size = 2 * count * corpus.shape[1] / 2**30
        raise InputError(
            f'data.placement={placement!r}: {size:.3g} GiB are more than a device has left; use '
            "'sharded' on more devices, or 'host'."
        ) from error
    progress.done()
    return Placed(rows=rows, sharded=sharded)


def _empty(shape: tuple[int, int], kind: np.dtype) -> Array:
    make = jax.pmap(lambda _: jnp.zeros(shape, kind))
    return make(np.zeros(jax.local_device_count()))


@functools.cache
def _write():
    def write(rows: Array, block: Array, start: Array) -> Array:
        return jax.lax.dynamic_update_slice(rows, block, (start, 0))

    return jax.pmap(write, in_axes=(0, 0, None), donate_argnums=0)


@functools.cache
def _fetch(sharded: bool):
    return jax.pmap(functools.partial(fetch, axis=_AXIS if sharded else None), axis_name=_AXIS)


def fetch(rows: Array, ids: Array, *, axis: str | None) -> Array:
    """The documents that a device is to quantize.

    Args:
      rows: [n, D] float16 or bfloat16, the device's part of the corpus.
      ids: [m] int32, rows of the corpus, as many on each device; -1 pads.
      axis: the mapped axis along which the corpus is cut; None where the device has all of it.

    Returns:
      [m, D] float32; zeros where padded.
    """
    if axis is None:
        return _take(rows, ids).astype(jnp.float32)
    wanted = jax.lax.all_gather(ids, axis)
    found = _take(rows, jnp.where(wanted < 0, -1, wanted - jax.lax.axis_index(axis) * len(rows)))
    # One device has the document, and what the others add to it is zero: the sum rounds nothing.
    return jax.lax.psum_scatter(found, axis).astype(jnp.float32)


def _take(rows: Array, ids: Array) -> Array:
    here = (ids >= 0) & (ids < len(rows))
    return jnp.where(here[..., None], rows[jnp.where(here, ids, 0)], 0)
