"""The Keras layers."""

from truenorm.layers.batch_normalization import BatchNormalization
from truenorm.layers.filter_response_normalization import FilterResponseNormalization
from truenorm.layers.group_normalization import GroupNormalization
from truenorm.layers.instance_normalization import InstanceNormalization
from truenorm.layers.layer_normalization import LayerNormalization
from truenorm.layers.poincare_normalize import PoincareNormalize
from truenorm.layers.rms_normalization import RMSNormalization
from truenorm.layers.spectral_normalization import SpectralNormalization
from truenorm.layers.tlu import TLU
from truenorm.layers.weight_normalization import WeightNormalization

__all__ = [
    "TLU",
    "BatchNormalization",
    "FilterResponseNormalization",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "PoincareNormalize",
    "RMSNormalization",
    "SpectralNormalization",
    "WeightNormalization",
]
