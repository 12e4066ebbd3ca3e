"""How long to train where no number of steps is given: until the held-out queries' loss has stopped to fall.

Rates stay at their peak while there is something to gain. At looks that grow a quarter further apart each
time the loss of the held-out queries is measured, which needs no pass over the corpus; once a quarter more
steps have brought nothing, rates decay to 0 over half as many steps as there were, and training ends. So few
queries take few steps and many queries many, and nothing has to be tuned to them.
"""

from collections.abc import Mapping

_FIRST = 200
_GROWTH = 1.25
_DECAY = 0.5


def is_look(step: int) -> bool:
    """Whether the loss is measured after this many steps: 200, 250, 313, and so on."""
    look = _FIRST
    while look < step:
        look = -int(-look * _GROWTH // 1)
    return step in (0, look)


def decay(losses: Mapping[int, float]) -> tuple[int, int] | None:
    """When rates begin to decay and when training ends.

    Args:
      losses: step -> the loss of the held-out queries, at step 0 and the looks so far.

    Returns:
      The step of the first look that was not below all earlier ones, and the last step; None before that.
    """
    lowest = float('inf')
    for step in sorted(losses):
        if losses[step] >= lowest:
            return step, step + round(_DECAY * step)
        lowest = losses[step]
    return None
