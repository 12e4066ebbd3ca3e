"""Search the Python standard library: 10 thousand functions, 32 bytes each instead of 2048.

python -m dvq_jax.cli.train --config=configs/quickstart.py --config.data.dataset=DATASET --workdir=W
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    """L 128, M 32, K 256."""
    config = default.get_config()
    config.index.lists = 128
    config.index.codebooks = 32
    return config
