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
from typing import Any

import torch
from torch.autograd import forward_ad

from truenorm.arrays import torch as arrays
from truenorm.core.call import Call
from truenorm.core.plain import Plain
from truenorm.core.view import View
from truenorm.native import library
from truenorm.native.recipe import Recipe, recipe
from truenorm.native.torch_cache import remembered

name = "native"

_plain = Plain(arrays)
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
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


def _reason(view: View, x: Any, gamma: Any, beta: Any, mask: Any, epsilon: Any) -> str | None:
    """Why the kernels cannot compute this call, or None if they can."""
    if mask is not None:
        return "mask: the native kernels take none"
    if epsilon is not None:
        return "epsilon is learned: the native kernels take a number"
    for one in (x, gamma, beta):
        if one is None:
            continue
        if not one.is_cpu:
            return f"a tensor is on {one.device}; the native kernels serve CPU tensors"
        if one.layout != torch.strided:
            return f"a tensor has the layout {one.layout}; the native kernels read dense ones"
        if one.is_nested:
            return "a tensor is nested"
    if x.dtype not in _DTYPES:
        return f"x is of dtype {x.dtype}; the native kernels take {_DTYPES}"
    if view.rank + 1 > _MOST_FACTORS:
        return f"x has {view.rank} axes; the native kernels take {_MOST_FACTORS - 1} on PyTorch"
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


_recipe = remembered(recipe)


def normalize(
    call: Call,
    x: torch.Tensor,
    gamma: torch.Tensor | None,
    beta: torch.Tensor | None,
    mask: torch.Tensor | None = None,
    epsilon: torch.Tensor | None = None,
) -> torch.Tensor | str:
    """As `Plain.normalize`, or why not; y lies in memory as x does, where x is dense."""
    view = call.view
    reason = _reason(view, x, gamma, beta, mask, epsilon)
    if reason is not None:
        return reason
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    if gamma is None or beta is None:
        shape = view.parameter_shape(x.shape)
        gamma = torch.ones(shape, dtype=compute) if gamma is None else gamma
        beta = torch.zeros(shape, dtype=compute) if beta is None else beta
    how = _recipe(view, _memory_order(x))
    options = (how.code, how.groups, call.epsilon, call.centered)
    # Outside of the autograd function, whose second derivative must know x as its input.
    x = (x.permute(how.order) if how.permutes else x).contiguous()
    gamma, beta = _arranged(gamma, compute, how), _arranged(beta, compute, how)
    if torch.is_grad_enabled() and (x.requires_grad or gamma.requires_grad or beta.requires_grad):
        y = _Normalize.apply(x, gamma, beta, (call, how.order, options))
    else:
        y, _ = torch.ops.truenorm.forward.default(x, gamma, beta, *options)
    return y.permute(how.inverse) if how.permutes else y


def _memory_order(x: torch.Tensor) -> tuple[int, ...] | None:
    """x's axes, outermost in memory first, or None where that is their own order."""
    if x.is_contiguous():
        return None
    strides = x.stride()
    order = sorted(range(x.ndim), key=lambda axis: -strides[axis])
    return tuple(order) if x.permute(order).is_contiguous() else None


def _arranged(parameter: torch.Tensor, dtype: torch.dtype, how: Recipe) -> torch.Tensor:
    if parameter.dtype != dtype:
        parameter = parameter.to(dtype)
    if len(how.parameter_order) > 1:
        parameter = parameter.permute(how.parameter_order)
    return parameter


class _Normalize(torch.autograd.Function):
    """y of x (in the order of the recipe), gamma and beta; keeps x, gamma and the statistics."""

    @staticmethod
    def forward(ctx: Any, x: Any, gamma: Any, beta: Any, call: tuple[Call, Any, Any]) -> Any:
        _, _, options = call
        y, statistics = torch.ops.truenorm.forward.default(x, gamma, beta, *options)
        ctx.save_for_backward(x, gamma, beta, statistics)
        ctx.call = call
        return y

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:
        x, gamma, beta, statistics = ctx.saved_tensors
        call, order, options = ctx.call
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            call = dataclasses.replace(call, view=call.view.permuted(order))
            gradients = _plain_backward(call, x, gamma, beta, dy)
        else:
            gradients = torch.ops.truenorm.backward.default(x, gamma, dy, statistics, *options)
        return (*gradients, None)


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
