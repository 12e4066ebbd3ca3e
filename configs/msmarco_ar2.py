"""Distill-VQ on MS MARCO passages by AR2, as published: 8.8 million of 768 dimensions, 64 bytes each.

python -m dvq_jax.cli.train --config=configs/msmarco_ar2.py --config.data.dataset=DATASET --workdir=W

The settings of Xiao et al. (SIGIR 2022): IVF-OPQ with 10 000 lists, of which 100 are probed, 64 codebooks of
256 codewords; AdamW at 1e-3 for centroids and 1e-4 for codebooks; ListNet; without labels, all of Top-200 and
in-batch documents; the query encoder frozen. How long they trained we do not know: five passes are
the default of LibVQ, the authors' library.
"""

import ml_collections

from configs import distill_vq


def get_config() -> ml_collections.ConfigDict:
    """L 10 000, P 100, M 64, K 256; rates and temperature absolute."""
    config = distill_vq.get_config()
    config.scales = 'absolute'
    config.index.lists = 10_000
    config.index.codebooks = 64
    config.index.codewords = 256
    config.candidates = 'top200+ib'
    config.loss.temperature = 1.0
    config.optimizer.rates.centroids = 1e-3
    config.optimizer.rates.codebooks = 1e-4
    config.train.steps = None
    config.train.passes = 5.0
    config.train.checkpoint_every = 2000
    config.eval.nprobe = 100
    return config
