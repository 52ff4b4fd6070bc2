"""evenkeel: normalization layers for Keras 3, with the same numbers on every backend.

    y = gamma * (x - mean) / sqrt(variance + epsilon) + beta

Layers are in `evenkeel.layers` (and here), functions in `evenkeel.ops`, recurrent cells in
`evenkeel.rnn`. `evenkeel.explain` shows which elements share a mean; `evenkeel.compare` measures
which normalization suits some data.
"""

from evenkeel import layers, ops, rnn
from evenkeel.config import show_config
from evenkeel.experiment import compare
from evenkeel.explanation import explain
from evenkeel.implementation import use_implementation
from evenkeel.layers import (
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
from evenkeel.migrate import load_model, load_weights

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
