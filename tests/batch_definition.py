"""Batch normalization as Ioffe and Szegedy (2015) define it, in NumPy, for arrays of any width.

`axes` are those of the channels, and all others are reduced; what a mask hides counts nowhere.
"""

import numpy as np


def _wide(*arrays):
    """The arrays in float64, or wider where they are."""
    return [np.asarray(one).astype(np.result_type(np.asarray(one), np.float64)) for one in arrays]


def _sizes(x, axes):
    return [x.shape[i] if i in axes else 1 for i in range(x.ndim)]


def _statistics(x, axes, mask):
    """Which elements are real, the mean of each channel, and the biased variance, to broadcast."""
    others = tuple(i for i in range(x.ndim) if i not in axes)
    real = np.ones(x.shape, bool) if mask is None else np.broadcast_to(mask, x.shape)
    n = np.maximum(real.sum(others, keepdims=True), 1)
    mean = np.where(real, x, 0).sum(others, keepdims=True) / n
    variance = (np.where(real, x - mean, 0) ** 2).sum(others, keepdims=True) / n
    return real, n, mean, variance


def defined(x, gamma, beta, axes, mask=None, *, epsilon):
    """y; the mean and the biased variance, of gamma's shape."""
    x, gamma, beta = _wide(x, gamma, beta)
    _, _, mean, variance = _statistics(x, axes, mask)
    sizes = _sizes(x, axes)
    xhat = (x - mean) / np.sqrt(variance + epsilon)
    y = xhat * gamma.reshape(sizes) + beta.reshape(sizes)
    return y, mean.reshape(gamma.shape), variance.reshape(gamma.shape)


def gradients(x, gamma, cotangent, axes, epsilon, mask=None):
    """Those of x, gamma and beta; and 1 / sd, to broadcast to x."""
    x, gamma, cotangent = _wide(x, gamma, cotangent)
    others = tuple(i for i in range(x.ndim) if i not in axes)
    real, n, mean, variance = _statistics(x, axes, mask)
    rstd = 1 / np.sqrt(variance + epsilon)
    xhat = (x - mean) * rstd
    g = cotangent * gamma.reshape(_sizes(x, axes))
    means = [one.sum(others, keepdims=True) / n for one in (g, g * xhat)]
    dx = rstd * (g - np.where(real, means[0] + xhat * means[1], 0))
    return dx, (cotangent * xhat).sum(others), cotangent.sum(others), rstd
