"""The best that we know at 16 bytes a document on the pycode collection; see docs/quality.md.

python -m dvq_jax.cli.train --config=configs/pycode_best.py --config.data.dataset=DATASET --workdir=W
"""

import ml_collections

from configs import pycode


def get_config() -> ml_collections.ConfigDict:
    """More candidates a query, more queries a document."""
    config = pycode.get_config()
    config.candidates = 'top100:16+ib'
    config.codes.queries = 64
    config.codes.sweeps = 4
    return config
