"""Encoding with codes chosen for queries, beside encoding with the nearest ones; nobody else chooses."""

from typing import Any

import ml_collections
import numpy as np
from speed_step import make_index
from speed_timing import in_turn

from dvq_jax import encode, towers
from dvq_jax.dataset import open_dataset
from dvq_jax.demand import of_columns


def measure(config: ml_collections.ConfigDict, *, repeats: int) -> dict[str, Any]:
    """Times both, in lists that are decided.

    The index is one of random vectors: the time does not depend on their values.

    Args:
      config: as `configs/default.py`, with a dataset.
      repeats: of each.

    Returns:
      The sizes, 'pairs' of a document and one of its queries, 'wanted', documents that have any, and
      'seconds' of the corpus with codes 'chosen' and 'nearest'.
    """
    dataset, index = open_dataset(config.data.dataset), config.index
    count, shape = len(dataset.corpus), {name: index[name] for name in ('lists', 'codebooks', 'codewords')}
    params = make_index(dim=dataset.dim, **shape)
    lists = np.random.default_rng(0).integers(0, index.lists, count, np.int32)
    demand = of_columns(dataset.train.columns(), count)
    audience = encode.Audience(demand=demand, tower=towers.Tower(), **config.codes.to_dict())
    sides = {
        name: lambda given=given: encode.encode_corpus(
            params, dataset.corpus, lists, audience=given, quiet=True
        )
        for name, given in (('chosen', audience), ('nearest', None))
    }
    queries = np.minimum(np.diff(demand.offsets), audience.queries)
    pairs = {'pairs': int(queries.sum()), 'wanted': int(np.count_nonzero(queries))}
    sizes = {
        'documents': count,
        'queries': len(demand.queries),
        'dim': dataset.dim,
        **shape,
        'sweeps': audience.sweeps,
        **pairs,
    }
    return {**sizes, 'seconds': in_turn(sides, repeats)}
