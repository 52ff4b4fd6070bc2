"""The exchange between the processes of PyTorch's group: one each way."""

from typing import Any

import torch
from torch import Tensor, distributed


def gather(t: Tensor, group: Any = None) -> Tensor:
    """The stack of every process's t, along a new first axis; all must pass the same shape.

    Its derivative is that of the sum of what all processes compute with it.
    """
    return _Gather.apply(t, group)


def processes(group: Any = None) -> int:
    """How many processes there are; 1 where none has been set up."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 1
    return int(distributed.get_world_size(group))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, t: Tensor, group: Any) -> Tensor:
        ctx.group = group
        parts = [
            torch.empty_like(t, memory_format=torch.contiguous_format)
            for _ in range(processes(group))
        ]
        distributed.all_gather(parts, t.contiguous(), group=group)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        return _Own.apply(cotangent, ctx.group), None


class _Own(torch.autograd.Function):
    """The sum over all processes of a stack, of which each has its own part: the transpose."""

    @staticmethod
    def forward(ctx: Any, stack: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = stack.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total, group=group)
        return total[distributed.get_rank(group)].clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        return _Gather.apply(cotangent, ctx.group), None
