"""Preemption: the machine is about to be taken away, and says so by SIGTERM."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def watch() -> Iterator[Callable[[int], bool]]:
    """Catches SIGTERM for as long as the context lasts.

    Where there are several processes a notice to one of them is a notice to all, and JAX agrees on the step
    after which they end; every one must ask after every step.

    Yields:
      step -> whether to save and end after it; the same on every process.

    Example:
      with watch() as preempted:
          for step in range(1, steps + 1):
              state = update(state)
              if preempted(step):
                  break
    """
    told = threading.Event()

    def preempted(step: int) -> bool:
        return told.is_set() or multihost_utils.reached_preemption_sync_point(step)

    # With several processes JAX listens by itself; and Python hands signals to its main thread alone.
    if jax.distributed.is_initialized() or threading.current_thread() is not threading.main_thread():
        yield preempted
        return

    def tell(*_: Any) -> None:
        print('SIGTERM: will save and end after this step', file=sys.stderr, flush=True)
        told.set()

    before = signal.signal(signal.SIGTERM, tell)
    try:
        yield preempted
    finally:
        signal.signal(signal.SIGTERM, before)
