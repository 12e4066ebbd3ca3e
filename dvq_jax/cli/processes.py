"""Flags of commands that several processes run together, through `jax.distributed`."""

import os
import signal

import jax
from absl import flags
from jax.experimental import multihost_utils

from dvq_jax.errors import InputError

_DISTRIBUTED = flags.DEFINE_bool('distributed', False, 'One of several processes, found by JAX itself.')
_COORDINATOR = flags.DEFINE_string('coordinator', None, 'host:port of process 0.')
_NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'How many processes there are.')
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'Which one this is, from 0.')


def join(*, watched: bool = False) -> None:
    """Joins the other processes, if there are any; before JAX is used.

    A process takes all accelerators that it sees; under Slurm only one, where it shares its host with others.

    Args:
      watched: whether `preemption.watch` will listen to SIGTERM; else SIGTERM ends the process at once.

    Raises:
      InputError: some of --coordinator, --num_processes and --process_id are given, and not all; or JAX finds
        no others.
    """
    given = [flag.value is not None for flag in (_COORDINATOR, _NUM_PROCESSES, _PROCESS_ID)]
    if any(given) and not all(given):
        raise InputError('--coordinator, --num_processes and --process_id go together; give all three.')
    if not _DISTRIBUTED.value and not all(given):
        return
    try:
        jax.distributed.initialize(
            _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, local_device_ids=_devices()
        )
    except ValueError as error:
        raise InputError(
            f'--distributed: this is no process of a run that JAX knows ({error}); give --coordinator, '
            '--num_processes and a --process_id below that.'
        ) from error
    # Now, for later JAX would wait for the slowest for 2 minutes only.
    multihost_utils.sync_global_devices('all have joined')
    if not watched:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # JAX has taken it


def _devices() -> list[int] | None:
    # JAX's own choice, None, is one GPU a process under Slurm, however many there are; naming none takes all.
    hosts, tasks = (os.environ.get(f'SLURM_{name}') for name in ('STEP_NUM_NODES', 'NTASKS'))
    return [] if hosts and hosts == tasks else None
