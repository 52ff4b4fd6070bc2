"""The operations of the GPU kernels for PyTorch.

`truenorm::gpu_forward`, `gpu_backward`, `gpu_moments`, `gpu_apply` and `gpu_apply_backward` are
`triton_op`s: torch.compile and AOTInductor see the kernels in them. Eager calls pass them by, which
saves the dispatch. Where torch.compile leaves sizes open they call themselves as operations that it
does not look into, which choose the launches in the call.
"""

import dataclasses
import functools
from typing import Any

import torch
from torch import Tensor

from truenorm.core.call import Call
from truenorm.native.recipe import call_of, factors_of
from truenorm.triton import launch
from truenorm.triton.plan import make


def run(function: Any, x: Tensor, *operands: Any) -> Any:
    """What the operation computes: by the operation where torch.compile traces, else without it."""
    if torch.compiler.is_compiling():
        return _OPERATIONS[function](x, *operands)
    if not x.is_cuda or x.device.index == torch.cuda.current_device():
        return function(x, *operands)
    with torch.cuda.device(x.device):  # where Triton launches
        return function(x, *operands)


# --- launches


def _launches(
    call: Call, x: Tensor, gamma: Tensor | None, beta: Tensor | None, halves: bool = False
) -> launch.Launches:
    refusal = make(call, x.shape, halves)
    if isinstance(refusal, str):  # sizes that torch.compile left open, and has not asked for
        raise NotImplementedError(f"{refusal}. Pass implementation='plain'.")
    double, parameters = x.dtype is torch.float64, gamma is not None or beta is not None
    return launch.make(call, tuple(map(int, x.shape)), double, parameters, halves)


def _halves(
    call: Call, x: Tensor, gamma: Tensor | None, beta: Tensor | None
) -> tuple[launch.Launches, launch.Split, launch.Split]:
    """The launches of the halves, and those of forward and backward among them."""
    launches = _launches(call, x, gamma, beta, halves=True)
    forward, backward = launches.forward, launches.backward
    assert isinstance(forward, launch.Split)
    assert isinstance(backward, launch.Split)
    return launches, forward, backward


@functools.lru_cache(maxsize=1024)
def _call(code: int, groups: int, epsilon: float, centered: bool, activation: str) -> Call:
    call = call_of(factors_of(code), groups, epsilon, centered)
    return dataclasses.replace(call, activation=activation or None)


def _is_open(x: Tensor) -> bool:
    """Whether torch.compile traces, and does not know the sizes."""
    return any(type(size) is not int for size in x.shape)


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


# --- the operations


def forward(
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
    if _is_open(x):
        return torch.ops.truenorm.gpu_forward_any(x, gamma, beta, residual, *options)  # type: ignore[no-any-return]
    y, statistics, total = _forward_shapes(x, gamma, beta, residual, *options)
    if not x.numel():
        return y, statistics.zero_(), total
    passes = _launches(_call(*options), x, gamma, beta).forward
    if isinstance(passes, launch.Split):
        if residual is not None:
            x = total = x + residual  # each would read both: this moves no more
        _sums(passes, statistics, x)
        _start(passes.apply, x, gamma, beta, statistics, y)
    else:
        written = None if residual is None else total
        _start(passes, x, gamma, beta, y, statistics, residual, written)
    return y, statistics, total


def backward(
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
    if _is_open(x):
        operands = x, gamma, beta, dy, dtotal, statistics
        return torch.ops.truenorm.gpu_backward_any(*operands, *options)  # type: ignore[no-any-return]
    dx = torch.empty_like(x)
    if not x.numel():
        return dx, *_no_gradients(x, gamma, beta)
    launches = _launches(_call(*options), x, gamma, beta)
    read = x, gamma, beta, dy, statistics
    inside, sums = _left(launches, *read), None
    passes = launches.backward
    if isinstance(passes, launch.Split):
        sums = statistics.new_empty((statistics.shape[0], 2))
        _sums(passes, sums, *read, more=inside)
        _start(passes.apply, *read, sums, dx, dtotal)
    else:
        _start(passes, *read, dx, *inside, dtotal)
    return dx, *_parameter_gradients(launches, inside, sums, *read)


def moments(
    x: Tensor, code: int, groups: int, epsilon: float, centered: bool, activation: str
) -> Tensor:
    """The statistics of each group: mean, rest, variance."""
    options = code, groups, epsilon, centered, activation
    if _is_open(x):
        return torch.ops.truenorm.gpu_moments_any(x, *options)
    statistics = _moments_shapes(x, *options)
    if not x.numel():
        return statistics.zero_()
    _, passes, _ = _halves(_call(*options), x, None, None)
    _sums(passes, statistics, x)
    return statistics


def apply(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    statistics: Tensor,
    code: int,
    groups: int,
    epsilon: float,
    centered: bool,
    activation: str,
) -> Tensor:
    """y of given statistics."""
    options = code, groups, epsilon, centered, activation
    if _is_open(x):
        return torch.ops.truenorm.gpu_apply_any(x, gamma, beta, statistics, *options)
    found, wanted = statistics.shape[0], _moments_shapes(x, *options).shape[0]
    if found != wanted:
        raise RuntimeError(f"the statistics are of {found} groups; x has {wanted}")
    y = torch.empty_like(x)
    if x.numel():
        _, passes, _ = _halves(_call(*options), x, gamma, beta)
        _start(passes.apply, x, gamma, beta, statistics, y)
    return y


def apply_backward(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    dy: Tensor,
    statistics: Tensor,
    code: int,
    groups: int,
    epsilon: float,
    centered: bool,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dx, dgamma, dbeta; and for each group the sums of w and of w * xhat, where w is the gradient
    in xhat.
    """
    options = code, groups, epsilon, centered, activation
    read = x, gamma, beta, dy, statistics
    if _is_open(x):
        return torch.ops.truenorm.gpu_apply_backward_any(*read, *options)  # type: ignore[no-any-return]
    dx, *_, sums = _apply_backward_shapes(*read)
    if not x.numel():
        return dx, *_no_gradients(x, gamma, beta), sums.zero_()
    launches, _, passes = _halves(_call(*options), x, gamma, beta)
    inside = _left(launches, *read)
    _sums(passes, sums, *read, more=(dx, *inside))
    gradients = _parameter_gradients(launches, inside, sums, *read)
    if launches.sums_are_shares and gamma is not None:
        _, sets, _, extent, _ = launches.shares
        scaled = sums.reshape(*launches.shares, 2) * gamma.reshape(1, sets, 1, extent, 1, 1)
        sums = scaled.reshape(sums.shape)
    return dx, *gradients, sums


# --- the gradients of gamma and beta


def _no_gradients(x: Tensor, gamma: Tensor | None, beta: Tensor | None) -> tuple[Tensor, Tensor]:
    like = gamma if gamma is not None else beta
    return tuple(x.new_empty(0) if like is None else torch.zeros_like(like) for _ in range(2))


def _left(
    launches: launch.Launches,
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    dy: Tensor,
    statistics: Tensor,
) -> tuple[Any, Any]:
    """What the backward kernels are to fill with what is added to the gradients, if they do."""
    elsewhere = launches.sums_are_shares or launches.columns is not None
    if elsewhere or (gamma is None and beta is None):
        return None, None
    return statistics.new_empty(launches.shares), statistics.new_empty(launches.shares)


def _parameter_gradients(
    launches: launch.Launches,
    left: tuple[Any, Any],
    sums: Any,
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    dy: Tensor,
    statistics: Tensor,
) -> tuple[Tensor, Tensor]:
    """dgamma and dbeta of what the kernels left."""
    like = gamma if gamma is not None else beta
    if like is None:
        return x.new_empty(0), x.new_empty(0)
    if launches.columns is not None:
        left = statistics.new_empty(launches.shares), statistics.new_empty(launches.shares)
        _start(launches.columns, x, gamma, beta, dy, statistics, *left)
    shared = sums is not None and launches.sums_are_shares
    if shared:
        left = sums[:, 1].reshape(launches.shares), sums[:, 0].reshape(launches.shares)
    before, _, after, _, alike = launches.shares
    if shared or before * after * alike > 1:  # results of an operation share no memory
        left = left[0].sum((0, 2, 4)), left[1].sum((0, 2, 4))
    dgamma, dbeta = (one.reshape(like.shape).to(like.dtype) for one in left)
    return dgamma, dbeta


# --- what torch.compile knows of the operations


def _moments_shapes(x: Tensor, *options: Any) -> Tensor:
    k0, _, k1, _ = _call(*options).view.sizes(x.shape)
    compute = torch.float64 if x.dtype is torch.float64 else torch.float32
    return x.new_empty((k0 * k1, 3), dtype=compute)


def _forward_shapes(x: Tensor, gamma: Any, beta: Any, residual: Any, *options: Any) -> Any:
    total = x.new_empty(0) if residual is None else torch.empty_like(x)
    return torch.empty_like(x), _moments_shapes(x, *options), total


def _backward_shapes(x: Tensor, gamma: Any, beta: Any, *operands: Any) -> Any:
    like = gamma if gamma is not None else beta
    shares = (x.new_empty(0) if like is None else torch.empty_like(like) for _ in range(2))
    return torch.empty_like(x), *shares


def _apply_shapes(x: Tensor, *operands: Any) -> Tensor:
    return torch.empty_like(x)


def _apply_backward_shapes(
    x: Tensor, gamma: Any, beta: Any, dy: Any, statistics: Tensor, *options: Any
) -> Any:
    sums = statistics.new_empty((statistics.shape[0], 2))
    return *_backward_shapes(x, gamma, beta), sums


_OPERATIONS: dict[Any, Any] = {}
for _function, _shapes in (
    (forward, _forward_shapes),
    (backward, _backward_shapes),
    (moments, _moments_shapes),
    (apply, _apply_shapes),
    (apply_backward, _apply_backward_shapes),
):
    _name = f"truenorm::gpu_{_function.__name__}"
    _OPERATIONS[_function] = torch.library.triton_op(_name, _function, mutates_args=())
    _any = torch.library.custom_op(f"{_name}_any", _function, mutates_args=())
    _any.register_fake(_shapes)
