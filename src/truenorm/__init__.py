"""truenorm: normalization layers for Keras 3, with the same numbers on every backend.

    y = gamma * (x - mean) / sqrt(variance + epsilon) + beta

Layers are in `truenorm.layers` (and here), functions in `truenorm.ops`, recurrent cells in
`truenorm.rnn`. `truenorm.explain` shows which elements share a mean; `truenorm.compare` measures
which normalization suits some data.
"""

from truenorm_cli import backends as _backends

_backends.prepare_keras()

from truenorm import layers, ops, rnn
from truenorm.config import show_config
from truenorm.experiment import compare
from truenorm.explanation import explain
from truenorm.implementation import use_implementation
from truenorm.layers import (
    TLU,
    FilterResponseNormalization,
    GroupNormalization,
    InstanceNormalization,
    LayerNormalization,
    PoincareNormalize,
    RMSNormalization,
    SpectralNormalization,
    WeightNormalization,
)
from truenorm.migrate import load_model, load_weights

__version__ = "0.1.0"

__all__ = [
    "TLU",
    "FilterResponseNormalization",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "PoincareNormalize",
    "RMSNormalization",
    "SpectralNormalization",
    "WeightNormalization",
    "compare",
    "explain",
    "layers",
    "load_model",
    "load_weights",
    "ops",
    "rnn",
    "show_config",
    "use_implementation",
]
