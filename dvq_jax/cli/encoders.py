"""Flags of commands that open a text encoder."""

from typing import TYPE_CHECKING

from absl import flags

if TYPE_CHECKING:
    from dvq_jax.huggingface import Encoder

_POOLING = flags.DEFINE_enum(
    'pooling',
    None,
    ['cls', 'mean', 'max'],
    "The encoder's hidden states to one vector; else as its folder says.",
)
_NORMALIZE = flags.DEFINE_bool('normalize', None, 'Its vectors to unit norm; else as its folder says.')
_MAX_LENGTH = flags.DEFINE_integer(
    'max_length', None, 'Of a text, in tokens; else as its folder says.', lower_bound=3
)
_PREFIX = flags.DEFINE_string('prefix', None, "Before each text, such as 'query: '; else as its folder says.")
_COMPUTE = flags.DEFINE_enum('compute', 'float32', ['float32', 'bfloat16'], "The encoder's arithmetic.")


def load(path: str) -> 'Encoder':
    """Opens the encoder in a folder; raises InputError where there is none."""
    from dvq_jax import huggingface

    return huggingface.load(
        path,
        pooling=_POOLING.value,
        normalize=_NORMALIZE.value,
        max_length=_MAX_LENGTH.value,
        prefix=_PREFIX.value,
        dtype=_COMPUTE.value,
    )


def given() -> str | None:
    """The first of these flags that differs from its default, by name."""
    of_encoders = (_POOLING, _NORMALIZE, _MAX_LENGTH, _PREFIX, _COMPUTE)
    return next((flag.name for flag in of_encoders if flag.value != flag.default), None)
