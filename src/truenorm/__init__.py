"""truenorm: every normalization, with the same numbers from Keras 3, plain PyTorch and plain JAX.

    y = gamma * (x - mean) / sqrt(variance + epsilon) + beta

- Keras: layers in `truenorm.layers` (and here), functions in `truenorm.ops`, recurrent cells in
  `truenorm.rnn`.
- PyTorch: modules in `truenorm.torch`, functions in `truenorm.torch.functional`.
- JAX: functions in `truenorm.jax`, modules of flax.nnx in `truenorm.flax`.

`truenorm.explain` shows which elements share a mean; `truenorm.compare` measures which
normalization suits some data; `truenorm.carry` takes what was learned from one framework to
another; `truenorm.recompute_statistics`, `fold` and `freeze` are for the batch normalizations of a
model. Importing this package imports no framework: each front does.
"""

import importlib
from typing import TYPE_CHECKING, Any

from truenorm import backends

if TYPE_CHECKING:
    from truenorm import layers, ops, rnn
    from truenorm.core.engine import use_implementation
    from truenorm.layers import (
        TLU,
        BatchNormalization,
        FilterResponseNormalization,
        GroupNormalization,
        InstanceNormalization,
        LayerNormalization,
        PoincareNormalize,
        RMSNormalization,
        SpectralNormalization,
        WeightNormalization,
    )
    from truenorm.tools.carry import carry
    from truenorm.tools.compare.comparison import compare
    from truenorm.tools.config import show_config
    from truenorm.tools.explain import explain
    from truenorm.tools.fold import fold
    from truenorm.tools.freeze import freeze
    from truenorm.tools.migrate import load_model, load_weights
    from truenorm.tools.statistics import recompute_statistics

__version__ = "0.1.0"

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
    "carry",
    "compare",
    "explain",
    "fold",
    "freeze",
    "layers",
    "load_model",
    "load_weights",
    "ops",
    "recompute_statistics",
    "rnn",
    "show_config",
    "use_implementation",
]

# Where a name is defined, if not among the layers.
_HOMES = {
    "carry": "tools.carry",
    "compare": "tools.compare.comparison",
    "explain": "tools.explain",
    "fold": "tools.fold",
    "freeze": "tools.freeze",
    "load_model": "tools.migrate",
    "load_weights": "tools.migrate",
    "recompute_statistics": "tools.statistics",
    "show_config": "tools.config",
    "use_implementation": "core.engine",
}
_MODULES = ("flax", "jax", "layers", "ops", "rnn", "torch")
_WITHOUT_KERAS = (
    "carry",
    "explain",
    "flax",
    "fold",
    "freeze",
    "jax",
    "recompute_statistics",
    "show_config",
    "torch",
    "use_implementation",
)

backends.watch_keras()


def __getattr__(name: str) -> Any:
    """Import a public name where it is first used."""
    if name not in _MODULES and name not in __all__:
        raise AttributeError(f"module 'truenorm' has no attribute {name!r}")
    if name not in _WITHOUT_KERAS:
        backends.prepare_keras()
    if name in _MODULES:
        return importlib.import_module(f"truenorm.{name}")
    home = importlib.import_module(f"truenorm.{_HOMES.get(name, 'layers')}")
    value = globals()[name] = getattr(home, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
