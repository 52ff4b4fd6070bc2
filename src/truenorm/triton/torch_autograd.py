"""The operations of the GPU kernels for PyTorch with their derivatives.

Every function takes tensors in the order of a recipe, and a `Plan`. gamma, beta and a residual may
be None. The gradient of the gradient is the plain formula's.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from truenorm.arrays import torch as arrays
from truenorm.core.activation import activate
from truenorm.core.call import Statistics
from truenorm.native.recipe import MERGED
from truenorm.native.torch_autograd import packed, plain, plain_gradient, twice
from truenorm.triton import Plan
from truenorm.triton import torch_operations as operations


def normalize(
    plan: Plan, x: Tensor, gamma: Tensor | None, beta: Tensor | None, residual: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """y; the mean, its rest and the variance of each group, (groups, 3), which are constant to
    every derivative; and the sum with the residual.
    """
    operands = (x, gamma, beta, residual)
    if _differentiates(*operands):
        y, statistics, total = _Normalize.apply(*operands, plan)
    else:
        y, statistics, total = operations.run(operations.forward, *operands, *plan.options)
    return y, statistics, None if residual is None else total


def moments(plan: Plan, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The mean, its rest and the variance of each group; the mean's derivative is in its rest."""
    if _differentiates(x):
        mean, rest, variance = _Moments.apply(x, plan)
    else:
        mean, rest, variance = operations.run(operations.moments, x, *plan.options).unbind(1)
    return mean.detach(), rest if plan.call.centered else rest.detach(), variance


def apply(
    plan: Plan,
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    given: tuple[Tensor, Tensor, Tensor],
) -> Tensor:
    """The y of given statistics of each group: the mean, its rest, and the variance + epsilon.

    The call's own epsilon is zero.
    """
    if _differentiates(x, gamma, beta, *given):
        return _Apply.apply(x, gamma, beta, *given, plan)
    statistics = packed(plan.call, *given)
    return operations.run(operations.apply, x, gamma, beta, statistics, *plan.options)


def _differentiates(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in tensors)


def _again(function: Callable[..., Any], operands: Any, cotangents: Any) -> list[Any]:
    """The gradient by the plain formula, which can be differentiated again; None in None."""

    def filled(*tensors: Any) -> Any:
        given = iter(tensors)
        return function(*(None if one is None else next(given) for one in operands))

    there = [one for one in operands if one is not None]
    found = iter(plain_gradient(filled, there, cotangents))
    return [None if one is None else next(found) for one in operands]


class _Normalize(torch.autograd.Function):
    """y, the statistics and the sum with the residual; keeps what was normalized."""

    @staticmethod
    def forward(ctx: Any, x: Any, gamma: Any, beta: Any, residual: Any, plan: Plan) -> Any:
        operands = (x, gamma, beta, residual)
        y, statistics, total = operations.run(operations.forward, *operands, *plan.options)
        ctx.save_for_backward(x if residual is None else total, gamma, beta, statistics)
        ctx.plan, ctx.adds = plan, residual is not None
        ctx.mark_non_differentiable(statistics, *(() if ctx.adds else (total,)))
        ctx.set_materialize_grads(False)
        return y, statistics, total

    @staticmethod
    def backward(ctx: Any, dy: Any, _: Any, dtotal: Any) -> Any:
        x, gamma, beta, statistics = ctx.saved_tensors
        call, _, options = ctx.plan
        if dy is None:
            dx, dgamma, dbeta = dtotal, None, None
        elif twice():

            def function(*operands: Any) -> Any:
                return activate(arrays, call.activation, plain.normalize(call, *operands))

            dx, dgamma, dbeta = _again(function, (x, gamma, beta), dy)
            dx = dx if dtotal is None else dx + dtotal
        else:
            dtotal = None if dtotal is None else dtotal.contiguous()
            given = (x, gamma, beta, dy.contiguous(), dtotal, statistics)
            dx, dgamma, dbeta = operations.run(operations.backward, *given, *options)
        found = (dx, None if gamma is None else dgamma, None if beta is None else dbeta)
        return *found, dx if ctx.adds else None, None


class _Moments(torch.autograd.Function):
    """The mean, its rest and the variance of x; keeps x and the statistics."""

    @staticmethod
    def forward(ctx: Any, x: Any, plan: Plan) -> Any:
        statistics = operations.run(operations.moments, x, *plan.options)
        ctx.save_for_backward(x, statistics)
        ctx.call = plan.call
        return statistics[:, 0], statistics[:, 1], statistics[:, 2]

    @staticmethod
    def backward(ctx: Any, _: Any, drest: Any, dvariance: Any) -> Any:
        x, statistics = ctx.saved_tensors
        call = ctx.call
        if not call.centered:
            drest = torch.zeros_like(dvariance)
        if twice():

            def function(x: Any) -> Any:
                _, rest, variance, _ = plain.moments(call, x)
                return (rest, variance) if call.centered else (variance,)

            return *_again(function, (x,), (drest, dvariance)[not call.centered :]), None
        # 2 / n * dvariance * (x - mean) + drest / n: x with a mean that is given, a variance of 1,
        # and a gamma and beta for each group.
        sizes = call.view.sizes(x.shape)
        count = sizes[1] * sizes[3]
        given = torch.cat([statistics[:, :2], torch.ones_like(statistics[:, :1])], 1)
        dx = operations.run(
            operations.apply, x.reshape(sizes), dvariance * 2 / count, drest / count, given,
            MERGED.code, MERGED.groups, 0.0, True, "",
        )  # fmt: skip
        return dx.reshape(x.shape), None


class _Apply(torch.autograd.Function):
    """y of x, gamma, beta and given statistics, and keeps them.

    The power is the variance with epsilon added, and the call's own epsilon zero.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Any, gamma: Any, beta: Any, mean: Any, rest: Any, power: Any, plan: Plan
    ) -> Any:
        given = packed(plan.call, mean, rest, power)
        ctx.save_for_backward(x, gamma, beta, mean, rest, power, given)
        ctx.plan = plan
        return operations.run(operations.apply, x, gamma, beta, given, *plan.options)

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:
        *operands, given = ctx.saved_tensors
        call, _, options = ctx.plan
        if twice():

            def function(x: Any, gamma: Any, beta: Any, mean: Any, rest: Any, power: Any) -> Any:
                # Without a mask the count says nothing.
                statistics = Statistics(mean, rest, power, torch.ones_like(power))
                y = plain.apply(call, x, statistics, gamma, beta)
                return activate(arrays, call.activation, y)

            return *_again(function, operands, dy), None
        x, gamma, beta, *_, power = operands
        dx, dgamma, dbeta, sums = operations.run(
            operations.apply_backward, x, gamma, beta, dy.contiguous(), given, *options
        )
        first, second = sums.unbind(1)
        dmean = -first / power.sqrt() if call.centered else None
        dpower = -0.5 * second / power
        found = (dx, None if gamma is None else dgamma, None if beta is None else dbeta)
        return *found, dmean, dmean, dpower, None
