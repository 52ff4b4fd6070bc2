"""truenorm for PyTorch: the modules of torch.nn, exact and fast, and functions under their names.

It needs torch and NumPy, and no Keras. `replace` changes the normalizations of a model.
"""

from truenorm.torch import functional
from truenorm.torch.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d, SyncBatchNorm
from truenorm.torch.modules import (
    TLU,
    FilterResponseNorm,
    GroupNorm,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    LayerNorm,
    RMSNorm,
)
from truenorm.torch.replace import Replacement, Report, replace

__all__ = [
    "TLU",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "FilterResponseNorm",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "RMSNorm",
    "Replacement",
    "Report",
    "SyncBatchNorm",
    "functional",
    "replace",
]
