"""Mean and variance of values that come in parts, without E[x²] - E[x]²."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from truenorm.core.view import canonical_axes

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Moments:
    """Of each channel: how many values, their mean, and their squared distances from it, summed.

    Attributes:
        count, mean, squares: each (C,), float64.
    """

    count: Array
    mean: Array
    squares: Array

    def __add__(self, other: "Moments") -> "Moments":
        """The moments of both parts together (Chan, Golub and LeVeque, 1979)."""
        count = self.count + other.count
        share = other.count / np.maximum(count, 1)
        apart = other.mean - self.mean
        mean = self.mean + apart * share
        squares = self.squares + other.squares + np.square(apart) * self.count * share
        return Moments(count, mean, squares)

    def variance(self, unbiased: bool = False) -> Array:
        """The mean squared distance, (C,); unbiased, with count - 1 in the denominator."""
        below = self.count - 1 if unbiased else self.count
        return np.asarray(self.squares / np.maximum(below, 1))


def moments(x: Array, axis: int | Sequence[int], mask: Array | None = None) -> Moments:
    """The moments of each channel.

    Args:
        x: of any shape and dtype, with the channels along `axis`.
        axis: of the channels, or several.
        mask: only values where it is true count; its shape is a prefix of that of x, or broadcasts
            to it.
    """
    axes = canonical_axes(axis, x.ndim)
    last = tuple(range(x.ndim - len(axes), x.ndim))
    shape = (-1, math.prod(x.shape[one] for one in axes))
    channels = np.moveaxis(x, axes, last).reshape(shape)
    if mask is None:
        mean = channels.mean(0, dtype=np.float64)
        squares = np.square(channels - mean).sum(0)
        return Moments(np.full(mean.shape, float(len(channels))), mean, squares)
    if mask.shape == x.shape[: mask.ndim]:
        mask = mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))
    there = np.moveaxis(np.broadcast_to(mask.astype(bool), x.shape), axes, last).reshape(shape)
    count = there.sum(0, dtype=np.float64)
    mean = np.where(there, channels, 0).sum(0, dtype=np.float64) / np.maximum(count, 1)
    return Moments(count, mean, np.square(np.where(there, channels - mean, 0)).sum(0))
