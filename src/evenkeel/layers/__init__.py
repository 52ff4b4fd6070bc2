"""The Keras layers."""

from evenkeel.layers.filter_response_normalization import FilterResponseNormalization
from evenkeel.layers.group_normalization import GroupNormalization
from evenkeel.layers.instance_normalization import InstanceNormalization
from evenkeel.layers.layer_normalization import LayerNormalization
from evenkeel.layers.poincare_normalize import PoincareNormalize
from evenkeel.layers.rms_normalization import RMSNormalization
from evenkeel.layers.spectral_normalization import SpectralNormalization
from evenkeel.layers.tlu import TLU
from evenkeel.layers.weight_normalization import WeightNormalization

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
]
