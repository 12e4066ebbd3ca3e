"""Work in a process of its own: bound to some cores, with its own environment, a command; and its memory."""

import multiprocessing
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent import futures
from typing import Any

from dvq_jax.errors import InputError

_EVERY = 0.05  # seconds between two looks at memory


def apart(
    function: Callable[[], Any], *, cores: int | None = None, environment: Mapping[str, str] | None = None
) -> Any:
    """Calls a function in a new process.

    Libraries decide on their threads when they are loaded, so both cores and environment are there before.

    Args:
      function: of a module, so that it can be pickled; a `functools.partial` carries its arguments.
      cores: that the process is bound to, whatever threads it starts; None leaves it all.
      environment: variables to set for it.

    Returns:
      What the function returns.
    """
    mine, variables = os.sched_getaffinity(0), dict(os.environ)
    spawn = multiprocessing.get_context('spawn')
    with futures.ProcessPoolExecutor(1, mp_context=spawn) as process:
        try:
            os.sched_setaffinity(0, sorted(mine)[:cores])
            os.environ.update(environment or {})
            result = process.submit(function)  # starts the process, which inherits both
        finally:
            os.sched_setaffinity(0, mine)
            os.environ.clear()
            os.environ.update(variables)
        return result.result()


def anonymous_memory(pid: int) -> int:
    """Bytes of a process that no file backs; 0 once it has ended. Linux alone tells."""
    try:
        lines = pathlib.Path(f'/proc/{pid}/status').read_text(encoding='utf-8').splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    parts = {name: value.split() for name, _, value in (line.partition(':') for line in lines)}
    return sum(1024 * int(parts[name][0]) for name in ('RssAnon', 'RssShmem') if name in parts)


def run_measured(command: str, *arguments: str) -> dict[str, float]:
    """Runs a command of `dvq_jax` to its end.

    Args:
      command: COMMAND of `python -m dvq_jax.cli.COMMAND`.
      *arguments: its flags.

    Returns:
      'seconds', and 'anonymous_gib', its anonymous memory at its peak.

    Raises:
      InputError: it has failed.
    """
    begin, peak = time.monotonic(), 0
    process = subprocess.Popen(
        [sys.executable, '-m', f'dvq_jax.cli.{command}', *arguments], stdout=subprocess.DEVNULL
    )
    while process.poll() is None:
        peak = max(peak, anonymous_memory(process.pid))
        time.sleep(_EVERY)
    if process.returncode:
        raise InputError(f'{command} ended with code {process.returncode}; see its message above.')
    return {'seconds': round(time.monotonic() - begin, 1), 'anonymous_gib': round(peak / 2**30, 2)}


def with_peak(function: Callable[[], Any]) -> tuple[Any, int]:
    """Calls a function, and looks at this process's anonymous memory meanwhile.

    Args:
      function: what to call, in another thread.

    Returns:
      What it returns, and the memory in bytes at its peak.
    """
    peak = anonymous_memory(os.getpid())
    with futures.ThreadPoolExecutor(1) as thread:
        running = thread.submit(function)
        while not running.done():
            peak = max(peak, anonymous_memory(os.getpid()))
            time.sleep(_EVERY)
    return running.result(), peak
