"""Flags of commands that several processes run together, through `jax.distributed`."""

import jax
from absl import flags

from dvq_jax.errors import InputError

_DISTRIBUTED = flags.DEFINE_bool('distributed', False, 'One of several processes, found by JAX itself.')
_COORDINATOR = flags.DEFINE_string('coordinator', None, 'host:port of process 0.')
_NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'How many processes there are.')
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'Which one this is, from 0.')


def join() -> None:
    """Joins the other processes, if there are any; before JAX is used.

    Raises:
      InputError: some of --coordinator, --num_processes and --process_id are given, and not all.
    """
    given = [flag.value is not None for flag in (_COORDINATOR, _NUM_PROCESSES, _PROCESS_ID)]
    if any(given) and not all(given):
        raise InputError('--coordinator, --num_processes and --process_id go together; give all three.')
    if _DISTRIBUTED.value or all(given):
        jax.distributed.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
