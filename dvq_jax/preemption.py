"""Preemption: the machine is about to be taken away, and says so by SIGTERM.

Long work asks at each place where it may end and go on later: after a step, between stages, between blocks.
Where there are several processes a notice to one of them is a notice to all, and JAX agrees on the place
where they end. It knows places by number: all processes have to ask at the same places, in the same order.
"""

import contextlib
import itertools
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

_places = itertools.count(1)
_watched, _told = threading.Event(), threading.Event()


class Preempted(Exception):
    """The work has ended early, where it can go on."""


@contextlib.contextmanager
def watch() -> Iterator[None]:
    """Catches SIGTERM for as long as the context lasts; elsewhere nobody is asked to end.

    Example:
      with watch():
          for step in range(1, steps + 1):
              state = update(state)
              if noticed():
                  break
    """

    def tell(*_: Any) -> None:
        print('SIGTERM: will end where the work can go on later', file=sys.stderr, flush=True)
        _told.set()

    # With several processes JAX listens by itself; and Python hands signals to its main thread alone.
    ours = not jax.distributed.is_initialized() and threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, tell) if ours else None
    _watched.set()
    try:
        yield
    finally:
        _watched.clear()
        _told.clear()
        if ours:
            signal.signal(signal.SIGTERM, before)


def noticed() -> bool:
    """Whether to end at this place; the same on every process."""
    if not _watched.is_set():
        return False
    return _told.is_set() or multihost_utils.reached_preemption_sync_point(next(_places))


def leave_if_noticed() -> None:
    """Ends the work at this place, if it is to end; all that is finished must be kept by then.

    Raises:
      Preempted: on every process.
    """
    if noticed():
        raise Preempted
