"""Normalizations as functions of tensors: they validate, build the view, choose, and call.

Every function computes

    y = gamma * (x - mean) / sqrt(variance + epsilon) + beta

with statistics over a part of each sample, and differs from the others only in which part
(`view.py`). The math is in `plain.py`.
"""

import importlib
import numbers
import operator
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import backend

from truenorm import native
from truenorm.errors import brief
from truenorm.implementation import check as check_implementation
from truenorm.implementation import choose
from truenorm.view import (
    View,
    axes_view,
    canonical_axes,
    channel_view,
    check_groups,
    group_view,
)

__all__ = [
    "filter_response_normalization",
    "group_normalization",
    "instance_normalization",
    "layer_normalization",
    "rms_normalization",
]

Tensor = Any

# In eager PyTorch to convert what is converted, or to name its dtype, is most of a small call.
_TAKEN_AS_THEY_ARE = (
    (importlib.import_module("torch").Tensor,) if backend.backend() == "torch" else ()
)

# What is no array of another framework, though it may have an array's methods.
_TAKEN = (numbers.Number, np.ndarray, np.generic, keras.Variable, keras.KerasTensor)

# Their statistic is the root mean square; the others subtract the mean.
UNCENTERED = ("filter_response_normalization", "rms_normalization")


def group_normalization(
    x: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    groups: int = 32,
    axis: int = -1,
    epsilon: float = 1e-3,
    mask: Tensor | None = None,
    implementation: str | None = None,
) -> Tensor:
    """Normalize each sample's channels in groups (Wu and He, 2018, arXiv:1803.08494).

    The mean and variance are taken over all axes but the batch, within each group of C / groups
    neighbouring channels.

    Args:
        x: float tensor (N, ...).
        gamma: scale, (C,), or (N, C) with one row per sample; None is one.
        beta: offset, shaped like gamma; None is zero.
        groups: a divisor of C, or -1 for one group per channel.
        axis: the channel axis. With 0, or rank 1, x is one sample without a batch axis.
        epsilon: added to the variance, in units of x squared; not negative.
        mask: boolean, its shape a prefix of x's: (N,), (N, T), ... Elements where it is False
            stay out of the statistics, but are normalized with them.
        implementation: None, "plain" or "native"; see `truenorm.use_implementation`.

    Returns:
        A tensor of x's shape and dtype. Statistics and math are in float64 for float64 and in
        float32 otherwise. A group with no element that the mask leaves yields beta.

    Raises:
        ValueError: a shape, axis, number of groups, epsilon or name does not fit.
        TypeError: x is not floating or of another framework than Keras' backend, the mask is not
            boolean, or axis or groups not an integer.
        NotImplementedError: the named implementation does not support the call.
    """
    partition = {"groups": check_group_count(groups), "axis": check_single_axis(axis)}
    options = {**partition, "epsilon": check_epsilon(epsilon)}
    return _apply("group_normalization", x, gamma, beta, mask, implementation, options)


def instance_normalization(
    x: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-3,
    mask: Tensor | None = None,
    implementation: str | None = None,
) -> Tensor:
    """Normalize each channel of each sample by itself (Ulyanov et al., 2016, arXiv:1607.08022).

    This is `group_normalization` with one group per channel, and takes its other arguments.
    """
    partition = {"groups": -1, "axis": check_single_axis(axis)}
    options = {**partition, "epsilon": check_epsilon(epsilon)}
    return _apply("instance_normalization", x, gamma, beta, mask, implementation, options)


def layer_normalization(
    x: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    axis: int | Sequence[int] = -1,
    epsilon: float = 1e-3,
    mask: Tensor | None = None,
    implementation: str | None = None,
) -> Tensor:
    """Normalize over the given axes, separately at each place of the others (arXiv:1607.06450).

    After Ba, Kiros and Hinton, 2016. On (N, H, W, C), `axis=3` takes one mean per pixel and
    `axis=[1, 2, 3]` one per sample.

    Args:
        x: float tensor of rank 1 or more.
        gamma: scale, of the sizes of the normalized axes in ascending order, or that shape after
            a leading N with one entry per sample; None is one.
        beta: offset, shaped like gamma; None is zero.
        axis: the normalized axis, or a list of them. With the batch axis 0 among them samples are
            mixed, and gamma has no entry per sample.
        epsilon: added to the variance, in units of x squared; not negative.
        mask: as in `group_normalization`.
        implementation: None, "plain" or "native"; see `truenorm.use_implementation`.

    Returns:
        A tensor of x's shape and dtype, computed as in `group_normalization`.

    Raises:
        ValueError, TypeError, NotImplementedError: as `group_normalization`.
    """
    options = {"axis": axis, "epsilon": check_epsilon(epsilon)}
    return _apply("layer_normalization", x, gamma, beta, mask, implementation, options)


def rms_normalization(
    x: Tensor,
    gamma: Tensor | None = None,
    *,
    axis: int | Sequence[int] = -1,
    epsilon: float = 1e-6,
    mask: Tensor | None = None,
    implementation: str | None = None,
) -> Tensor:
    """Divide by the root mean square over the given axes (Zhang and Sennrich, arXiv:1910.07467).

    y = gamma * x / sqrt(mean(x**2) + epsilon). The arguments, the result and the errors are those
    of `layer_normalization`, without beta.
    """
    options = {"axis": axis, "epsilon": check_epsilon(epsilon)}
    return _apply("rms_normalization", x, gamma, None, mask, implementation, options)


def filter_response_normalization(
    x: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    axis: int | Sequence[int] = (1, 2),
    epsilon: float = 1e-6,
    mask: Tensor | None = None,
    implementation: str | None = None,
) -> Tensor:
    """Divide each channel of each sample by its root mean square (arXiv:1911.09737).

    After Singh and Krishnan, 2019: y = gamma * x / sqrt(mean(x**2) + epsilon) + beta.

    Args:
        x: float tensor (N, ...), rank 2 or more.
        gamma: scale, (C,), or (N, C) with one row per sample; None is one.
        beta: offset, shaped like gamma; None is zero.
        axis: the axis or axes over which the mean is taken: all but the batch axis 0 and the
            channel axis, which is the one that is left. [1, 2] for (N, H, W, C), [2, 3] for
            (N, C, H, W), 1 for (N, T, C), [] for (N, C). With 0 among them samples are mixed.
        epsilon: added to the mean square, in units of x squared; not negative.
        mask: as in `group_normalization`.
        implementation: None, "plain" or "native"; see `truenorm.use_implementation`.

    Returns:
        A tensor of x's shape and dtype, computed as in `group_normalization`.

    Raises:
        ValueError, TypeError, NotImplementedError: as `group_normalization`.
    """
    options = {"axis": axis, "per_channel": True, "epsilon": check_epsilon(epsilon)}
    return _apply("filter_response_normalization", x, gamma, beta, mask, implementation, options)


def check_single_axis(axis: Any) -> int:
    """Return axis as a plain integer, or raise TypeError if it is not one integer."""
    try:
        return operator.index(axis)
    except TypeError:
        raise TypeError(
            f"axis={brief(axis)} must be one integer, the channel axis; for statistics over "
            "several axes use layer normalization, which takes a list."
        ) from None


def check_group_count(groups: Any) -> int:
    """Return groups as a plain integer, or raise unless it is positive or -1."""
    try:
        count = operator.index(groups)
    except TypeError:
        raise TypeError(f"groups={brief(groups)} must be an integer.") from None
    if count < 1 and count != -1:
        raise ValueError(
            f"groups={brief(groups)} must be a positive divisor of the number of channels, or -1 "
            "for one group per channel."
        )
    return count


def check_epsilon(epsilon: Any) -> float:
    """Return epsilon as a plain float, or raise ValueError unless it is finite and >= 0."""
    try:
        number = float(epsilon) if isinstance(epsilon, (float, numbers.Real)) else -1.0
    except OverflowError:
        number = float("inf")
    if not 0 <= number < float("inf"):
        raise ValueError(f"epsilon={brief(epsilon)} must be a finite number of zero or more.")
    return number


def check_float64(requested: Any, given: Any) -> None:
    """Raise ValueError where float64 was requested and the backend made something else of it."""
    if str(requested) == "float64" and backend.standardize_dtype(given) != "float64":
        raise ValueError(
            "float64 was passed, but JAX computes in 32 bits unless told otherwise; set the "
            "environment variable JAX_ENABLE_X64=1 (or jax.config.update('jax_enable_x64', True)) "
            "before the first computation, or pass float32."
        )


def build_view(
    shape: Sequence[int | None],
    *,
    axis: int | Sequence[int],
    groups: int | None = None,
    per_channel: bool = False,
    first: int = 0,
) -> View:
    """The view for an input of this shape: grouped channels, or whole axes where groups is None.

    With `per_channel` the axes leave one for the channels, along which gamma and beta vary. With
    `first=1`, as layers ask, axis 0 is refused.

    Raises:
        ValueError: an axis does not exist or is refused, or groups do not divide, or the axes leave
            no axis, or several, for the channels.
    """
    rank = len(shape)
    if per_channel:
        return channel_view(rank, axis, first)
    axes = canonical_axes(axis, rank, first)
    if groups is None:
        return axes_view(rank, axes)
    check_groups(groups, shape[axes[0]], axes[0])
    return group_view(rank, axes[0], groups)


def _apply(
    function: str,
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    mask: Tensor | None,
    implementation: str | None,
    options: dict[str, Any],
) -> Tensor:
    """Compute the call, or record it where an argument is a KerasTensor."""
    check_implementation(implementation)
    symbolic = keras.KerasTensor
    if (
        isinstance(x, symbolic)
        or isinstance(gamma, symbolic)
        or isinstance(beta, symbolic)
        or isinstance(mask, symbolic)
    ):
        given = {"gamma": gamma, "beta": beta, "mask": mask}
        operation = NormalizationOperation(function, implementation, options)
        return operation(x, **{name: one for name, one in given.items() if one is not None})
    return normalize(
        x,
        gamma,
        beta,
        mask,
        centered=function not in UNCENTERED,
        implementation=implementation,
        **options,
    )


def normalize(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    mask: Tensor | None,
    *,
    centered: bool,
    implementation: str | None,
    epsilon: float | Tensor,
    axis: int | Sequence[int],
    groups: int | None = None,
    per_channel: bool = False,
) -> Tensor:
    """Convert and check the tensors, build the view, choose an implementation and call it."""
    x, mask = _convert("x", x), _convert("mask", mask)
    gamma, beta = _convert("gamma", gamma), _convert("beta", beta)
    shapes = [None if one is None else tuple(one.shape) for one in (x, gamma, beta, mask)]
    view = _checked_view(*shapes, axis, groups, per_channel)
    if view.groups not in (None, -1) and x.shape[view.parameter_axes[0]] is None:
        x = native.with_whole_groups(x, view)
    if gamma is not None and beta is not None and len(gamma.shape) != len(beta.shape):
        # One is per sample: repeat the other for every sample.
        rank, rows = len(view.parameter_axes), keras.ops.shape(x)[0]
        gamma, beta = (
            one if len(one.shape) > rank else keras.ops.broadcast_to(one, (rows, *one.shape))
            for one in (gamma, beta)
        )
    options = {"epsilon": epsilon, "centered": centered, "mask": mask}
    compute = choose(implementation, x, gamma, beta, view, **options)
    return compute(x, gamma, beta, view, **options)


def _convert(name: str, value: Any) -> Tensor | None:
    """A backend tensor of a dtype that fits this argument; None stays None."""
    if value is None:
        return None
    if isinstance(value, _TAKEN_AS_THEY_ARE):
        if name == "mask" or not value.is_floating_point():
            _check_dtype(name, value)
        return value
    check_framework(name, value)
    tensor = keras.ops.convert_to_tensor(value)
    _check_dtype(name, tensor)
    check_float64(getattr(value, "dtype", tensor.dtype), tensor.dtype)
    return tensor


def check_framework(name: str, value: Any) -> None:
    """Raise TypeError where value is an array, but not the backend's, nor NumPy's.

    Keras would make a tensor of the backend of it, without a word and without its gradient.
    """
    if isinstance(value, (list, tuple)):
        for one in value:
            check_framework(name, one)
    elif (
        not keras.ops.is_tensor(value)
        and not isinstance(value, _TAKEN)
        and (hasattr(value, "__array__") or hasattr(value, "__dlpack__"))
    ):
        kind, running = type(value), backend.backend()
        framework = kind.__module__.split(".")[0].removesuffix("lib")
        raise TypeError(
            f"{name} is a {kind.__name__} of {framework}, but Keras runs on {running}; pass a "
            f"tensor of {running}, or a NumPy array: np.asarray({name})."
        )


def _check_dtype(name: str, tensor: Any) -> None:
    """Raise TypeError unless a mask is boolean and anything else is floating."""
    dtype = backend.standardize_dtype(tensor.dtype)
    if name == "mask" and dtype != "bool":
        raise TypeError(f"mask must be boolean; got {dtype}. Pass mask != 0.")
    if name != "mask" and not dtype.startswith(("float", "bfloat")):
        raise TypeError(f"{name} must be a floating-point tensor; got {dtype}. Cast it first.")


Shape = tuple[int | None, ...]


@native.remembered
def _checked_view(
    shape: Shape,
    gamma: Shape | None,
    beta: Shape | None,
    mask: Shape | None,
    axis: int | Sequence[int],
    groups: int | None,
    per_channel: bool,
) -> View:
    """The view for x of this shape, or ValueError where the shape of another argument does not fit.

    Unknown sizes fit everything.
    """

    def fits(given: Shape, expected: Shape) -> bool:
        return all(a is None or b is None or a == b for a, b in zip(given, expected, strict=True))

    view = build_view(shape, axis=axis, groups=groups, per_channel=per_channel)
    shared = view.parameter_shape(shape)
    for name, given in (("gamma", gamma), ("beta", beta)):
        if given is None:
            continue
        allowed = [shared, (shape[0], *shared)] if view.has_samples else [shared]
        if not any(len(given) == len(one) and fits(given, one) for one in allowed):
            raise ValueError(
                f"{name} has the shape {brief(given)}, but x of shape {brief(shape)} with "
                f"parameters over axes {brief(list(view.parameter_axes))} needs {brief(shared)}"
                + (f", or {brief(allowed[1])} for one per sample." if view.has_samples else ".")
            )
    if mask is not None and (
        not 1 <= len(mask) <= len(shape) or not fits(mask, shape[: len(mask)])
    ):
        raise ValueError(
            f"mask has the shape {brief(mask)}, which is not the beginning of x's shape "
            f"{brief(shape)}; expected {shape[:1]}, {shape[:2]} or longer."
        )
    return view


@keras.saving.register_keras_serializable("truenorm")
class NormalizationOperation(keras.Operation):
    """One of the functions above in a functional model, with its options.

    Args:
        function: the function's name.
        implementation: its argument of that name.
        options: its other options: epsilon, axis, and groups or per_channel where it has them.
    """

    def __init__(
        self,
        function: str,
        implementation: str | None,
        options: dict[str, Any],
        *,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.function = function
        self.implementation = implementation
        self.options = options

    def call(
        self,
        x: Tensor,
        gamma: Tensor | None = None,
        beta: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Compute the normalization of x."""
        return normalize(
            x,
            gamma,
            beta,
            mask,
            centered=self.function not in UNCENTERED,
            implementation=self.implementation,
            **self.options,
        )

    def compute_output_spec(
        self, x: Any, gamma: Any = None, beta: Any = None, mask: Any = None
    ) -> keras.KerasTensor:
        """Check dtypes and shapes; the result has x's shape and dtype. Nothing is computed."""
        shapes = []
        for name, one in {"x": x, "gamma": gamma, "beta": beta, "mask": mask}.items():
            if one is not None:
                _check_dtype(name, one)
            shapes.append(None if one is None else tuple(one.shape))
        partition = (self.options.get("groups"), self.options.get("per_channel", False))
        _checked_view(*shapes, self.options["axis"], *partition)
        return keras.KerasTensor(x.shape, dtype=x.dtype)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "function": self.function,
            "implementation": self.implementation,
            "options": self.options,
            "name": self.name,
        }
