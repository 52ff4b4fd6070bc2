"""The native kernels under PyTorch: the engine.

It says which calls the kernels compute and arranges the tensors for them; `torch_autograd.py` has
the operations. Against forward mode and the transforms of torch.func, whose derivatives the plain
formula has, there is a reason.
"""

import ctypes
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd import forward_ad

from truenorm.core.call import Call, Statistics
from truenorm.core.view import View
from truenorm.native import library, torch_autograd
from truenorm.native.recipe import Recipe, recipe
from truenorm.native.torch_autograd import Plan
from truenorm.native.torch_cache import remembered

name = "native"

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_DENSE = torch.strided
_OWN = (torch.Tensor, torch.nn.Parameter)  # the classes whose operations are PyTorch's own
MOST_FACTORS = 12  # what one integer holds


@functools.cache
def unavailable() -> str | None:
    """Why no call at all can be computed on PyTorch, or None; registers the operations once."""
    file = library.path("libtruenorm_torch")
    if file is None:
        return "this build of truenorm has no native kernels for PyTorch"
    try:
        binding = ctypes.CDLL(str(file))
    except OSError as error:
        return f"the native kernels for PyTorch do not load: {error}"
    binding.truenorm_torch_register.restype = ctypes.c_char_p
    missing = binding.truenorm_torch_register()
    if missing:
        return f"PyTorch {torch.__version__} lacks what they need: {missing.decode()}"
    torch_autograd.register()
    return None


def _reason(x: Any, others: Sequence[Any], mask: Any) -> str | None:
    """Why the kernels cannot compute with these tensors now, or None if they can."""
    if mask is not None:
        return "mask: the native kernels take none"
    for one in (x, *others):
        if one is not None and not (one.is_cpu and one.layout is _DENSE):
            if one.is_cpu:
                return f"a tensor has the layout {one.layout}; the native kernels read dense ones"
            return f"a tensor is on {one.device}; the native kernels serve CPU tensors"
    return refused(x)


def refused(x: torch.Tensor) -> str | None:
    """Why no fused kernel, on whichever device, can compute with x now, or None."""
    if x.is_nested:
        return "x is nested"
    if x.dtype not in _DTYPES:
        return f"x is of dtype {x.dtype}; the kernels take {_DTYPES}"
    # Not is_exporting(): before PyTorch 2.11, torch.compile read that as true of itself.
    if torch.compiler._is_exporting_flag or torch.jit.is_tracing():
        return "the program is being exported, to run where truenorm is not installed"
    if torch._C._are_functorch_transforms_active():
        return "it is inside a transform of torch.func, whose derivatives the plain formula has"
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation is active, whose derivatives the plain formula has"
    if type(x) not in _OWN and _is_foreign(x):
        return f"x is a {type(x).__name__}, whose operations are its own"
    return None


def _kinds() -> tuple[type, ...]:
    from torch._subclasses.fake_tensor import FakeTensor
    from torch._subclasses.functional_tensor import FunctionalTensor

    return FakeTensor, FunctionalTensor


def _is_foreign(x: Any) -> bool:
    """Whether x, not of `_OWN`, is of a class with operations of its own, such as DTensor."""
    return not torch.compiler.is_compiling() and type(x) not in _kinds()


@remembered
def _plan(call: Call, memory: tuple[int, ...] | None) -> Plan | str:
    """The plan, or why there is none."""
    if call.view.rank + 1 > MOST_FACTORS:
        most = MOST_FACTORS - 1
        return f"x has {call.view.rank} axes; the native kernels take {most} on PyTorch"
    how = recipe(call.view, memory)
    ordered = dataclasses.replace(call, view=call.view.permuted(how.order))
    return Plan(ordered, how, (how.code, how.groups, call.epsilon, call.centered))


def normalize(
    call: Call,
    x: torch.Tensor,
    gamma: torch.Tensor | None,
    beta: torch.Tensor | None,
    mask: torch.Tensor | None = None,
    epsilon: torch.Tensor | None = None,
) -> torch.Tensor | str:
    """As `Plain.normalize`, or why not; y lies in memory as x does, where x is dense."""
    reason = _reason(x, (gamma, beta), mask)
    if reason is None and epsilon is not None:
        reason = "epsilon is learned: the native kernels take a number"
    if reason is not None:
        return reason
    contiguous = x.is_contiguous()
    plan = _plan(call, None if contiguous else memory_order(x))
    if isinstance(plan, str):
        return plan
    how = plan.how
    gamma, beta = _parameters(call.view, x, gamma, beta, how)
    if how.permutes or not contiguous:
        x = _arranged(x, how)
    y = torch_autograd.normalize(x, gamma, beta, plan)
    return y.permute(how.inverse) if how.permutes else y


def moments(call: Call, x: torch.Tensor, mask: torch.Tensor | None = None) -> Statistics | str:
    """As `Plain.moments`, or why not."""
    reason = _reason(x, (), mask)
    if reason is not None:
        return reason
    plan = _plan(without_epsilon(call), group_order(call.view, x))
    if isinstance(plan, str):
        return plan
    return with_count(call.view, x, *torch_autograd.moments(_arranged(x, plan.how), plan))


def measure(
    call: Call,
    x: torch.Tensor,
    gamma: torch.Tensor | None,
    beta: torch.Tensor | None,
    mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, Statistics] | str:
    """As `Plain.measure`, or why not; y lies in memory as x does, where x is dense."""
    reason = _reason(x, (gamma, beta), mask)
    if reason is not None:
        return reason
    plan = _plan(call, group_order(call.view, x))
    if isinstance(plan, str):
        return plan
    how = plan.how
    gamma, beta = _parameters(call.view, x, gamma, beta, how)
    y, statistics = torch_autograd.measure(_arranged(x, how), gamma, beta, plan)
    y = y.permute(how.inverse) if how.permutes else y
    return y, with_count(call.view, x, *statistics.unbind(1))


def apply(
    call: Call,
    x: torch.Tensor,
    statistics: Statistics,
    gamma: torch.Tensor | None,
    beta: torch.Tensor | None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor | str:
    """As `Plain.apply`, or why not; y lies in memory as x does, where x is dense."""
    reason = _reason(x, (gamma, beta, *statistics), mask)
    if reason is not None:
        return reason
    plan = _plan(without_epsilon(call), group_order(call.view, x))
    if isinstance(plan, str):
        return plan
    how = plan.how
    gamma, beta = _parameters(call.view, x, gamma, beta, how)
    y = torch_autograd.apply(_arranged(x, how), gamma, beta, given(call, x, statistics), plan)
    return y.permute(how.inverse) if how.permutes else y


def given(
    call: Call, x: torch.Tensor, statistics: Statistics
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The mean, its rest, and the variance + epsilon, in the compute dtype."""
    compute = _compute_dtype(x)
    mean, rest, variance = (
        one if one.dtype is compute else one.to(compute) for one in statistics[:3]
    )
    power = variance + call.epsilon
    if call.centered:
        # As in the plain formula: rounding can take it below zero.
        power = torch.where(power < 0.5 * call.epsilon, call.epsilon, power)
    return mean, rest, power


def with_count(
    view: View, x: torch.Tensor, mean: torch.Tensor, rest: torch.Tensor, variance: torch.Tensor
) -> Statistics:
    """The statistics with the number of elements that each group has."""
    _, r0, _, r1 = view.sizes(x.shape)
    return Statistics(mean, rest, variance, torch.full_like(variance, r0 * r1))


def without_epsilon(call: Call) -> Call:
    """The call for a kernel that does not use it: torch.compile may have made it a symbol, which
    it loses in an autograd function.
    """
    return Call(call.view, call.centered, 0.0, call.activation)


def _compute_dtype(x: torch.Tensor) -> torch.dtype:
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def memory_order(x: torch.Tensor) -> tuple[int, ...] | None:
    """The axes of a dense x, outermost in memory first; None where x is not dense."""
    strides = x.stride()
    order = sorted(range(x.ndim), key=lambda axis: -strides[axis])
    return tuple(order) if x.permute(order).is_contiguous() else None


def group_order(view: View, x: torch.Tensor) -> tuple[int, ...] | None:
    """The same, but for an order in which the groups are not those of x's kept axes in turn."""
    order = None if x.is_contiguous() else memory_order(x)
    if order is None:
        return None
    kept = [order[one.axis] for one in view.permuted(order).factors if not one.reduced]
    return order if kept == sorted(kept) else None


def _arranged(x: torch.Tensor, how: Recipe) -> torch.Tensor:
    # Outside of the autograd functions, whose second derivatives must know x as their input.
    return (x.permute(how.order) if how.permutes else x).contiguous()


def _parameters(
    view: View, x: torch.Tensor, gamma: torch.Tensor | None, beta: torch.Tensor | None, how: Recipe
) -> tuple[torch.Tensor, torch.Tensor]:
    """gamma and beta, or ones and zeros, in the compute dtype and in the recipe's order."""
    compute = _compute_dtype(x)
    # On x's device, and not on the default one.
    if gamma is None and beta is None:
        gamma = x.new_ones(view.parameter_shape(x.shape), dtype=compute)
    if gamma is None:
        gamma = torch.ones_like(beta, dtype=compute)
    if beta is None:
        beta = torch.zeros_like(gamma, dtype=compute)
    if gamma.dtype is compute and beta.dtype is compute and len(how.parameter_order) < 2:
        return gamma, beta
    return _arranged_parameter(gamma, compute, how), _arranged_parameter(beta, compute, how)


def _arranged_parameter(parameter: torch.Tensor, dtype: torch.dtype, how: Recipe) -> torch.Tensor:
    if parameter.dtype is not dtype:
        parameter = parameter.to(dtype)
    if len(how.parameter_order) > 1:
        parameter = parameter.permute(how.parameter_order)
    return parameter
