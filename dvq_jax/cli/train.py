"""Trains an index: `python -m dvq_jax.cli.train --config=configs/NAME.py --workdir=W [--config.x.y=value]`.

On several processes give each one --coordinator, --num_processes and --process_id, or on a cluster that JAX
knows (TPU pods, Slurm) --distributed alone.
"""

import jax
import ml_collections
from absl import flags
from ml_collections import config_flags

from dvq_jax import cli
from dvq_jax.errors import InputError
from dvq_jax.train import train

_CONFIG = config_flags.DEFINE_config_file('config', None, 'The config file.', lock_config=True)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run: checkpoints and metrics.')
_DISTRIBUTED = flags.DEFINE_bool('distributed', False, 'One of several processes, found by JAX itself.')
_COORDINATOR = flags.DEFINE_string('coordinator', None, 'host:port of process 0.')
_NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'How many processes there are.')
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'Which one this is, from 0.')
flags.mark_flags_as_required(['config', 'workdir'])


def _config() -> ml_collections.ConfigDict:
    try:
        _CONFIG.value.to_dict()  # a file that could not be read is only now complained of
    except OSError as error:
        raise InputError(
            '--config: the file cannot be read; give a path such as configs/default.py, and run from the '
            'folder that holds configs/.'
        ) from error
    return _CONFIG.value


def main() -> dict:
    """Joins the other processes, if any, and trains."""
    given = [flag.value is not None for flag in (_COORDINATOR, _NUM_PROCESSES, _PROCESS_ID)]
    if any(given) and not all(given):
        raise InputError('--coordinator, --num_processes and --process_id go together; give all three.')
    if _DISTRIBUTED.value or all(given):
        jax.distributed.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    return train(_config(), _WORKDIR.value)


if __name__ == '__main__':
    cli.run(main)
