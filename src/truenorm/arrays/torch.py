"""The functions of the plain formula over PyTorch; see `truenorm.arrays`."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import (
    Tensor,
    concatenate,
    distributed,
    erf,
    isfinite,
    logical_and,
    logical_not,
    logical_or,
    sigmoid,
    sqrt,
    square,
    stack,
    zeros_like,
)

__all__ = [
    "broadcast_to",
    "cast",
    "concatenate",
    "dtype",
    "erf",
    "gather",
    "is_tensor",
    "isfinite",
    "logical_and",
    "logical_not",
    "logical_or",
    "pad",
    "processes",
    "reshape",
    "rounded",
    "shape",
    "sigmoid",
    "sqrt",
    "square",
    "stack",
    "stop_gradient",
    "sum",
    "transpose",
    "where",
    "zeros_like",
]

NAMES = {
    one: str(one).removeprefix("torch.")
    for one in vars(torch).values()
    if isinstance(one, torch.dtype)
}
DTYPES = {name: one for one, name in NAMES.items()}


def dtype(t: Tensor) -> str:
    """The dtype's name."""
    return NAMES[t.dtype]


def shape(t: Tensor) -> tuple[Any, ...]:
    """The sizes: integers, or symbols where a program is traced for unknown ones."""
    return tuple(t.shape)


def is_tensor(value: Any) -> bool:
    """Whether it is a tensor; a symbol is none."""
    return isinstance(value, Tensor)


def cast(t: Tensor, dtype: str) -> Tensor:
    """T in the dtype of this name."""
    return t.to(DTYPES[dtype])


def reshape(t: Tensor, sizes: Sequence[Any]) -> Tensor:
    """T with these sizes."""
    return t.reshape(tuple(sizes))


def transpose(t: Tensor, order: Sequence[int]) -> Tensor:
    """T with its axes in this order."""
    return t.permute(tuple(order))


def broadcast_to(t: Tensor, sizes: Sequence[Any]) -> Tensor:
    """T repeated to these sizes."""
    return t.expand(tuple(sizes))


def pad(t: Tensor, widths: Sequence[tuple[Any, Any]]) -> Tensor:
    """T with as many zeros before and behind each axis."""
    flat = [width for pair in reversed(widths) for width in pair]
    return torch.nn.functional.pad(t, flat)


def sum(t: Tensor, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """The sum over one axis, or over all."""
    return t.sum() if axis is None else t.sum(axis, keepdim=keepdims)


def where(condition: Tensor, one: Any, other: Any) -> Tensor:
    """One where the condition holds, else the other."""
    return torch.where(condition, one, other)


def stop_gradient(t: Tensor) -> Tensor:
    """T as a constant to every derivative."""
    return t.detach()


def rounded(t: Tensor) -> Tensor:
    """A sum as it is: eager PyTorch has rounded it, and no selection makes torch.compile do so."""
    return t


# --- the exchange between the processes of a group: one each way


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
