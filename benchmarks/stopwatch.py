"""What each part of a long program takes while it runs, and from that, what it would take of more."""

import contextlib
import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from floors import Floor, Peaks

Calls = list[tuple[float, float]]  # (units, seconds) of each, in order
_LONG = 1.0  # seconds from which on a call is told of when it ends


class Stopwatch:
    """Seconds of functions that are watched, without those of others that they call and that are watched too.

    So the seconds of all of them add up to those of the outermost.

    Args:
      keep: called when a call has ended, so that what is known by then can be kept.

    Attributes:
      calls: of each stage.
    """

    def __init__(self, keep: Callable[[], None] = lambda: None):
        self.calls: dict[str, Calls] = {}
        self._keep = keep
        self._inner = [0.0]  # seconds of what each call under way has called

    @contextlib.contextmanager
    def watch(
        self,
        owner: Any,
        name: str,
        stage: str | Callable[..., str],
        units: Callable[..., float] = lambda *_, **__: 1,
    ) -> Iterator[None]:
        """Watches a function while the context lasts.

        Args:
          owner: the module or class where those who call it look it up.
          name: of the function there.
          stage: that its calls count for; or what tells it from the function's arguments.
          units: how many of whatever grows a call does, from its arguments.
        """
        function = getattr(owner, name)

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            begin = time.perf_counter()
            try:
                result = function(*args, **kwargs)
            finally:
                seconds, inner = time.perf_counter() - begin, self._inner.pop()
                self._inner[-1] += seconds
            label = stage(*args, **kwargs) if callable(stage) else stage
            self.calls.setdefault(label, []).append((units(*args, **kwargs), seconds - inner))
            if seconds - inner >= _LONG:
                print(f'{label}: {seconds - inner:.1f} s', file=sys.stderr, flush=True)
            self._keep()
            return result

        with mock.patch.object(owner, name, timed):
            yield


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of the program, measured on some units.

    Attributes:
      command: that it belongs to.
      name: of the stage.
      calls: that were measured.
      total: units of the whole.
      floor: of one unit, where it has one.
    """

    command: str
    name: str
    calls: Calls
    total: float
    floor: Floor | None = None

    @property
    def seconds(self) -> float:
        """Of a unit, once it runs: the first of several calls, in which things compile, does not count."""
        later = self.calls[1:] or self.calls
        return sum(seconds for _, seconds in later) / sum(units for units, _ in later)

    @property
    def projected(self) -> float:
        """Seconds of the whole: of each unit, and what the first call took beyond that."""
        units, seconds = self.calls[0]
        return max(0.0, seconds - units * self.seconds) + self.total * self.seconds

    def row(self, peaks: dict[str, dict[str, float]]) -> dict[str, Any]:
        """As JSON holds it, with 'fractions' of the floor by these `floors.peaks`."""
        kept = {**dataclasses.asdict(self), 'projected_seconds': self.projected}
        if self.floor is not None:
            kept['fractions'] = {
                source: {
                    products: self.floor.seconds(Peaks(**values), products) / self.seconds
                    for products in ('float32', 'bfloat16')
                }
                for source, values in peaks.items()
            }
        return kept
