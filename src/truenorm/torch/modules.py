"""The normalizations as modules: torch.nn's, computed by truenorm, with a few arguments more.

Each is a subclass of the module of its name in torch.nn: its constructor, parameters, state_dict
and repr are that one's, and code that looks for `torch.nn.LayerNorm` finds it. `axis` says which
axes are normalized, or where the channels are, `activation` what is applied to the result, and
`forward` takes a `mask` and a `residual`, with which its result is the pair (y, input + residual).
A size that is None is that of the first input: the parameters are uninitialized until then.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from truenorm.core import arguments
from truenorm.core.view import canonical_axes, channel_view, integer_axes
from truenorm.torch import functional
from truenorm.torch.base import Base, kept_axes, more
from truenorm.torch.functional import Result

__all__ = [
    "TLU",
    "FilterResponseNorm",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "RMSNorm",
]

Axis = int | Sequence[int]


class GroupNorm(Base, nn.GroupNorm):
    """Group normalization (Wu and He, 2018, arXiv:1803.08494), as `torch.nn.GroupNorm`.

    Args:
        num_groups: a divisor of num_channels.
        num_channels: C; None takes that of the first input.
        eps: added to the variance, in units of the input squared.
        affine: learn weight and bias, of shape (C,).
        device, dtype: of the parameters.
        bias: learn bias, where affine.
        axis: the channel axis of the input (N, C, ...); -1 for (N, ..., C).
        activation: None, "relu", "silu", "gelu" (exact) or "gelu_tanh", applied to the result.
        implementation: None for the fastest that supports the call, "plain", "native" or "triton".

    `forward(input, mask=None, residual=None)` is `truenorm.torch.functional.group_norm`.

    Raises:
        ValueError: num_groups does not divide num_channels, or another argument does not fit.
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int | None = None,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        axis: int = 1,
        activation: str | None = None,
        implementation: str | None = None,
    ) -> None:
        arguments.check_group_count(num_groups, "num_groups")
        known = num_groups if num_channels is None else num_channels
        options: Any = {} if bias else {"bias": False}  # which older versions of PyTorch have not
        super().__init__(num_groups, known, eps, affine, device, dtype, **options)
        self._set_options(eps, arguments.check_single_axis(axis), activation, implementation)
        if num_channels is None:
            self.num_channels: Any = None
            self._make_lazy(device, dtype)

    def forward(
        self, input: Tensor, mask: Tensor | None = None, residual: Tensor | None = None
    ) -> Result:
        """The normalized input, of its shape and dtype; with a residual also the sum."""
        if self.num_channels is None:
            self.num_channels = input.shape[self.axis]
            self._materialize((self.num_channels,))
        return functional.group_norm(
            input, self.num_groups, self.weight, self.bias, self.eps,
            axis=self.axis, mask=mask,
            activation=self.activation, residual=residual, implementation=self.implementation,
        )  # fmt: skip


def _axes(axis: Axis | None, shape: Any, sizes: tuple[int, ...]) -> int | tuple[int, ...] | None:
    """Axis as the module keeps it, or ValueError where there are more or fewer than sizes."""
    if axis is None:
        return None
    axes = integer_axes(axis)
    if shape is not None and len(axes) != len(sizes):
        raise ValueError(
            f"axis={axis!r} names {len(axes)} axes, but normalized_shape={sizes} has the sizes of "
            f"{len(sizes)}; give one size for each normalized axis."
        )
    return kept_axes(axis)


class _OverAxes(Base):
    """The modules whose statistics are over axes with sizes of their own, normalized_shape."""

    _default_axis = None
    normalized_shape: Any

    def _forget_shape(self, device: Any, dtype: Any) -> None:
        """Leave normalized_shape to the first input."""
        self.normalized_shape = None
        self._make_lazy(device, dtype)

    def _see(self, input: Tensor) -> None:
        """Take normalized_shape from the input, the first one."""
        axes = canonical_axes(-1 if self.axis is None else self.axis, input.ndim)
        self.normalized_shape = tuple(input.shape[one] for one in axes)
        self._materialize(self.normalized_shape)


class LayerNorm(_OverAxes, nn.LayerNorm):
    """Layer normalization (Ba, Kiros and Hinton, 2016, arXiv:1607.06450), as `torch.nn.LayerNorm`.

    Args:
        normalized_shape: the sizes of the normalized axes, in ascending order of the axes; None
            takes those of the first input, along `axis`.
        eps: added to the variance, in units of the input squared.
        elementwise_affine: learn weight and bias, of normalized_shape.
        bias: learn bias, where elementwise_affine.
        device, dtype: of the parameters.
        axis: the normalized axis or axes; None is the last ones, as many as normalized_shape has
            (the last one where that is None). `axis=1` normalizes the channels of (N, C, H, W).
        activation: None, "relu", "silu", "gelu" (exact) or "gelu_tanh", applied to the result.
        implementation: None for the fastest that supports the call, "plain", "native" or "triton".

    `forward(input, mask=None, residual=None)` is `truenorm.torch.functional.layer_norm`.

    Raises:
        ValueError: an argument does not fit.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int] | None = None,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        axis: Axis | None = None,
        activation: str | None = None,
        implementation: str | None = None,
    ) -> None:
        known: Any = () if normalized_shape is None else normalized_shape
        super().__init__(known, eps, elementwise_affine, bias, device, dtype)
        self._set_options(
            eps, _axes(axis, normalized_shape, self.normalized_shape), activation, implementation
        )
        if normalized_shape is None:
            self._forget_shape(device, dtype)

    def forward(
        self, input: Tensor, mask: Tensor | None = None, residual: Tensor | None = None
    ) -> Result:
        """The normalized input, of its shape and dtype; with a residual also the sum."""
        if self.normalized_shape is None:
            self._see(input)
        return functional.layer_norm(
            input, self.normalized_shape, self.weight, self.bias, self.eps,
            axis=self.axis, mask=mask,
            activation=self.activation, residual=residual, implementation=self.implementation,
        )  # fmt: skip


class RMSNorm(_OverAxes, nn.RMSNorm):
    """RMS normalization (Zhang and Sennrich, 2019, arXiv:1910.07467), as `torch.nn.RMSNorm`.

    Args:
        normalized_shape: as `LayerNorm`.
        eps: added to the mean square, in units of the input squared; None is torch.finfo of
            float64 for float64 and of float32 otherwise.
        elementwise_affine: learn weight, of normalized_shape.
        device, dtype: of the parameter.
        axis, activation, implementation: as `LayerNorm`.

    `forward(input, mask=None, residual=None)` is `truenorm.torch.functional.rms_norm`.

    Raises:
        ValueError: an argument does not fit.
    """

    _names = ("weight",)

    def __init__(
        self,
        normalized_shape: int | Sequence[int] | None = None,
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        axis: Axis | None = None,
        activation: str | None = None,
        implementation: str | None = None,
    ) -> None:
        known: Any = () if normalized_shape is None else normalized_shape
        super().__init__(known, eps, elementwise_affine, device, dtype)
        self._set_options(
            eps, _axes(axis, normalized_shape, self.normalized_shape), activation, implementation
        )
        if normalized_shape is None:
            self._forget_shape(device, dtype)

    def forward(
        self, input: Tensor, mask: Tensor | None = None, residual: Tensor | None = None
    ) -> Result:
        """The normalized input, of its shape and dtype; with a residual also the sum."""
        if self.normalized_shape is None:
            self._see(input)
        return functional.rms_norm(
            input, self.normalized_shape, self.weight, self.eps,
            axis=self.axis, mask=mask,
            activation=self.activation, residual=residual, implementation=self.implementation,
        )  # fmt: skip


class _InstanceNorm(Base):
    """Instance normalization (Ulyanov et al., 2016, arXiv:1607.08022), as torch.nn's three modules.

    Args:
        num_features: C, of an input (N, C, ...) or (C, ...); None takes that of the first input.
        eps: added to the variance, in units of the input squared.
        momentum: the share of an input in the running statistics; None is nothing, as in torch.nn.
        affine: learn weight and bias, of shape (C,).
        track_running_stats: keep the average of the samples' statistics in training, and use that
            after `eval()`.
        device, dtype: of the parameters.
        bias: learn bias, where affine.
        axis: the channel axis of an input with a batch axis; -1 for (N, ..., C).
        activation: None, "relu", "silu", "gelu" (exact) or "gelu_tanh", applied to the result.
        implementation: None for the fastest that supports the call, "plain", "native" or "triton".

    `forward(input, mask=None, residual=None)` is `truenorm.torch.functional.instance_norm`.

    Raises:
        ValueError: an argument does not fit.
    """

    weight: Any
    bias: Any
    running_mean: Any
    running_var: Any
    momentum: float | None
    affine: bool
    training: bool
    track_running_stats: bool
    _running = ("running_mean", "running_var")

    def __init__(
        self,
        num_features: int | None = None,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        axis: int = 1,
        activation: str | None = None,
        implementation: str | None = None,
    ) -> None:
        known = 1 if num_features is None else num_features
        options: Any = {} if bias else {"bias": False}  # which older versions of PyTorch have not
        super().__init__(  # type: ignore[call-arg]
            known, eps, momentum, affine, track_running_stats, device, dtype, **options
        )
        self._set_options(eps, arguments.check_single_axis(axis), activation, implementation)
        if num_features is None:
            self.num_features: Any = None
            self._make_lazy(device, dtype)

    def forward(
        self, input: Tensor, mask: Tensor | None = None, residual: Tensor | None = None
    ) -> Result:
        """The normalized input, of its shape and dtype; with a residual also the sum."""
        self._check_input_dim(input)  # type: ignore[attr-defined]
        single = input.ndim == self._get_no_batch_dim()  # type: ignore[attr-defined]
        if single and mask is not None:
            raise ValueError(
                "mask is of samples, but the input is one sample without a batch axis."
            )
        batch = input.unsqueeze(0) if single else input
        if single and residual is not None:
            residual = residual.unsqueeze(0)
        channels = batch.shape[self.axis]
        if self.num_features is None:
            self.num_features = channels
            self._materialize((channels,))
        if channels != self.num_features and (self.affine or self.track_running_stats):
            raise ValueError(
                f"the input of shape {tuple(input.shape)} has {channels} channels in axis "
                f"{self.axis}, but num_features is {self.num_features}."
            )
        y = functional.instance_norm(
            batch, self.running_mean, self.running_var, self.weight, self.bias,
            self.training or not self.track_running_stats,
            0.0 if self.momentum is None else self.momentum, self.eps,
            axis=self.axis, mask=mask,
            activation=self.activation, residual=residual, implementation=self.implementation,
        )  # fmt: skip
        if not single:
            return y
        return y.squeeze(0) if residual is None else tuple(one.squeeze(0) for one in y)


class InstanceNorm1d(_InstanceNorm, nn.InstanceNorm1d):
    """Of (N, C, T) or (C, T)."""

    __doc__ = f"{__doc__}\n\n{_InstanceNorm.__doc__}"


class InstanceNorm2d(_InstanceNorm, nn.InstanceNorm2d):
    """Of (N, C, H, W) or (C, H, W)."""

    __doc__ = f"{__doc__}\n\n{_InstanceNorm.__doc__}"


class InstanceNorm3d(_InstanceNorm, nn.InstanceNorm3d):
    """Of (N, C, D, H, W) or (C, D, H, W)."""

    __doc__ = f"{__doc__}\n\n{_InstanceNorm.__doc__}"


class FilterResponseNorm(Base, nn.Module):
    """Filter response normalization (Singh and Krishnan, 2019, arXiv:1911.09737).

    The paper follows it by a `TLU`.

    Args:
        num_channels: C; None takes that of the first input.
        eps: added to the mean square, in units of the input squared.
        affine: learn weight and bias, of shape (C,).
        learned_eps: learn what is added to eps: its absolute value, which begins at 1e-4.
        device, dtype: of the parameters.
        axis: the axes of the mean: all but the batch axis and the channel axis; None is all from 2
            on. (1, 2) for (N, H, W, C).
        activation: None, "relu", "silu", "gelu" (exact) or "gelu_tanh", applied to the result.
        implementation: None for the fastest that supports the call, "plain", "native" or "triton".

    `forward(input, mask=None, residual=None)` is `truenorm.torch.functional.filter_response_norm`.

    Raises:
        ValueError: an argument does not fit.
    """

    def __init__(
        self,
        num_channels: int | None = None,
        eps: float = 1e-6,
        affine: bool = True,
        learned_eps: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        axis: Axis | None = None,
        activation: str | None = None,
        implementation: str | None = None,
    ) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.affine = affine
        self._set_options(
            eps, None if axis is None else integer_axes(axis), activation, implementation
        )
        options = {"device": device, "dtype": dtype}
        for name in self._names:
            parameter = nn.Parameter(torch.empty(num_channels or 0, **options)) if affine else None
            self.register_parameter(name, parameter)
        learned = nn.Parameter(torch.empty(1, **options)) if learned_eps else None
        self.register_parameter("learned_eps", learned)
        self.reset_parameters()
        if num_channels is None:
            self._make_lazy(device, dtype)

    def reset_parameters(self) -> None:
        """Weight one, bias zero, learned_eps 1e-4."""
        if self.affine:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)
        if self.learned_eps is not None:
            nn.init.constant_(self.learned_eps, 1e-4)

    def forward(
        self, input: Tensor, mask: Tensor | None = None, residual: Tensor | None = None
    ) -> Result:
        """The normalized input, of its shape and dtype; with a residual also the sum."""
        axes = tuple(range(2, input.ndim)) if self.axis is None else self.axis
        if self.num_channels is None:
            (channel,) = channel_view(input.ndim, axes).parameter_axes
            self.num_channels = input.shape[channel]
            self._materialize((self.num_channels,))
        eps: Any = self.eps
        if self.learned_eps is not None:
            eps = eps + self.learned_eps.abs()
        return functional.filter_response_norm(
            input, self.weight, self.bias, eps,
            axis=axes, mask=mask,
            activation=self.activation, residual=residual, implementation=self.implementation,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """The arguments."""
        learned = (self.learned_eps is not None, False)
        text = f"{self.num_channels}, eps={self.eps}, affine={self.affine}"
        implementation = (self.implementation, None)
        return more(
            text,
            learned_eps=learned,
            axis=(self.axis, None),
            activation=(self.activation, None),
            implementation=implementation,
        )


class TLU(Base, nn.Module):
    """Thresholded linear unit: max(x, tau), with a tau for each channel (arXiv:1911.09737).

    Args:
        num_channels: C; None takes that of the first input.
        affine: learn alpha too: max(x, alpha * x + tau).
        device, dtype: of the parameters tau and alpha, of shape (C,), which begin at zero.
        axis: the channel axis.

    `forward(input)` is `truenorm.torch.functional.tlu`.
    """

    _names = ("tau", "alpha")

    def __init__(
        self,
        num_channels: int | None = None,
        affine: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        axis: int = 1,
    ) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.axis = arguments.check_single_axis(axis)
        options = {"device": device, "dtype": dtype}
        self.tau = nn.Parameter(torch.empty(num_channels or 0, **options))
        alpha = nn.Parameter(torch.empty(num_channels or 0, **options)) if affine else None
        self.register_parameter("alpha", alpha)
        self.reset_parameters()
        if num_channels is None:
            self._make_lazy(device, dtype)

    def reset_parameters(self) -> None:
        """Zeros."""
        for one in self.parameters(recurse=False):
            nn.init.zeros_(one)

    def forward(self, input: Tensor) -> Tensor:
        """The input, or the threshold where that is larger."""
        if self.num_channels is None:
            self.num_channels = input.shape[self.axis]
            self._materialize((self.num_channels,))
        return functional.tlu(input, self.tau, self.alpha, axis=self.axis)

    def extra_repr(self) -> str:
        """The arguments."""
        text, affine = f"{self.num_channels}", (self.alpha is not None, False)
        return more(text, affine=affine, axis=(self.axis, 1))
