"""The operations of the GPU kernels for PyTorch, with their derivatives.

`truenorm::gpu_forward` and `gpu_backward` are `triton_op`s: torch.compile and AOTInductor see the
kernels in them. Eager calls pass them by, which saves the dispatch. The gradient of the gradient is
the plain formula's.
"""

import dataclasses
import functools
from typing import Any

import torch
from torch import Tensor

from truenorm.arrays import torch as arrays
from truenorm.core.activation import activate
from truenorm.core.call import Call
from truenorm.native.recipe import call_of, factors_of
from truenorm.native.torch_autograd import plain, plain_gradient, twice
from truenorm.triton import Plan, launch
from truenorm.triton.plan import make


def normalize(
    plan: Plan, x: Tensor, gamma: Tensor | None, beta: Tensor | None, residual: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """y, and the sum with the residual."""
    operands = (x, gamma, beta, residual)
    if torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in operands):
        y, total = _Normalize.apply(*operands, plan)
    else:
        y, _, total = _run(_forward, *operands, *plan.options)
    return y, None if residual is None else total


def _run(function: Any, x: Tensor, *operands: Any) -> Any:
    """What the operation computes: by the operation where torch.compile traces, else without it."""
    if torch.compiler.is_compiling():
        return _OPERATIONS[function](x, *operands)
    if not x.is_cuda or x.device.index == torch.cuda.current_device():
        return function(x, *operands)
    with torch.cuda.device(x.device):  # where Triton launches
        return function(x, *operands)


class _Normalize(torch.autograd.Function):
    """y and the sum of x, gamma, beta and the residual; keeps what was normalized."""

    @staticmethod
    def forward(ctx: Any, x: Any, gamma: Any, beta: Any, residual: Any, plan: Plan) -> Any:
        y, statistics, total = _run(_forward, x, gamma, beta, residual, *plan.options)
        ctx.save_for_backward(x if residual is None else total, gamma, beta, statistics)
        ctx.plan, ctx.adds = plan, residual is not None
        if residual is None:
            ctx.mark_non_differentiable(total)
        ctx.set_materialize_grads(False)
        return y, total

    @staticmethod
    def backward(ctx: Any, dy: Any, dtotal: Any) -> Any:
        x, gamma, beta, statistics = ctx.saved_tensors
        plan = ctx.plan
        if dy is None:
            dx, dgamma, dbeta = dtotal, None, None
        elif twice():
            dx, dgamma, dbeta = _again(plan.call, x, gamma, beta, dy)
            dx = dx if dtotal is None else dx + dtotal
        else:
            dtotal = None if dtotal is None else dtotal.contiguous()
            dx, dgamma, dbeta = _run(
                _backward, x, gamma, beta, dy.contiguous(), dtotal, statistics, *plan.options
            )
        found = (dx, None if gamma is None else dgamma, None if beta is None else dbeta)
        return *found, dx if ctx.adds else None, None


def _again(call: Call, x: Any, gamma: Any, beta: Any, dy: Any) -> Any:
    """The gradient by the plain formula, which can be differentiated again."""
    there = [one for one in (gamma, beta) if one is not None]

    def function(x: Any, *parameters: Any) -> Any:
        given = iter(parameters)
        filled = (None if one is None else next(given) for one in (gamma, beta))
        return activate(arrays, call.activation, plain.normalize(call, x, *filled))

    dx, *others = plain_gradient(function, (x, *there), dy)
    rest = iter(others)
    return dx, *(None if one is None else next(rest) for one in (gamma, beta))


# --- the operations


def _launches(
    call: Call, x: Tensor, gamma: Tensor | None, beta: Tensor | None, halves: bool = False
) -> launch.Launches:
    refusal = make(call, x.shape, halves)
    if isinstance(refusal, str):  # sizes that torch.compile left open, and has not asked for
        raise NotImplementedError(f"{refusal}. Pass implementation='plain'.")
    double, parameters = x.dtype is torch.float64, gamma is not None or beta is not None
    return launch.make(call, tuple(map(int, x.shape)), double, parameters, halves)


@functools.lru_cache(maxsize=1024)
def _call(code: int, groups: int, epsilon: float, centered: bool, activation: str) -> Call:
    call = call_of(factors_of(code), groups, epsilon, centered)
    return dataclasses.replace(call, activation=activation or None)


def _start(one: launch.Launch, *operands: Any) -> None:
    torch.library.wrap_triton(one.kernel)[(one.grid,)](
        *operands, **one.numbers, **one.constants, num_warps=one.warps
    )


def _sums(split: launch.Split, result: Tensor, *operands: Any, more: Any = ()) -> None:
    """The first two launches of a pass, which leave in `result` what they sum for each group."""
    parts = result
    if split.combine is not None:
        parts = result.new_empty((split.parts, result.shape[1]))
    _start(split.sums, *operands, parts, *more)
    if split.combine is not None:
        _start(split.combine, parts, result)


def _forward(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    residual: Tensor | None,
    code: int,
    groups: int,
    epsilon: float,
    centered: bool,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the statistics of each group (mean, rest, variance), and x + residual or nothing."""
    options = code, groups, epsilon, centered, activation
    if any(type(size) is not int for size in x.shape):
        return torch.ops.truenorm.gpu_forward_any(x, gamma, beta, residual, *options)  # type: ignore[no-any-return]
    call = _call(*options)
    y, statistics, total = _forward_shapes(x, gamma, beta, residual, *options)
    if x.numel():
        forward = _launches(call, x, gamma, beta).forward
        if isinstance(forward, launch.Split):
            if residual is not None:
                x = total = x + residual  # each would read both: this moves no more
            _sums(forward, statistics, x)
            _start(forward.apply, x, gamma, beta, statistics, y)
        else:
            written = None if residual is None else total
            _start(forward, x, gamma, beta, y, statistics, residual, written)
    return y, statistics, total


def _backward(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    dy: Tensor,
    dtotal: Tensor | None,
    statistics: Tensor,
    code: int,
    groups: int,
    epsilon: float,
    centered: bool,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dgamma and dbeta; nothing where there are no parameters."""
    options = code, groups, epsilon, centered, activation
    if any(type(size) is not int for size in x.shape):
        operands = x, gamma, beta, dy, dtotal, statistics
        return torch.ops.truenorm.gpu_backward_any(*operands, *options)  # type: ignore[no-any-return]
    call = _call(*options)
    dx = torch.empty_like(x)
    like = gamma if gamma is not None else beta
    if like is None:
        dgamma, dbeta = x.new_empty(0), x.new_empty(0)
    if not x.numel():
        if like is not None:
            dgamma, dbeta = torch.zeros_like(like), torch.zeros_like(like)
        return dx, dgamma, dbeta
    launches = _launches(call, x, gamma, beta)
    read = x, gamma, beta, dy, statistics
    left: tuple[Any, Any] = (None, None)
    if like is not None and not launches.sums_are_shares:
        left = tuple(statistics.new_empty(launches.shares) for _ in range(2))
    inside = (None, None) if launches.columns is not None else left
    backward = launches.backward
    if isinstance(backward, launch.Split):
        sums = statistics.new_empty((statistics.shape[0], 2))
        _sums(backward, sums, *read, more=inside)
        _start(backward.apply, *read, sums, dx, dtotal)
        if launches.sums_are_shares:
            left = tuple(sums[:, i].reshape(launches.shares) for i in (1, 0))
    else:
        _start(backward, *read, dx, *inside, dtotal)
    if launches.columns is not None and like is not None:
        _start(launches.columns, *read, *left)
    if like is not None:
        before, _, after, _, alike = launches.shares
        if before * after * alike > 1:
            left = tuple(one.sum((0, 2, 4)) for one in left)
        dgamma, dbeta = (one.reshape(like.shape).to(like.dtype) for one in left)
    return dx, dgamma, dbeta


# --- the same for sizes that torch.compile does not know: the launches are chosen in the call


def _forward_any(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    residual: Tensor | None,
    code: int,
    groups: int,
    epsilon: float,
    centered: bool,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return _forward(x, gamma, beta, residual, code, groups, epsilon, centered, activation)


def _backward_any(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    dy: Tensor,
    dtotal: Tensor | None,
    statistics: Tensor,
    code: int,
    groups: int,
    epsilon: float,
    centered: bool,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    options = code, groups, epsilon, centered, activation
    return _backward(x, gamma, beta, dy, dtotal, statistics, *options)


def _forward_shapes(x: Tensor, gamma: Any, beta: Any, residual: Any, *options: Any) -> Any:
    k0, _, k1, _ = _call(*options).view.sizes(x.shape)
    compute = torch.float64 if x.dtype is torch.float64 else torch.float32
    total = x.new_empty(0) if residual is None else torch.empty_like(x)
    return torch.empty_like(x), x.new_empty((k0 * k1, 3), dtype=compute), total


def _backward_shapes(x: Tensor, gamma: Any, beta: Any, *operands: Any) -> Any:
    like = gamma if gamma is not None else beta
    shares = (x.new_empty(0) if like is None else torch.empty_like(like) for _ in range(2))
    return torch.empty_like(x), *shares


for _function, _shapes in ((_forward_any, _forward_shapes), (_backward_any, _backward_shapes)):
    _name = f"truenorm::gpu{_function.__name__}"
    torch.library.custom_op(_name, _function, mutates_args=()).register_fake(_shapes)

_OPERATIONS = {
    function: torch.library.triton_op(
        f"truenorm::gpu{function.__name__}", function, mutates_args=()
    )
    for function in (_forward, _backward)
}
