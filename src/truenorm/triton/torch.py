"""The GPU kernels under PyTorch: the engine.

It says which calls the kernels compute and arranges the tensors for them; `torch_operations.py` has
the operations, `torch_autograd.py` their derivatives. Against forward mode and the transforms of
torch.func, whose derivatives the plain formula has, there is a reason. Triton is imported with the
first tensor on a GPU, not before.
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
fuses = {"normalize": FUSES, "measure": FUSES, "apply": FUSES - {"residual"}}

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
        from truenorm.triton import torch_autograd  # noqa: F401
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
def _refusal(call: Call, shape: tuple[int, ...], halves: bool) -> str | None:
    found = make(call, shape, halves)
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


def _arranged(
    call: Call,
    memory: tuple[int, ...] | None,
    x: Tensor,
    *parameters: Tensor | None,
    halves: bool = False,
) -> Any:
    """The plan, with x and gamma and beta as it reads them; or why there is none."""
    plan = _plan(call, memory)
    if isinstance(plan, str):
        return plan
    x = _ordered(x, plan)
    refusal = _refusal(plan.call, _sizes(plan.call, x), halves)
    if refusal is not None:
        return refusal
    order = plan.how.parameter_order
    if len(order) > 1:
        parameters = tuple(None if one is None else one.permute(order) for one in parameters)
    return plan, x, [None if one is None else one.contiguous() for one in parameters]


def _ordered(x: Tensor, plan: Plan) -> Tensor:
    how = plan.how
    return (x.permute(how.order) if how.permutes else x).contiguous()


def _restored(y: Tensor, plan: Plan) -> Tensor:
    return y.permute(plan.how.inverse) if plan.how.permutes else y


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
    found = _arranged(call, None if x.is_contiguous() else cpu.memory_order(x), x, gamma, beta)
    if isinstance(found, str):
        return found
    from truenorm.triton import torch_autograd

    plan, x, (gamma, beta) = found
    residual = None if residual is None else _ordered(residual, plan)
    y, _, total = torch_autograd.normalize(plan, x, gamma, beta, residual)
    y = _restored(y, plan)
    return y if total is None else (y, _restored(total, plan))


def moments(call: Call, x: Tensor, mask: Tensor | None = None) -> Statistics | str:
    """As `Plain.moments`, or why not."""
    reason = _reason(x, (), mask)
    if reason is not None:
        return reason
    order = cpu.group_order(call.view, x)
    found = _arranged(cpu.without_epsilon(call), order, x, halves=True)
    if isinstance(found, str):
        return found
    from truenorm.triton import torch_autograd

    plan, ordered, _ = found
    return cpu.with_count(call.view, x, *torch_autograd.moments(plan, ordered))


def measure(
    call: Call,
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Statistics] | str:
    """As `Plain.measure`, or why not; y lies in memory as x does, where x is dense."""
    reason = _reason(x, (gamma, beta), mask)
    if reason is not None:
        return reason
    found = _arranged(call, cpu.group_order(call.view, x), x, gamma, beta)
    if isinstance(found, str):
        return found
    from truenorm.triton import torch_autograd

    plan, ordered, (gamma, beta) = found
    y, statistics, _ = torch_autograd.normalize(plan, ordered, gamma, beta, None)
    return _restored(y, plan), cpu.with_count(call.view, x, *statistics.unbind(1))


def apply(
    call: Call,
    x: Tensor,
    statistics: Statistics,
    gamma: Tensor | None,
    beta: Tensor | None,
    mask: Tensor | None = None,
) -> Tensor | str:
    """As `Plain.apply`, or why not; y lies in memory as x does, where x is dense."""
    reason = _reason(x, (gamma, beta, *statistics[:3]), mask)
    if reason is not None:
        return reason
    order = cpu.group_order(call.view, x)
    found = _arranged(cpu.without_epsilon(call), order, x, gamma, beta, halves=True)
    if isinstance(found, str):
        return found
    from truenorm.triton import torch_autograd

    plan, x, (gamma, beta) = found
    y = torch_autograd.apply(plan, x, gamma, beta, cpu.given(call, x, statistics))
    return _restored(y, plan)
