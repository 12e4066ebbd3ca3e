"""Trains an index: `python -m dvq_jax.cli.train --config=configs/NAME.py --workdir=W [--config.x.y=value]`.

On several processes give each one --coordinator, --num_processes and --process_id, or on a cluster that JAX
knows (TPU pods, Slurm) --distributed alone.
"""

import ml_collections
from absl import flags
from ml_collections import config_flags

from dvq_jax import cli
from dvq_jax.cli import processes
from dvq_jax.errors import InputError
from dvq_jax.train import train

_CONFIG = config_flags.DEFINE_config_file('config', None, 'The config file.', lock_config=True)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run: checkpoints and metrics.')
flags.mark_flags_as_required(['config', 'workdir'])
flags.adopt_module_key_flags(processes)


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
    processes.join(watched=True)
    return train(_config(), _WORKDIR.value)


if __name__ == '__main__':
    cli.run(main)
