"""The Keras layers."""

from evenkeel.layers.group_normalization import GroupNormalization
from evenkeel.layers.instance_normalization import InstanceNormalization
from evenkeel.layers.layer_normalization import LayerNormalization
from evenkeel.layers.rms_normalization import RMSNormalization
from evenkeel.layers.spectral_normalization import SpectralNormalization
from evenkeel.layers.weight_normalization import WeightNormalization

__all__ = [
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "RMSNormalization",
    "SpectralNormalization",
    "WeightNormalization",
]
