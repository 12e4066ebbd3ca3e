"""The processes of a `jax.distributed` run: where one of them fails all end, with a sentence."""

import contextlib
import sys
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from dvq_jax.errors import InputError
from dvq_jax.preemption import Preempted


@contextlib.contextmanager
def all_or_none() -> Iterator[None]:
    """Holds what every process does by itself; all leave it together, by an error where one has failed.

    Without it the others would wait for the one that has failed, and it for them, for minutes. What has
    failed is said at once; the others first finish what they are at.

    Raises:
      InputError: another process has failed. What fails in this one is raised as it is.

    Example:
      with all_or_none():
          inputs = read_inputs(...)           # nothing in here waits for another process
    """
    error, preempted = None, None
    try:
        yield
    except Preempted as raised:
        preempted = raised
    except Exception as raised:
        error = raised
        if jax.process_count() > 1:
            print(f'process {jax.process_index()} has failed: {raised}', file=sys.stderr, flush=True)
    failed = multihost_utils.process_allgather(np.array(error is not None))
    if error is not None:
        raise error
    if np.any(failed):
        raise InputError(
            f'process {np.argmax(failed)} of {len(failed)} has failed; mend what it says and start all again.'
        )
    if preempted is not None:
        raise preempted
