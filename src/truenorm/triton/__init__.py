"""The fused kernels for GPUs, in Triton: one source, for PyTorch and JAX.

plan.py             how the kernels read a call: sizes and tiles; no framework, no Triton
common.py           what the kernels share, and how they compute
held.py             the kernels for groups that fit in registers
looped_forward.py   the others, forward
looped_backward.py  and backward
launch.py           grids and constants of a call's launches
torch.py            the engine for PyTorch; torch_operations.py has its operations
"""

import os
from typing import Any, NamedTuple

from truenorm.core.call import Call
from truenorm.native.recipe import Recipe

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


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"
