"""Distill-VQ on Natural Questions by AR2, as published: 21 million passages of Wikipedia, 64 bytes each.

python -m dvq_jax.cli.train --config=configs/nq_ar2.py --config.data.dataset=DATASET --workdir=W

There are few training queries, so passes are short: a checkpoint is written and measured every 500 steps.
"""

import ml_collections

from configs import msmarco_ar2


def get_config() -> ml_collections.ConfigDict:
    """L 10 000, P 100, M 64, K 256; rates and temperature absolute."""
    config = msmarco_ar2.get_config()
    config.train.checkpoint_every = 500
    return config
