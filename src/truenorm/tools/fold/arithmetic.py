"""A batch normalization in inference, folded into a layer that is linear, in float64.

s = gamma / sqrt(variance + epsilon),  t = beta - mean * s,  so that batch normalization is s * x + t
after the layer:   s * (W x + b) + t  =  (s W) x + (s b + t)
before the layer:  W (s x + t) + b    =  (W s) x + (W t + b)
"""  # noqa: E501

import dataclasses
from typing import Any

import numpy as np

from truenorm.tools.carry.modules import Array, Normalization, Shape


@dataclasses.dataclass(frozen=True)
class Affine:
    """What batch normalization does in inference: scale and shift, each (C,), float64."""

    scale: Array
    shift: Array


def affine(one: Normalization) -> Affine:
    """The scale and the shift of a batch normalization with statistics."""
    values = {name: one.value(name) for name in ("gamma", "beta", "mean", "variance")}
    wide = {
        name: value.astype(np.float64).reshape(-1)
        for name, value in values.items()
        if value is not None
    }
    mean, variance = wide["mean"], wide["variance"]
    scale = wide.get("gamma", np.ones(())) / np.sqrt(variance + (one.epsilon() or 0.0))
    return Affine(scale, wide.get("beta", np.zeros(())) - mean * scale)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a framework's kernel becomes (taps, groups, channels in, channels out), in each group.

    Attributes:
        split: the shape to read it in, with one axis for all taps.
        order: where taps, groups, channels in and channels out are among these axes.
    """

    split: Shape
    order: tuple[int, int, int, int]

    def read(self, kernel: Array) -> Array:
        """The kernel in our order, float64."""
        return kernel.astype(np.float64).reshape(self.split).transpose(self.order)

    def write(self, kernel: Array, shape: Shape) -> Array:
        """The kernel in the framework's."""
        return kernel.transpose(np.argsort(self.order)).reshape(shape)


@dataclasses.dataclass
class Linear:
    """A convolution or a dense layer.

    Attributes:
        kernel: (taps, groups, channels in, channels out).
        bias: (groups * channels out,).
        activation: whether one follows in the same layer.
        zeros: whether zeros stand beside values of the input: padding, or a transposed convolution.
        note: what else there is to know of a normalization in it.
        inner: the kernel that comes first, without a bias, in a separable convolution.
    """

    kernel: Array
    bias: Array
    activation: bool = False
    zeros: bool = False
    note: str = ""
    inner: Array | None = None

    def channels(self, after: bool) -> int:
        """Those that a normalization after it, or before it, has."""
        first = self.kernel if after or self.inner is None else self.inner
        _, groups, into, out = first.shape
        return int(groups * (out if after else into))

    def fold(self, one: Affine, after: bool) -> None:
        """Take in a normalization that stands after it, or before it."""
        if after:
            self.kernel = _scaled_out(self.kernel, one.scale)
            self.bias = self.bias * one.scale + one.shift
        elif self.inner is None:
            self.bias = self.bias + _through(self.kernel, one.shift)
            self.kernel = _scaled_in(self.kernel, one.scale)
        else:
            self.bias = self.bias + _through(self.kernel, _through(self.inner, one.shift))
            self.inner = _scaled_in(self.inner, one.scale)


def _scaled_out(kernel: Array, scale: Array) -> Array:
    return np.asarray(kernel * scale.reshape(1, kernel.shape[1], 1, kernel.shape[3]))


def _scaled_in(kernel: Array, scale: Array) -> Array:
    return np.asarray(kernel * scale.reshape(1, kernel.shape[1], kernel.shape[2], 1))


def _through(kernel: Array, shift: Array) -> Any:
    """What the layer makes of a constant input."""
    constant = shift.reshape(kernel.shape[1], kernel.shape[2])
    return np.einsum("kgio,gi->go", kernel, constant).reshape(-1)
