"""The processes of a `jax.distributed` run: where one of them fails all end, soon and with a sentence."""

import contextlib
from collections.abc import Iterator

import numpy as np
from jax.experimental import multihost_utils

from dvq_jax.errors import InputError


@contextlib.contextmanager
def all_or_none() -> Iterator[None]:
    """Holds what every process does by itself; all leave it together, by an error where one has failed.

    Without it the others would wait for the one that has failed, and it for them, for minutes.

    Raises:
      InputError: another process has failed. What fails in this one is raised as it is.

    Example:
      with all_or_none():
          inputs = read_inputs(...)           # nothing in here waits for another process
    """
    error = None
    try:
        yield
    except Exception as raised:
        error = raised
    failed = multihost_utils.process_allgather(np.array(error is not None))
    if error is not None:
        raise error
    if np.any(failed):
        raise InputError(
            f'process {np.argmax(failed)} of {len(failed)} has failed; mend what it says and start all again.'
        )
