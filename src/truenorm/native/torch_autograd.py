"""The native operations of PyTorch with their derivatives and their shapes.

`torch.ops.truenorm.*` are registered by the C++ side; Python adds their shapes for tracing and the
autograd functions that join them. They are called as `.default`, else every call looks for the
overload, and the two of every small call are looked up once. The gradient of the gradient, which a
gradient penalty needs, is the plain formula's.

Every function takes tensors in the order of a recipe, and a `Plan`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from truenorm.arrays import torch as arrays
from truenorm.core.call import Call, Statistics
from truenorm.core.plain import Plain
from truenorm.native.recipe import MERGED, Recipe

plain = Plain(arrays)
_forward: Any = None  # torch.ops.truenorm.forward.default, since `register`
_backward: Any = None


class Plan(NamedTuple):
    """What the operations need of a call, for tensors whose axes lie in memory in one order.

    Attributes:
        call: for x in the order of the recipe.
        how: the recipe.
        options: the last arguments of the operations.
    """

    call: Call
    how: Recipe
    options: tuple[int, int, float, bool]


def register() -> None:
    """Tell PyTorch the shapes of the operations' results, and look up the operations."""
    global _forward, _backward
    for name in ("forward", "backward", "moments", "apply", "apply_backward"):
        torch.library.register_fake(f"truenorm::{name}", globals()[f"_{name}_shapes"])
    _forward = torch.ops.truenorm.forward.default
    _backward = torch.ops.truenorm.backward.default


def normalize(x: Any, gamma: Any, beta: Any, plan: Plan) -> Any:
    """The call's y."""
    if torch.is_grad_enabled() and (x.requires_grad or gamma.requires_grad or beta.requires_grad):
        apply = _Normalize.apply if torch.compiler.is_compiling() else _apply_normalize
        return apply(x, gamma, beta, plan)
    return _forward(x, gamma, beta, *plan.options)[0]


def measure(x: Any, gamma: Any, beta: Any, plan: Plan) -> Any:
    """The call's y; and the mean, its rest and the variance of each group, (groups, 3)."""
    if _differentiates(x, gamma, beta):
        return _Measure.apply(x, gamma, beta, plan)
    return _forward(x, gamma, beta, *plan.options)


def moments(x: Any, plan: Plan) -> tuple[Any, Any, Any]:
    """The mean, its rest and the variance of each group; the mean's derivative is in its rest."""
    if _differentiates(x):
        mean, rest, variance = _Moments.apply(x, plan)
    else:
        mean, rest, variance = torch.ops.truenorm.moments.default(x, *plan.options).unbind(1)
    return mean.detach(), rest if plan.call.centered else rest.detach(), variance


def apply(x: Any, gamma: Any, beta: Any, groups: tuple[Any, Any, Any], plan: Plan) -> Any:
    """The y of given statistics of each group: the mean, its rest, and the variance + epsilon.

    The call's own epsilon is zero.
    """
    if _differentiates(x, gamma, beta, *groups):
        return _Apply.apply(x, gamma, beta, *groups, plan)
    return torch.ops.truenorm.apply.default(
        x, gamma, beta, packed(plan.call, *groups), *plan.options
    )


def _differentiates(*tensors: Any) -> bool:
    return torch.is_grad_enabled() and any(one.requires_grad for one in tensors)


def twice() -> bool:
    """Whether the gradient that is computed may be differentiated again."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def plain_gradient(function: Callable[..., Any], operands: Any, cotangents: Any) -> Any:
    """The gradient in tensors by the plain formula, which can be differentiated again."""
    # At views: where gamma is computed from x, the gradient in x must not take the path through it.
    views = [
        one.view_as(one) if one.requires_grad else one.detach().requires_grad_() for one in operands
    ]
    return torch.autograd.grad(
        function(*views), views, cotangents, create_graph=True, allow_unused=True
    )


class _Normalize(torch.autograd.Function):
    """y of x, gamma and beta; keeps x, gamma and the statistics."""

    @staticmethod
    def forward(ctx: Any, x: Any, gamma: Any, beta: Any, plan: Plan) -> Any:
        return _kept_forward(ctx, x, gamma, beta, plan)[0]

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:
        return _normalize_gradient(ctx, dy)


class _Measure(torch.autograd.Function):
    """y, and the statistics, which are constant to every derivative."""

    @staticmethod
    def forward(ctx: Any, x: Any, gamma: Any, beta: Any, plan: Plan) -> Any:
        y, statistics = _kept_forward(ctx, x, gamma, beta, plan)
        ctx.mark_non_differentiable(statistics)
        return y, statistics

    @staticmethod
    def backward(ctx: Any, dy: Any, _: Any) -> Any:
        return _normalize_gradient(ctx, dy)


def _kept_forward(ctx: Any, x: Any, gamma: Any, beta: Any, plan: Plan) -> Any:
    y, statistics = _forward(x, gamma, beta, *plan.options)
    ctx.save_for_backward(x, gamma, beta, statistics)
    ctx.plan = plan
    return y, statistics


def _normalize_gradient(ctx: Any, dy: Any) -> Any:
    x, gamma, beta, statistics = ctx.saved_tensors
    call, _, options = ctx.plan
    if twice():
        function = functools.partial(plain.normalize, call)
        return *plain_gradient(function, (x, gamma, beta), dy), None
    return *_backward(x, gamma, dy, statistics, *options), None


# What _Normalize.apply calls once it has looked for transforms of torch.func, against which there
# is a reason: a quarter of the time of a small call with a gradient.
_apply_normalize: Any = super(torch.autograd.Function, _Normalize).apply


class _Moments(torch.autograd.Function):
    """The mean, its rest and the variance of x; keeps x, the mean and the rest."""

    @staticmethod
    def forward(ctx: Any, x: Any, plan: Plan) -> Any:
        statistics = torch.ops.truenorm.moments.default(x, *plan.options)
        ctx.save_for_backward(x, statistics)
        ctx.plan = plan
        return statistics[:, 0], statistics[:, 1], statistics[:, 2]

    @staticmethod
    def backward(ctx: Any, _: Any, drest: Any, dvariance: Any) -> Any:
        x, statistics = ctx.saved_tensors
        call = ctx.plan.call
        if not call.centered:
            drest = torch.zeros_like(dvariance)
        if twice():
            cotangents = (drest, dvariance) if call.centered else (dvariance,)

            def function(x: Any) -> Any:
                _, rest, variance, _ = plain.moments(call, x)
                return (rest, variance) if call.centered else (variance,)

            return *plain_gradient(function, (x,), cotangents), None
        # 2 / n * dvariance * (x - mean) + drest / n: x with a mean that is given, a variance of 1,
        # and a gamma and beta for each group.
        sizes = call.view.sizes(x.shape)
        count = sizes[1] * sizes[3]
        given = torch.cat([statistics[:, :2], torch.ones_like(statistics[:, :1])], 1)
        dx = torch.ops.truenorm.apply.default(
            x.reshape(sizes), dvariance * 2 / count, drest / count, given,
            MERGED.code, MERGED.groups, 0.0, True,
        )  # fmt: skip
        return dx.reshape(x.shape), None


class _Apply(torch.autograd.Function):
    """y of x, gamma, beta and given statistics; keeps x, gamma and the statistics.

    The power is the variance with epsilon added, and the call's own epsilon zero.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Any, gamma: Any, beta: Any, mean: Any, rest: Any, power: Any, plan: Plan
    ) -> Any:
        given = packed(plan.call, mean, rest, power)
        ctx.save_for_backward(x, gamma, beta, mean, rest, power, given)
        ctx.plan = plan
        return torch.ops.truenorm.apply.default(x, gamma, beta, given, *plan.options)

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:
        *operands, given = ctx.saved_tensors
        call, _, options = ctx.plan
        if twice():

            def function(x: Any, gamma: Any, beta: Any, mean: Any, rest: Any, power: Any) -> Any:
                # Without a mask the count says nothing.
                statistics = Statistics(mean, rest, power, torch.ones_like(power))
                return plain.apply(call, x, statistics, gamma, beta)

            return *plain_gradient(function, operands, dy), None
        x, gamma = operands[:2]
        dx, dgamma, dbeta, dgiven = torch.ops.truenorm.apply_backward.default(
            x, gamma, dy, given, *options
        )
        dmean, dpower = dgiven.unbind(1)
        return dx, dgamma, dbeta, dmean, dmean, dpower, None


def packed(call: Call, mean: Any, rest: Any, power: Any) -> Any:
    """The three statistics of each group that the kernels read."""
    if not call.centered:
        mean = rest = torch.zeros_like(power)
    return torch.stack([mean, rest, power], 1)


def _group_count(x: Any, recipe: int, groups: int) -> Any:
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
    return kept


# What torch.compile knows of the operations: the results are contiguous, however x lies in memory.


def _forward_shapes(x: Any, gamma: Any, beta: Any, *options: Any) -> Any:
    return x.new_empty(x.shape), _moments_shapes(x, *options)


def _backward_shapes(x: Any, gamma: Any, *operands: Any) -> Any:
    return tuple(one.new_empty(one.shape) for one in (x, gamma, gamma))


def _moments_shapes(x: Any, recipe: int, groups: int, *options: Any) -> Any:
    count = _group_count(x, recipe, groups)
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty((count, 3), dtype=compute)


def _apply_shapes(x: Any, *operands: Any) -> Any:
    return x.new_empty(x.shape)


def _apply_backward_shapes(x: Any, gamma: Any, dy: Any, statistics: Any, *options: Any) -> Any:
    dstatistics = statistics.new_empty((statistics.shape[0], 2))
    return *_backward_shapes(x, gamma), dstatistics
