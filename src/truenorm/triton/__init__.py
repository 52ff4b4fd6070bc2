"""The fused kernels for GPUs, in Triton: one source, for PyTorch and JAX.

- `plan.py`: how the kernels read a call, sizes and tiles; no framework, no Triton
- `common.py`: what the kernels share, and how they compute
- `held.py`: the kernels for groups that fit in registers
- `looped_forward.py`, `looped_backward.py`: those for the others
- `launch.py`: grids and constants of a call's launches
- `torch.py`: the engine for PyTorch, with the operations of `torch_operations.py` and their
  derivatives in `torch_autograd.py`
- `jax.py`: the engine for JAX, and what the primitives of the CPU kernels become on a GPU
"""

import functools
import importlib
import os
from typing import Any, NamedTuple

from truenorm.core.call import Call
from truenorm.native import Missing
from truenorm.native.recipe import Recipe

FRAMEWORKS = ("jax", "torch")
# What the kernels do before and after the normalization.
FUSES = frozenset({"residual", "relu", "silu", "gelu", "gelu_tanh"})


class Plan(NamedTuple):
    """What a framework's operations need of a call, for tensors whose axes lie in one order.

    Attributes:
        call: for x in the order of the recipe.
        how: the recipe.
        options: the last arguments of the operations.
    """

    call: Call
    how: Recipe
    options: tuple[Any, ...]


@functools.cache
def engine(framework: str) -> Any:
    """The engine for tensors of this framework. It imports Triton when it first needs it."""
    if framework not in FRAMEWORKS:
        return Missing(f"there are no GPU kernels for the {framework} backend", "triton")
    try:
        return importlib.import_module(f"truenorm.triton.{framework}")
    except (ImportError, AttributeError) as error:
        reason = f"this version of {framework} does not fit the GPU kernels: {error}"
        return Missing(reason, "triton")


def unavailable(framework: str) -> str | None:
    """Why no call at all can be computed on this framework, or None; imports Triton."""
    found = engine(framework)
    return found.reason if isinstance(found, Missing) else found.unavailable()


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"
