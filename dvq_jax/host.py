"""The cores of this host: how many there are, what they can do, and work on a thread for each of them."""

import collections
import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from typing import Any

import jax
import threadpoolctl

_CPUINFO = pathlib.Path('/proc/cpuinfo')


def is_all_there_is() -> bool:
    """Whether JAX has no accelerator, so that the host is what computes."""
    return jax.default_backend() == 'cpu'


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


@functools.cache
def has_matrix_units() -> bool:
    """Whether the cores have units for products of bfloat16: AMX, Intel's server cores since 2023."""
    return _CPUINFO.exists() and 'amx_bf16' in _CPUINFO.read_text(encoding='utf-8').split()


def on_threads(function: Callable[[Any], Any], items: Iterable[Any], *, spare: int = 0) -> Iterator[Any]:
    """Maps over items, in order, on a thread for each core, and a BLAS thread for each of them.

    Args:
      function: of an item; most of its time goes to BLAS and NumPy, which let other threads run.
      items: what to map over.
      spare: threads beyond that, for functions that wait for XLA now and then.

    Yields:
      What the function returns.
    """
    with _libraries().limit(limits=1, user_api='blas'):
        yield from _threads(os.getpid(), cores() + spare).map(function, items)


def each(function: Callable[[Any], None], items: Sequence[Any]) -> None:
    """As `on_threads`, for what a function does and not for what it returns.

    Args:
      function: of an item.
      items: one alone is done by the caller's thread, which keeps BLAS's own ones.
    """
    if len(items) == 1:
        function(items[0])
    else:
        collections.deque(on_threads(function, items), maxlen=0)


@functools.cache
def _libraries() -> threadpoolctl.ThreadpoolController:
    """Kept, for it goes through all libraries that the process has loaded."""
    return threadpoolctl.ThreadpoolController()


@functools.cache
def _threads(_process: int, count: int) -> futures.ThreadPoolExecutor:
    """Kept, for a new thread begins without memory of its own, and gets it page by page."""
    return futures.ThreadPoolExecutor(count)
