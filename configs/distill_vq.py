"""The paper's recipe alone: k-means and OPQ, nearest lists, nearest codewords, no query tower.

python -m dvq_jax.cli.train --config=configs/distill_vq.py --config.data.dataset=DATASET --workdir=W
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    """What `configs/default.py` adds to the paper, taken away."""
    config = default.get_config()
    config.routing.rounds = 0
    config.codes.queries = 0
    config.tower.name = 'identity'
    config.candidates = 'top200:8+ib'
    config.optimizer.rates.centroids = 0.0145
    config.optimizer.rates.codebooks = 0.0085
    config.train.steps = 1500
    config.train.checkpoint_every = 250
    return config
