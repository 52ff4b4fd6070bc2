"""The GPU kernels under PyTorch: the engine.

It says which calls the kernels compute and arranges the tensors for them; `torch_operations.py` has
the operations. Against forward mode and the transforms of torch.func, whose derivatives the plain
formula has, there is a reason. Triton is imported with the first tensor on a GPU, not before.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from truenorm.core.call import Call, Statistics
from truenorm.native import torch as cpu
from truenorm.native.recipe import recipe
from truenorm.native.torch_cache import remembered
from truenorm.triton import FUSES, Plan, interpreted
from truenorm.triton.plan import TILE, make

name = "triton"
fuses = FUSES

_serves_cpu = interpreted()


@remembered
def unavailable() -> str | None:
    """Why no call at all can be computed on PyTorch, or None."""
    if not _serves_cpu:
        if torch.version.cuda is None and torch.version.hip is None:
            return "this build of PyTorch is for CPUs"
        if not torch.cuda.is_available():
            return "PyTorch finds no GPU"
    try:
        from truenorm.triton import torch_operations  # noqa: F401
    except (ImportError, AttributeError) as error:
        return f"Triton, or this version of it or of PyTorch, does not fit the GPU kernels: {error}"
    return None


def _reason(x: Tensor, others: tuple[Any, ...], mask: Any) -> str | None:
    """Why the kernels cannot compute with these tensors now, or None if they can."""
    if mask is not None:
        return "mask: the GPU kernels take none"
    device = x.device
    if not (x.is_cuda or (_serves_cpu and x.is_cpu)):
        return f"x is on {device}; the GPU kernels serve CUDA tensors"
    for one in others:
        if one is not None and one.device != device:
            return f"a tensor is on {one.device}, and x on {device}"
    if x.layout is not torch.strided:
        return f"x has the layout {x.layout}; the GPU kernels read dense ones"
    return cpu.refused(x) or unavailable()


@remembered
def _plan(call: Call, memory: tuple[int, ...] | None) -> Plan | str:
    if call.view.rank + 1 > cpu.MOST_FACTORS:
        return f"x has {call.view.rank} axes; the GPU kernels take {cpu.MOST_FACTORS - 1}"
    how = recipe(call.view, memory)
    ordered = dataclasses.replace(call, view=call.view.permuted(how.order))
    options = (how.code, how.groups, call.epsilon, call.centered, call.activation or "")
    return Plan(ordered, how, options)


@remembered
def _refusal(call: Call, shape: tuple[int, ...]) -> str | None:
    found = make(call, shape)
    return found if isinstance(found, str) else None


def _sizes(call: Call, x: Tensor) -> tuple[int, ...]:
    """Those of x; while torch.compile traces, which must not ask them, some that are like them."""
    if not torch.compiler.is_compiling():
        return tuple(x.shape)
    cut = {one.axis for one in call.view.factors if one.part != "whole"}
    groups = max(call.view.groups or 1, 1)
    units = [groups if axis in cut else 1 for axis in range(x.ndim)]
    # To ask whether they are large leaves them open.
    return tuple(
        n * (TILE + 1) if size > n * TILE else 3 * n for n, size in zip(units, x.shape, strict=True)
    )


def normalize(
    call: Call,
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    mask: Tensor | None = None,
    epsilon: Tensor | None = None,
    residual: Tensor | None = None,
) -> Any:
    """As `core.engine.normalize`, or why not; y lies in memory as x does, where x is dense."""
    reason = _reason(x, (gamma, beta, residual), mask)
    if reason is None and epsilon is not None:
        reason = "epsilon is learned: the GPU kernels take a number"
    if reason is not None:
        return reason
    contiguous = x.is_contiguous()
    plan = _plan(call, None if contiguous else cpu.memory_order(x))
    if isinstance(plan, str):
        return plan
    from truenorm.triton import torch_operations as operations

    how = plan.how
    if how.permutes:
        x = x.permute(how.order)
        residual = None if residual is None else residual.permute(how.order)
    x = x.contiguous()
    refusal = _refusal(plan.call, _sizes(plan.call, x))
    if refusal is not None:
        return refusal
    if len(how.parameter_order) > 1:
        gamma, beta = (
            None if one is None else one.permute(how.parameter_order) for one in (gamma, beta)
        )
    gamma, beta, residual = (
        None if one is None else one.contiguous() for one in (gamma, beta, residual)
    )
    y, total = operations.normalize(plan, x, gamma, beta, residual)
    if how.permutes:
        y = y.permute(how.inverse)
        total = None if total is None else total.permute(how.inverse)
    return y if total is None else (y, total)


def moments(call: Call, x: Tensor, mask: Tensor | None = None) -> str:
    """Why not."""
    return "the GPU kernels compute both halves in one"


def measure(call: Call, x: Tensor, gamma: Any, beta: Any, mask: Any = None) -> str:
    """Why not."""
    return "the GPU kernels do not give the statistics"


def apply(
    call: Call, x: Tensor, statistics: Statistics, gamma: Any, beta: Any, mask: Any = None
) -> str:
    """Why not."""
    return "the GPU kernels compute both halves in one"
