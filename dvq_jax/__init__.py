"""Distill-VQ in JAX: learn an ANN index from a dense retriever, serve it with ScaNN."""

import importlib
from typing import Any

# Imported at first use: `import dvq_jax` stays light.
_HOMES = {'open_index': 'dvq_jax.index'}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(_HOMES[name]), name)
