"""The specification: forward and gradient in NumPy, in the precision of the given arrays.

Nothing here is fast or clever, and nothing at run time imports it: tests hold every
implementation against it, with float64 (or longdouble) arrays made from the rounded inputs.
"""

from typing import Any

import numpy as np

from evenkeel.view import View

Array = np.ndarray[Any, np.dtype[Any]]


def _expand(x: Array, view: View) -> tuple[Array, tuple[int, ...]]:
    """x with one axis per factor, and the positions of the reduced ones."""
    factors = view.factors
    expanded = x.transpose(view.order).reshape([view.size(one, x.shape) for one in factors])
    return expanded, tuple(i for i, one in enumerate(factors) if one.reduced)


def _collapse(expanded: Array, shape: tuple[int, ...], view: View) -> Array:
    """The inverse of `_expand`."""
    transposed = expanded.reshape([shape[axis] for axis in view.order])
    return transposed.transpose(np.argsort(view.order))


def _parameter(value: Array | None, default: float, x: Array, view: View) -> Array:
    """gamma or beta broadcast over x: of the parameter shape, or (N,) + that shape."""
    if value is None:
        return np.full(x.shape, default, x.dtype)
    axes = view.parameter_axes
    if value.ndim > len(axes):
        axes = (0, *axes)
    return np.broadcast_to(
        value.reshape([x.shape[one] if one in axes else 1 for one in range(x.ndim)]), x.shape
    )


def _statistics(
    x: Array, view: View, epsilon: float, centered: bool, mask: Array | None
) -> tuple[Array, Array, Array, Array]:
    """xhat and 1/sd, with one axis per factor, which elements count, and how many per group."""
    expanded, reduced = _expand(x, view)
    real = np.ones(expanded.shape, bool) if mask is None else _expand(mask, view)[0]
    count = real.sum(reduced, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        mean = np.zeros_like(count, x.dtype)
        if centered:
            mean = np.where(real, expanded, 0).sum(reduced, keepdims=True) / np.maximum(count, 1)
        xc = expanded - mean
        squares = np.where(real, xc, 0) ** 2
        variance = squares.sum(reduced, keepdims=True) / np.maximum(count, 1)
        rstd = 1 / np.sqrt(variance + np.asarray(epsilon, x.dtype))
        xhat = np.where(count > 0, xc * rstd, 0)
    return xhat, rstd, real, count


def normalize(
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    view: View,
    *,
    epsilon: float,
    centered: bool,
    mask: Array | None = None,
) -> Array:
    """y = gamma * (x - mean) / sqrt(variance + epsilon) + beta, masked elements not counted.

    `mask` has x's shape. A group without a real element yields beta.
    """
    xhat = _collapse(_statistics(x, view, epsilon, centered, mask)[0], x.shape, view)
    with np.errstate(invalid="ignore"):
        return xhat * _parameter(gamma, 1, x, view) + _parameter(beta, 0, x, view)


def gradient(
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    cotangent: Array,
    view: View,
    *,
    epsilon: float,
    centered: bool,
    mask: Array | None = None,
) -> tuple[Array, Array, Array]:
    """The gradient of sum(cotangent * y) with respect to x, gamma and beta.

    With g = gamma * cotangent, n real elements in a group and sums over the group,

        dx = rstd * (g - real * (sum(g) + xhat * sum(g * xhat)) / n)

    without sum(g) where the mean is not subtracted. For gamma=None and beta=None the returned
    gradients are those of ones and zeros of the parameter shape.
    """
    xhat, rstd, real, count = _statistics(x, view, epsilon, centered, mask)
    scale = _parameter(gamma, 1, x, view)
    g, reduced = _expand(scale * cotangent, view)
    n = np.maximum(count, 1)
    # A masked NaN or Inf reaches no other gradient.
    finite = np.where(real | np.isfinite(xhat), xhat, 0)
    projection = (g * finite).sum(reduced, keepdims=True) / n * finite
    if centered:
        # Masked elements move the other's statistics by nothing but move with them.
        aside = real | np.isfinite(xhat)
        projection = projection + np.where(aside, g, 0).sum(reduced, keepdims=True) / n
    dx = np.where(count > 0, rstd * (g - np.where(real, projection, 0)), 0)
    terms = cotangent * _collapse(finite, x.shape, view)
    return (
        _collapse(dx, x.shape, view),
        _sum_to_parameter(terms, gamma, view),
        _sum_to_parameter(cotangent, beta, view),
    )


def _sum_to_parameter(terms: Array, parameter: Array | None, view: View) -> Array:
    axes = view.parameter_axes
    if parameter is not None and parameter.ndim > len(axes):
        axes = (0, *axes)
    summed: Array = terms.sum(tuple(one for one in range(terms.ndim) if one not in axes))
    return summed
