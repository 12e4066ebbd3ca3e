"""Docstring to function retrieval over 86 039 functions, D 384: 16 bytes a document instead of 1536.

python -m dvq_jax.cli.train --config=configs/pycode.py --config.data.dataset=DATASET --workdir=W
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    """L 1024, M 16, K 256; distilled from queries alone, no labels."""
    config = default.get_config()
    config.index.lists = 1024
    config.index.codebooks = 16
    config.index.codewords = 256
    return config
