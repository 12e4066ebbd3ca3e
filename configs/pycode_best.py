"""The best that we know at 16 bytes a document on the pycode collection: the defaults; see docs/quality.md.

python -m dvq_jax.cli.train --config=configs/pycode_best.py --config.data.dataset=DATASET --workdir=W
"""

import ml_collections

from configs import pycode


def get_config() -> ml_collections.ConfigDict:
    """Nothing that we tuned for this collection alone beats `configs/default.py` by more than noise."""
    return pycode.get_config()
