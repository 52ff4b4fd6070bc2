"""The formula in `keras.ops`: it runs on every backend and is what exported models contain.

    y = gamma * (x - mean) / sqrt(variance + epsilon) + beta

It is written for numbers first:

- The mean is carried in two parts. The mean of a quarter of the group, rounded to the compute
  dtype, is only a *pivot*; the mean of x - pivot is the rest. The result does not depend on the
  pivot, so the pivot is a constant to every derivative.
- The variance is the mean of squares about the pivot less the square of the rest, which is at most
  three variances: never a difference of large numbers.
- Sums run over one short axis at a time (`layout.py` cuts long ones), and what is broadcast is
  broadcast one axis at a time, so that the sums of the backward pass take the same path back.
"""

from collections.abc import Sequence
from typing import Any, cast

from keras import backend, ops

from truenorm.layout import Layout
from truenorm.view import View

Tensor = Any


def normalize(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    view: View,
    *,
    epsilon: float | Tensor,
    centered: bool,
    mask: Tensor | None = None,
) -> Tensor:
    """Normalize x over the reduced factors of its view.

    Args:
        x: float tensor of the view's rank.
        gamma, beta: of the view's parameter shape, or (N,) + that shape; None: one and zero.
        view: which elements share statistics, and how gamma and beta vary.
        epsilon: added to the variance; a tensor of one number where it is learned.
        centered: subtract the mean; else the statistic is the root mean square.
        mask: boolean tensor, its shape a prefix of x's; what it hides stays out of the statistics.

    Returns:
        A tensor of x's shape and dtype, computed in float64 for float64 and float32 otherwise.
    """
    dtype = backend.standardize_dtype(x.dtype)
    compute_dtype = "float64" if dtype == "float64" else "float32"
    per_sample = any(
        one is not None and len(one.shape) > len(view.parameter_axes) for one in (gamma, beta)
    )
    shape = ops.shape(x)
    layout = Layout(view, shape, per_sample)
    axes, reduced = layout.axes, layout.reduced
    x = _cast(layout.arrange(x), compute_dtype)
    if not isinstance(epsilon, (int, float)):
        epsilon = _cast(epsilon, compute_dtype)
    gamma, beta = (
        None if one is None else _cast(layout.arrange_parameter(one), compute_dtype)
        for one in (gamma, beta)
    )
    mask = layout.arrange_mask(mask)
    # The axes along which gamma is broadcast, and over which its gradient is summed.
    reduced_alike = [i for i in reduced if not axes[i].varies]
    kept_alike = [i for i, axis in enumerate(axes) if not (axis.reduced or axis.varies)][::-1]

    def total(t: Tensor, order: Sequence[int]) -> Tensor:
        for i in order:
            t = ops.sum(t, axis=i, keepdims=True)
        return t

    def spread(t: Tensor, order: Sequence[int]) -> Tensor:
        """Broadcast t along all of `order` but the first, which the next operation broadcasts.

        Where they are the innermost axes, it broadcasts all: frameworks sum those well.
        """
        if set(order) == set(range(len(axes) - len(order), len(axes))):
            return t
        for i in reversed(order[1:]):
            length = axes[i].length
            if not (isinstance(length, int) and length == 1):
                # Added to zeros rather than broadcast_to, whose strided views slow what follows.
                target = [*ops.shape(t)]
                target[i] = length
                t = t + ops.zeros(target, dtype=compute_dtype)
        return t

    def real(t: Tensor) -> Tensor:
        return t if mask is None else ops.where(mask, t, 0.0)

    count = layout.count if mask is None else total(ops.cast(mask, compute_dtype), reduced)
    if isinstance(count, int):
        share = cast(Any, 1.0 / max(count, 1))
    elif not ops.is_tensor(count):
        share = 1.0 / count  # a symbol stays one: PyTorch would make a constant of its tensor
    else:
        count = ops.cast(count, compute_dtype)
        # Not maximum: on PyTorch, Keras' maximum with a number turns float64 into float32.
        share = 1.0 / ops.where(count > 0, count, 1.0)

    rest = cast(Any, 0.0)
    if centered:
        part, fraction = layout.sample(x) if mask is None else (x, 1.0)
        pivot = ops.stop_gradient(total(real(part), reduced) * (share / fraction))
        # A compiler may compute the pivot again where it is used, fused with the subtraction and so
        # rounded differently; behind a selection it is one and the same number everywhere.
        pivot = ops.where(pivot == pivot, pivot, 0.0)
        x = x - spread(pivot, reduced)
        rest = total(real(x), reduced) * share
    # A sum of squares can overflow where their mean does not: divide before it is complete.
    if layout.first_sum_is_short:
        squares = total(ops.square(real(x)), reduced[:1]) * share
        power = total(squares, reduced[1:])
    else:
        root = share**0.5 if mask is None else spread(share**0.5, reduced)
        power = total(ops.square(real(x) * root), reduced)
    power = power - rest * rest + epsilon
    if centered:
        # Rounding can take it below zero where a constant group is huge (above 1e9 in float32).
        power = ops.where(power < 0.5 * epsilon, epsilon, power)
    # Not rsqrt: its derivative cubes the result, which underflows where x is large.
    rstd = 1.0 / ops.sqrt(power)

    # Of scale and shift: y = y * scale + shift, in turn.
    steps = cast(list[tuple[Tensor, ...]], [])
    if reduced_alike:
        # gamma is constant along some reduced axis: scale and shift are small arrays.
        scale = rstd if gamma is None else rstd * spread(gamma, kept_alike)
        shift = -rest * scale
        if beta is not None:
            shift = shift + spread(beta, kept_alike)
        steps.append((spread(scale, reduced_alike), spread(shift, reduced_alike)))
    else:
        steps.append((spread(rstd, reduced), spread(-rest * rstd, reduced) if centered else None))
        steps.append(
            tuple(None if one is None else spread(one, kept_alike) for one in (gamma, beta))
        )
    if mask is None:
        y = _affine(x, steps)
    else:
        y = _masked_affine(x, steps, mask, occupied=spread(count, reduced) > 0.0)
    return _cast(layout.restore(y), dtype)


def _cast(t: Tensor, dtype: str) -> Tensor:
    """As ops.cast, which in eager PyTorch takes a while even where there is nothing to do."""
    return t if backend.standardize_dtype(t.dtype) == dtype else ops.cast(t, dtype)


def _affine(y: Tensor, steps: Sequence[tuple[Tensor, ...]]) -> Tensor:
    for scale, shift in steps:
        if scale is not None and shift is not None:
            # PyTorch adds in place, which saves a pass of memory; its function transforms allow
            # that only where y is transformed like shift, so scale is made so.
            y = y * (scale + ops.zeros_like(shift))
            y += shift
        elif scale is not None:
            y = y * scale
        elif shift is not None:
            y = y + shift
    return y


def _masked_affine(
    x: Tensor,
    steps: Sequence[tuple[Tensor, ...]],
    mask: Tensor,
    occupied: Tensor,
) -> Tensor:
    """The affine step where masked elements may be NaN or Inf and groups may be empty.

    The derivatives of scale and gamma multiply by x, and 0 * NaN is NaN: so a masked element that
    is not finite takes them as constants. An element of an empty group counts as zero.
    """
    usable = ops.logical_or(mask, ops.isfinite(x))
    y = _affine(ops.where(ops.logical_and(usable, occupied), x, 0.0), steps)
    constants = [
        tuple(None if one is None else ops.stop_gradient(one) for one in step) for step in steps
    ]
    return ops.where(ops.logical_or(usable, ops.logical_not(occupied)), y, _affine(x, constants))
