"""The specification: forward and gradient in NumPy, in the precision of the given arrays.

Nothing here is fast or clever, and nothing at run time imports it: tests hold every
implementation against it, with float64 (or longdouble) arrays made from the rounded inputs.
"""

import math
from typing import Any

import numpy as np

from truenorm.core.view import View

Array = np.ndarray[Any, np.dtype[Any]]


def expand(x: Array, view: View) -> tuple[Array, tuple[int, ...]]:
    """x with one axis per factor, and the positions of the reduced ones."""
    factors = view.factors
    expanded = x.transpose(view.order).reshape([view.size(one, x.shape) for one in factors])
    return expanded, tuple(i for i, one in enumerate(factors) if one.reduced)


def collapse(expanded: Array, shape: tuple[int, ...], view: View) -> Array:
    """The inverse of `expand`."""
    transposed = expanded.reshape([shape[axis] for axis in view.order])
    return transposed.transpose(np.argsort(view.order))


def parameter(value: Array | None, default: float, x: Array, view: View) -> Array:
    """gamma or beta broadcast over x: of the parameter shape, or (N,) + that shape."""
    if value is None:
        return np.full(x.shape, default, x.dtype)
    axes = view.parameter_axes
    if value.ndim > len(axes):
        axes = (0, *axes)
    return np.broadcast_to(
        value.reshape([x.shape[one] if one in axes else 1 for one in range(x.ndim)]), x.shape
    )


def statistics(
    x: Array, view: View, epsilon: float, centered: bool, mask: Array | None
) -> tuple[Array, Array, Array, Array]:
    """xhat and 1/sd, with one axis per factor, which elements count, and how many per group."""
    expanded, reduced = expand(x, view)
    real = np.ones(expanded.shape, bool) if mask is None else expand(mask, view)[0]
    count = real.sum(reduced, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        mean = rest = np.zeros_like(count, x.dtype)
        if centered:
            mean = np.where(real, expanded, 0).sum(reduced, keepdims=True) / np.maximum(count, 1)
            # What rounding left of the mean, kept apart: long sums lose digits here too.
            rest = np.where(real, expanded - mean, 0).sum(reduced, keepdims=True)
            rest = rest / np.maximum(count, 1)
        xc = expanded - mean - rest
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
    xhat = collapse(statistics(x, view, epsilon, centered, mask)[0], x.shape, view)
    with np.errstate(invalid="ignore"):
        return xhat * parameter(gamma, 1, x, view) + parameter(beta, 0, x, view)


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
    xhat, rstd, real, count = statistics(x, view, epsilon, centered, mask)
    scale = parameter(gamma, 1, x, view)
    g, reduced = expand(scale * cotangent, view)
    n = np.maximum(count, 1)
    # A masked element that is not finite takes the statistics, gamma and beta as constants.
    usable = real | np.isfinite(xhat)
    xhat = np.where(usable, xhat, 0)
    projection = (g * xhat).sum(reduced, keepdims=True) / n * xhat
    if centered:
        projection = projection + np.where(usable, g, 0).sum(reduced, keepdims=True) / n
    dx = np.where(count > 0, rstd * (g - np.where(real, projection, 0)), 0)
    terms = cotangent * collapse(xhat, x.shape, view)
    offsets = np.where(collapse(usable, x.shape, view), cotangent, 0)
    return (
        collapse(dx, x.shape, view),
        sum_to_parameter(terms, gamma, view),
        sum_to_parameter(offsets, beta, view),
    )


def sum_to_parameter(terms: Array, parameter: Array | None, view: View) -> Array:
    """Sum an array of x's shape over the axes along which gamma (or beta) does not vary."""
    axes = view.parameter_axes
    if parameter is not None and parameter.ndim > len(axes):
        axes = (0, *axes)
    summed: Array = terms.sum(tuple(one for one in range(terms.ndim) if one not in axes))
    return summed


def activation(name: str | None, y: Array) -> tuple[Array, Array]:
    """The activation of this name, and its derivative, of every element of y."""
    with np.errstate(over="ignore"):
        sigmoid = 1 / (1 + np.exp(-y))
        if name == "relu":
            return np.maximum(y, 0), np.where(y > 0, 1, 0).astype(y.dtype)
        if name == "silu":
            return y * sigmoid, sigmoid * (1 + y * (1 - sigmoid))
        if name == "gelu":
            share = (1 + np.vectorize(math.erf, otypes="d")(y / math.sqrt(2))).astype(y.dtype) / 2
            return y * share, share + y * np.exp(-(y**2) / 2) / math.sqrt(2 * math.pi)
        if name == "gelu_tanh":
            inner = math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)
            slope = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * y**2)
            tanh = np.tanh(inner)
            return y * (1 + tanh) / 2, (1 + tanh) / 2 + y * (1 - tanh**2) * slope / 2
    return y, np.ones_like(y)
