"""The native kernels under PyTorch: two operations and their derivative.

`torch.ops.truenorm.forward` and `backward` are registered by the C++ side; Python adds their shapes
for tracing and the autograd function that joins them. They are called as `.default`: else every
call looks for the overload. The gradient of the gradient, which a gradient penalty needs, is that
of the plain formula. So are forward mode and the transforms of torch.func, against which there is a
reason.
"""

import ctypes
import dataclasses
import functools
from typing import Any, NamedTuple

import torch
from torch.autograd import forward_ad

from truenorm.arrays import torch as arrays
from truenorm.core.call import Call
from truenorm.core.plain import Plain
from truenorm.native import library
from truenorm.native.recipe import Recipe, recipe
from truenorm.native.torch_cache import remembered

name = "native"

_plain = Plain(arrays)
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_DENSE = torch.strided
_MOST_FACTORS = 12  # what one integer holds


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
    torch.library.register_fake("truenorm::forward", _forward_shapes)
    torch.library.register_fake("truenorm::backward", _backward_shapes)
    return None


def _reason(x: Any, gamma: Any, beta: Any, mask: Any, epsilon: Any) -> str | None:
    """Why the kernels cannot compute with these tensors now, or None if they can."""
    if mask is not None:
        return "mask: the native kernels take none"
    if epsilon is not None:
        return "epsilon is learned: the native kernels take a number"
    for one in (x, gamma, beta):
        if one is not None and not (one.is_cpu and one.layout is _DENSE):
            if one.is_cpu:
                return f"a tensor has the layout {one.layout}; the native kernels read dense ones"
            return f"a tensor is on {one.device}; the native kernels serve CPU tensors"
    if x.is_nested:
        return "x is nested"
    if x.dtype not in _DTYPES:
        return f"x is of dtype {x.dtype}; the native kernels take {_DTYPES}"
    # Not is_exporting(): before PyTorch 2.11, torch.compile read that as true of itself.
    if torch.compiler._is_exporting_flag or torch.jit.is_tracing():
        return "the program is being exported, to run where truenorm is not installed"
    if torch._C._are_functorch_transforms_active():
        return "it is inside a transform of torch.func, whose derivatives the plain formula has"
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation is active, whose derivatives the plain formula has"
    if _is_foreign(x):
        return f"x is a {type(x).__name__}, whose operations are its own"
    return None


@torch.compiler.assume_constant_result
def _kinds() -> tuple[type, ...]:
    from torch._subclasses.fake_tensor import FakeTensor
    from torch._subclasses.functional_tensor import FunctionalTensor

    return FakeTensor, FunctionalTensor


def _is_foreign(x: Any) -> bool:
    """Whether x is of a tensor class with operations of its own, such as DTensor."""
    if type(x) in (torch.Tensor, torch.nn.Parameter) or torch.compiler.is_compiling():
        return False
    return type(x) not in _kinds()


class _Plan(NamedTuple):
    """What the operations need of a call, for tensors whose axes lie in memory in one order.

    Attributes:
        call: for x in the order of the recipe.
        how: the recipe.
        options: the last arguments of the operations.
    """

    call: Call
    how: Recipe
    options: tuple[int, int, float, bool]


@remembered
def _plan(call: Call, memory: tuple[int, ...] | None) -> _Plan | str:
    """The plan, or why there is none."""
    if call.view.rank + 1 > _MOST_FACTORS:
        most = _MOST_FACTORS - 1
        return f"x has {call.view.rank} axes; the native kernels take {most} on PyTorch"
    how = recipe(call.view, memory)
    ordered = dataclasses.replace(call, view=call.view.permuted(how.order))
    return _Plan(ordered, how, (how.code, how.groups, call.epsilon, call.centered))


def normalize(
    call: Call,
    x: torch.Tensor,
    gamma: torch.Tensor | None,
    beta: torch.Tensor | None,
    mask: torch.Tensor | None = None,
    epsilon: torch.Tensor | None = None,
) -> torch.Tensor | str:
    """As `Plain.normalize`, or why not; y lies in memory as x does, where x is dense."""
    reason = _reason(x, gamma, beta, mask, epsilon)
    if reason is not None:
        return reason
    contiguous = x.is_contiguous()
    plan = _plan(call, None if contiguous else _memory_order(x))
    if isinstance(plan, str):
        return plan
    how = plan.how
    compute = torch.float64 if x.dtype is torch.float64 else torch.float32
    if gamma is None or beta is None:
        shape = call.view.parameter_shape(x.shape)
        gamma = torch.ones(shape, dtype=compute) if gamma is None else gamma
        beta = torch.zeros(shape, dtype=compute) if beta is None else beta
    gamma, beta = _arranged(gamma, compute, how), _arranged(beta, compute, how)
    # Outside of the autograd function, whose second derivative must know x as its input.
    if how.permutes:
        x = x.permute(how.order).contiguous()
    elif not contiguous:
        x = x.contiguous()
    if torch.is_grad_enabled() and (x.requires_grad or gamma.requires_grad or beta.requires_grad):
        apply = _Normalize.apply if torch.compiler.is_compiling() else _apply
        y = apply(x, gamma, beta, plan)
    else:
        y, _ = torch.ops.truenorm.forward.default(x, gamma, beta, *plan.options)
    return y.permute(how.inverse) if how.permutes else y


def _memory_order(x: torch.Tensor) -> tuple[int, ...] | None:
    """The axes of a dense x, outermost in memory first; None where x is not dense."""
    strides = x.stride()
    order = sorted(range(x.ndim), key=lambda axis: -strides[axis])
    return tuple(order) if x.permute(order).is_contiguous() else None


def _arranged(parameter: torch.Tensor, dtype: torch.dtype, how: Recipe) -> torch.Tensor:
    if parameter.dtype is not dtype:
        parameter = parameter.to(dtype)
    if len(how.parameter_order) > 1:
        parameter = parameter.permute(how.parameter_order)
    return parameter


class _Normalize(torch.autograd.Function):
    """y of x (in the order of the recipe), gamma and beta; keeps x, gamma and the statistics."""

    @staticmethod
    def forward(ctx: Any, x: Any, gamma: Any, beta: Any, plan: _Plan) -> Any:
        y, statistics = torch.ops.truenorm.forward.default(x, gamma, beta, *plan.options)
        ctx.save_for_backward(x, gamma, beta, statistics)
        ctx.plan = plan
        return y

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:
        x, gamma, beta, statistics = ctx.saved_tensors
        call, _, options = ctx.plan
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            gradients = _plain_backward(call, x, gamma, beta, dy)
        else:
            gradients = torch.ops.truenorm.backward.default(x, gamma, dy, statistics, *options)
        return (*gradients, None)


# What _Normalize.apply calls once it has looked for transforms of torch.func, against which there
# is a reason: a quarter of the time of a small call with a gradient.
_apply: Any = super(torch.autograd.Function, _Normalize).apply


def _plain_backward(call: Call, x: Any, gamma: Any, beta: Any, dy: Any) -> Any:
    """The gradient by the plain formula, which can be differentiated again."""
    inputs: Any = [
        one if one.requires_grad else one.detach().requires_grad_() for one in (x, gamma, beta)
    ]
    y = _plain.normalize(call, *inputs)
    return torch.autograd.grad(y, inputs, dy, create_graph=True, allow_unused=True)


def _forward_shapes(x: Any, gamma: Any, beta: Any, recipe: int, *options: Any) -> Any:
    """What torch.compile knows of the forward operation: y, and (groups, 3) statistics.

    The results are contiguous, however x lies in memory.
    """
    groups = options[0]
    kept, axis = 1, -1
    while recipe:
        part, run = (recipe % 32 - 1) % 3, (recipe % 32 - 1) // 3 % 4
        axis += part != 2
        size = x.shape[axis]
        if part == 1 and groups != -1:
            size = groups
        if part != 2 and run % 2 == 0:
            kept = kept * size
        recipe >>= 5
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty(x.shape), x.new_empty((kept, 3), dtype=compute)


def _backward_shapes(x: Any, gamma: Any, *operands: Any) -> Any:
    return tuple(one.new_empty(one.shape) for one in (x, gamma, gamma))
