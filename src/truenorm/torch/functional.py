"""The normalizations as functions of PyTorch's tensors, under torch.nn.functional's names.

Each computes

    y = weight * (x - mean) / sqrt(variance + eps) + bias

with statistics over the part of the input that `core/kinds.py` says. The result has the input's
dtype, also under autocast; statistics and math are in float64 for float64 and in float32 otherwise.

`activation`, the name of one of `core/activation.py` ("relu", "silu", "gelu" or "gelu_tanh"), is
applied to y before it is rounded. With a `residual`, a tensor of the input's shape and dtype, the
sum input + residual, rounded to their dtype, is normalized in the place of the input, and the
result is the pair (y, sum).
"""

import functools
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from truenorm import native, triton
from truenorm.arrays import torch as arrays
from truenorm.core import arguments, batch, engine
from truenorm.core import tlu as thresholded
from truenorm.core.call import Call, Statistics
from truenorm.core.kinds import KINDS
from truenorm.core.plain import Plain
from truenorm.core.view import canonical_axes
from truenorm.native.torch_cache import remembered

__all__ = [
    "batch_norm",
    "filter_response_norm",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "rms_norm",
    "tlu",
]

Result: TypeAlias = Tensor | Any  # a Tensor, or with a residual a pair of them

FRONT = engine.Front(arrays, (native.engine("torch"), triton.engine("torch"), Plain(arrays)))
_surrounded = remembered(arguments.surrounded)
_check_moving = remembered(arguments.check_moving)
_NAMES = arguments.Names("input", "weight", "bias", "num_groups", "eps")


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    axis: int = 1,
    mask: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
    implementation: str | None = None,
) -> Result:
    """Normalize each sample's channels in groups (Wu and He, 2018, arXiv:1803.08494).

    Args:
        input: float tensor (N, C, ...).
        num_groups: a divisor of C, or -1 for one group per channel.
        weight: (C,), or (N, C) with one row per sample; None is one.
        bias: shaped like weight; None is zero.
        eps: added to the variance, in units of the input squared; not negative.
        axis: the channel axis: -1 for (N, ..., C). With 0, the input is one sample.
        mask: boolean. Its shape is the beginning of the input's, (N,), (N, C), ..., or has the
            input's rank and broadcasts to it, (N, 1, T). Elements where it is False stay out of
            the statistics, but are normalized with them.
        activation: None, "relu", "silu", "gelu" (exact) or "gelu_tanh", applied to the result.
        residual: added to the input before; of the input's shape and dtype.
        implementation: None, "plain", "native" or "triton"; see `truenorm.use_implementation`.

    Returns:
        A tensor of the input's shape, dtype and, without a mask, memory format; with a residual
        the pair of it and the sum. A group with one element, or with none that the mask leaves,
        yields bias.

    Raises:
        ValueError: a shape, axis, number of groups, eps or name does not fit.
        TypeError: the input is no floating-point tensor, the residual not of its dtype, the mask
            not boolean, or axis or num_groups not an integer.
        NotImplementedError: the named implementation does not support the call.
    """
    return _compute(
        "group", input, weight, bias, mask, axis, num_groups, None, eps, implementation,
        activation, residual,
    )  # fmt: skip


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
    *,
    axis: int | Sequence[int] = 1,
    virtual_batch_size: int | None = None,
    renorm: batch.Renorm | None = None,
    unbiased: bool = True,
    synchronize: bool = False,
    process_group: Any = None,
    mask: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
    implementation: str | None = None,
) -> Result:
    """Normalize each channel over the batch (Ioffe and Szegedy, 2015, arXiv:1502.03167).

    Args:
        input: float tensor (N, C, ...).
        running_mean, running_var: (C,); training moves them in place, inference uses them.
        weight: (C,); None is one.
        bias: shaped like weight; None is zero.
        training: use the statistics of the batch, and move the running ones where there are some.
        momentum: the share of the batch in the running statistics, a number or a tensor of one.
        eps: added to the variance, in units of the input squared; not negative.
        axis: the channel axis, or several, of whose sizes the parameters then are.
        virtual_batch_size: take statistics over so many samples in turn, and over what is left;
            the running ones move by their average (Hoffer et al., 2017, arXiv:1705.08741).
        renorm: the correction of batch renormalization (Ioffe, 2017, arXiv:1702.03275).
        unbiased: the running variance is that with n - 1 in the denominator, as in torch.nn.
        synchronize: take statistics over all processes of torch.distributed, where there are
            several; their batches may differ in size, also to nothing.
        process_group: those processes alone; None is all.
        mask: as in `group_norm`; a batch that it hides whole moves nothing. In inference it changes
            the derivatives alone, of what it hides and is not finite.
        activation, residual, implementation: as in `group_norm`.

    Returns, raises: as `group_norm`; and
        ValueError: training with one value for each channel, or running statistics are needed and
            missing, or of another shape, or virtual batches are asked for of all processes.
    """
    call, mask = _checked(
        "batch", input, weight, bias, mask, axis, None, None, eps, activation, residual
    )
    _check_running(call, input, running_mean, running_var, not training)
    if not training:
        operands = (input, running_mean, running_var, weight, bias, residual, mask)
        return batch.infer(FRONT, implementation, call, *operands)
    several = synchronize and arrays.processes(process_group) > 1
    virtual = arguments.check_virtual(virtual_batch_size, "synchronize=True" if several else None)
    gather = functools.partial(arrays.gather, group=process_group) if several else None
    if not several:
        _check_several(call, input, virtual)
    y, statistics = batch.train(
        FRONT, implementation, call, input, weight, bias, mask, residual,
        gather=gather, virtual=virtual, renorm=renorm,
    )  # fmt: skip
    _move(running_mean, running_var, statistics, momentum, unbiased)
    return y


def _check_several(call: Call, input: Tensor, virtual: int | None) -> None:
    """Raise ValueError where a batch, virtual or not, has one value for each channel."""
    rows = input.shape[0]
    _, r0, _, r1 = call.view.sizes(input.shape)
    count = r0 * r1
    if virtual is not None and rows and count == rows and 1 in (virtual, rows % virtual):
        raise ValueError(
            f"virtual_batch_size={virtual} leaves one value for each channel of an input of shape "
            f"{tuple(input.shape)} in a virtual batch, whose variance is zero; choose another."
        )
    if count == 1:
        raise ValueError(
            "Expected more than 1 value per channel when training, got input of shape "
            f"{tuple(input.shape)}: its variance is zero. Pass larger batches, or call eval()."
        )


def _check_running(
    call: Call, input: Tensor, mean: Tensor | None, var: Tensor | None, needed: bool
) -> None:
    """Raise ValueError unless running statistics fit the input, or there are none."""
    shapes = [None if one is None else one.shape for one in (mean, var)]
    _check_moving(call, input.shape, *shapes, needed, ("running_mean", "running_var"), _NAMES.x)


def _move(
    mean: Tensor | None, var: Tensor | None, statistics: Statistics, share: Any, unbiased: bool
) -> None:
    """Move running statistics, where there are some, in place."""
    if mean is None or var is None:
        return
    with torch.no_grad():
        found = batch.moved(arrays, mean, var, statistics, share, unbiased)
        mean.copy_(found[0])
        var.copy_(found[1])


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
    *,
    axis: int = 1,
    mask: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
    implementation: str | None = None,
) -> Result:
    """Normalize each channel of each sample by itself (Ulyanov et al., 2016, arXiv:1607.08022).

    Args:
        input, weight, bias, eps, axis, mask, activation, residual, implementation: as in
            `group_norm`.
        running_mean, running_var: (C,); moved in place by the average of the samples' statistics,
            the variances with n - 1 in the denominator, as in torch.nn.
        use_input_stats: normalize with the input's statistics; else with the running ones.
        momentum: the share of the input in the running statistics.

    Returns, raises: as `group_norm`; and
        ValueError: running statistics are needed and missing, or of another shape.
    """
    if use_input_stats and running_mean is None and running_var is None:
        return _compute(
            "instance", input, weight, bias, mask, axis, -1, None, eps, implementation,
            activation, residual,
        )  # fmt: skip
    kind = "instance" if use_input_stats else "batch"
    call, mask = _checked(
        kind, input, weight, bias, mask, axis, -1 if use_input_stats else None, None, eps,
        activation, residual,
    )  # fmt: skip
    _check_running(call, input, running_mean, running_var, not use_input_stats)
    if not use_input_stats:
        operands = (input, running_mean, running_var, weight, bias, residual, mask)
        return batch.infer(FRONT, implementation, call, *operands)
    y, statistics = batch.train(FRONT, implementation, call, input, weight, bias, mask, residual)
    samples = Statistics(*(one.reshape(input.shape[0], -1) for one in statistics))
    count = samples.count
    variance = samples.variance * (count / torch.where(count > 1, count - 1, 1.0))
    average = batch.averaged(arrays, samples._replace(variance=variance))
    _move(running_mean, running_var, average, momentum, unbiased=False)
    return y


def layer_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    axis: int | Sequence[int] | None = None,
    mask: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
    implementation: str | None = None,
) -> Result:
    """Normalize over some axes, at each place of the others (Ba et al., 2016, arXiv:1607.06450).

    Args:
        input: float tensor of rank 1 or more.
        normalized_shape: the sizes of the normalized axes, in ascending order of the axes.
        weight: of normalized_shape, or after a leading N with one entry per sample; None is one.
        bias: shaped like weight; None is zero.
        eps: added to the variance, in units of the input squared; not negative.
        axis: the normalized axis or axes; None is the last ones, as many as normalized_shape has.
            `axis=1` normalizes the channels of (N, C, H, W). With 0 among them samples are mixed.
        mask, activation, residual, implementation: as in `group_norm`.

    Returns, raises: as `group_norm`.
    """
    return _compute(
        "layer", input, weight, bias, mask, axis, None, normalized_shape, eps, implementation,
        activation, residual,
    )  # fmt: skip


def rms_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    axis: int | Sequence[int] | None = None,
    mask: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
    implementation: str | None = None,
) -> Result:
    """Divide by the root mean square over some axes (Zhang and Sennrich, arXiv:1910.07467).

    y = weight * x / sqrt(mean(x**2) + eps), where an eps of None is, as in torch.nn,
    torch.finfo of float64 for float64 and of float32 otherwise. The other
    arguments, the result and the errors are those of `layer_norm`.
    """
    _check_tensor("input", input)
    if eps is None:
        eps = torch.finfo(torch.promote_types(input.dtype, torch.float32)).eps
    return _compute(
        "rms", input, weight, None, mask, axis, None, normalized_shape, eps, implementation,
        activation, residual,
    )  # fmt: skip


def filter_response_norm(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float | Tensor = 1e-6,
    *,
    axis: int | Sequence[int] | None = None,
    mask: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
    implementation: str | None = None,
) -> Result:
    """Divide each channel of each sample by its root mean square (arXiv:1911.09737).

    After Singh and Krishnan, 2019: y = weight * x / sqrt(mean(x**2) + eps) + bias.

    Args:
        input: float tensor (N, C, ...), rank 2 or more.
        weight: (C,), or (N, C) with one row per sample; None is one.
        bias: shaped like weight; None is zero.
        eps: added to the mean square; a tensor of one number where it is learned.
        axis: the axes over which the mean is taken: all but the batch axis and the channel axis;
            None is all from 2 on, so that the channels are axis 1. (1, 2) for (N, H, W, C).
        mask, activation, residual, implementation: as in `group_norm`.

    Returns, raises: as `group_norm`.
    """
    axis = tuple(range(2, input.ndim)) if axis is None else axis
    learned = eps if isinstance(eps, Tensor) else None
    number = 0.0 if isinstance(eps, Tensor) else eps
    return _compute(
        "frn", input, weight, bias, mask, axis, None, None, number, implementation,
        activation, residual, learned,
    )  # fmt: skip


def tlu(input: Tensor, tau: Tensor, alpha: Tensor | None = None, *, axis: int = 1) -> Tensor:
    """Thresholded linear unit, max(x, tau), with a tau for each channel (arXiv:1911.09737).

    After Singh and Krishnan, 2019. With alpha the threshold is alpha * x + tau.

    Args:
        input: float tensor (N, C, ...).
        tau, alpha: (C,).
        axis: the channel axis.

    Returns:
        A tensor of the input's shape and dtype, computed in float32 at least. Where the input
        equals its threshold the gradient is that of the input.

    Raises:
        ValueError: tau or alpha has not the size of the channel axis.
    """
    _check_tensor("input", input)
    shapes = {"tau": tau.shape, "alpha": None if alpha is None else alpha.shape}
    sizes = thresholded.sizes(input.shape, axis, shapes, "input")
    compute = torch.promote_types(input.dtype, torch.float32)
    wide = [None if one is None else one.to(compute).reshape(sizes) for one in (tau, alpha)]
    return thresholded.compute(arrays, input.to(compute), *wide).to(input.dtype)


def _compute(
    name: str,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mask: Tensor | None,
    axis: int | Sequence[int] | None,
    groups: int | None,
    normalized_shape: int | Sequence[int] | None,
    eps: float,
    implementation: str | None,
    activation: str | None,
    residual: Tensor | None,
    learned_eps: Tensor | None = None,
) -> Result:
    """Check the tensors, prepare the call, and compute it."""
    call, mask = _checked(
        name, input, weight, bias, mask, axis, groups, normalized_shape, eps, activation, residual
    )
    return engine.normalize(
        FRONT, implementation, call, input, weight, bias, mask, learned_eps, residual
    )


def _checked(
    name: str,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mask: Tensor | None,
    axis: int | Sequence[int] | None,
    groups: int | None,
    normalized_shape: int | Sequence[int] | None,
    eps: float,
    activation: str | None,
    residual: Tensor | None,
) -> tuple[Call, Tensor | None]:
    """The call, once the tensors are checked, and the mask as engines take it."""
    # The looks of _check_tensor, here without a call of it for each.
    if not (isinstance(input, Tensor) and input.is_floating_point()):
        _check_tensor("input", input)
    if weight is not None and not (isinstance(weight, Tensor) and weight.is_floating_point()):
        _check_tensor("weight", weight)
    if bias is not None and not (isinstance(bias, Tensor) and bias.is_floating_point()):
        _check_tensor("bias", bias)
    if mask is not None:
        _check_tensor("mask", mask)
        if mask.ndim == input.ndim and mask.shape != input.shape:
            arguments.check_broadcast(mask.shape, input.shape, "input")
            mask = mask.expand(input.shape)
    call = _prepare(
        name,
        input.shape,
        None if weight is None else weight.shape,
        None if bias is None else bias.shape,
        None if mask is None else mask.shape,
        axis if axis is None or isinstance(axis, int) else tuple(axis),
        groups,
        normalized_shape if normalized_shape is None or isinstance(normalized_shape, int)
        else tuple(normalized_shape),
        eps,
    )  # fmt: skip
    if activation is not None or residual is not None:
        if residual is not None:
            _check_tensor("residual", residual)
        added = None if residual is None else (residual.shape, arrays.dtype(residual))
        x = input.shape, arrays.dtype(input)
        call = _surrounded(call, activation, added, x, _NAMES.x)
    return call, mask


@remembered
def _prepare(
    name: str,
    shape: tuple[int, ...],
    weight: tuple[int, ...] | None,
    bias: tuple[int, ...] | None,
    mask: tuple[int, ...] | None,
    axis: int | tuple[int, ...] | None,
    groups: int | None,
    normalized_shape: int | tuple[int, ...] | None,
    eps: float,
) -> Call:
    """Check what is no tensor, and the shapes of what is."""
    if normalized_shape is not None:
        sizes = (normalized_shape,) if isinstance(normalized_shape, int) else normalized_shape
        if axis is None:
            axis = tuple(range(-len(sizes), 0))
        _check_sizes(shape, axis, sizes)
    return arguments.prepare(KINDS[name], shape, weight, bias, mask, axis, groups, eps, _NAMES)


def _check_sizes(
    shape: tuple[int, ...], axis: int | tuple[int, ...], sizes: tuple[int, ...]
) -> None:
    """Raise ValueError unless the axes of this shape have these sizes."""
    axes = canonical_axes(axis, len(shape))
    found = tuple(shape[one] for one in axes)
    if found != sizes:
        raise ValueError(
            f"normalized_shape={sizes} are not the sizes {found} of axes {list(axes)} of an input "
            f"of shape {tuple(shape)}; give the sizes of the normalized axes in ascending order."
        )


def _check_tensor(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        if arguments.is_array(value):
            arguments.refuse_array(
                name, value, "torch", "truenorm.torch computes with torch",
                f"torch.as_tensor({name})",
            )  # fmt: skip
        raise TypeError(f"{name} must be a torch.Tensor; got {type(value).__name__}.")
    if (value.dtype is not torch.bool) if name == "mask" else (not value.is_floating_point()):
        arguments.check_dtype(name, arrays.dtype(value))
