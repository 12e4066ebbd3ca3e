"""Distill-VQ on MS MARCO passages by coCondenser, as published: `configs/msmarco_ar2.py` on other embeddings.

python -m dvq_jax.cli.train --config=configs/msmarco_cocondenser.py --config.data.dataset=DATASET --workdir=W
"""

import ml_collections

from configs import msmarco_ar2


def get_config() -> ml_collections.ConfigDict:
    """L 10 000, P 100, M 64, K 256; rates and temperature absolute."""
    return msmarco_ar2.get_config()
