"""Seconds of several sides that do the same, taken in turn, so that all see the same machine."""

import collections
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


def in_turn(sides: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Times each side once a round; a first round, in which things compile and pages load, does not count.

    Each round begins with another side: threads of the one before may still be spinning.

    Args:
      sides: name -> what to call.
      repeats: rounds that count.

    Returns:
      name -> median seconds of a call.
    """
    times, order = {name: [] for name in sides}, collections.deque(sides)
    for number in range(repeats + 1):
        order.rotate(-1)
        for name in order:
            begin = time.perf_counter()
            sides[name]()
            if number:
                times[name].append(time.perf_counter() - begin)
    return {name: float(np.median(values)) for name, values in times.items()}
