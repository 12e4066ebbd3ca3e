"""Seconds of several sides that do the same, taken in turn, so that all see the same machine."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

_PAUSE = 0.1


def in_turn(sides: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Times each side once a round; a first round, in which things compile and pages load, does not count.

    Before each call there is a pause: threads of the side before may still be spinning on the cores.

    Args:
      sides: name -> what to call.
      repeats: rounds that count.

    Returns:
      name -> median seconds of a call.
    """
    times = {name: [] for name in sides}
    for number in range(repeats + 1):
        for name, call in sides.items():
            time.sleep(_PAUSE)
            begin = time.perf_counter()
            call()
            if number:
                times[name].append(time.perf_counter() - begin)
    return {name: float(np.median(values)) for name, values in times.items()}
