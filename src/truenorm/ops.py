"""Normalizations as functions of Keras' tensors: they check, prepare the call, and compute it.

Every function computes

    y = gamma * (x - mean) / sqrt(variance + epsilon) + beta

with statistics over a part of each sample, and differs from the others only in which part
(`core/kinds.py`). The math is in `core/plain.py`.
"""

import importlib
import numbers
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import backend

from truenorm import native, triton
from truenorm.core import arguments, engine
from truenorm.core.arguments import check_epsilon, check_group_count, check_single_axis
from truenorm.core.call import Call
from truenorm.core.errors import brief
from truenorm.core.kinds import KINDS, Kind
from truenorm.core.plain import Plain

__all__ = [
    "filter_response_normalization",
    "group_normalization",
    "instance_normalization",
    "layer_normalization",
    "rms_normalization",
]

Tensor = Any

_RUNNING = backend.backend()
NATIVE = native.engine(_RUNNING)
if _RUNNING == "tensorflow" and native.unavailable(_RUNNING) is None:
    NATIVE.hand_down(keras.ops)
# On JAX nobody knows under jit what XLA will compile for: the engine for GPUs knows whether JAX
# computes on one, and comes first.
_FUSED = (NATIVE, triton.engine(_RUNNING))
FRONT = engine.Front(keras.ops, (*_FUSED[:: -1 if _RUNNING == "jax" else 1], Plain(keras.ops)))

# In eager PyTorch to convert what is converted, or to name its dtype, is most of a small call.
_TAKEN_AS_THEY_ARE = (importlib.import_module("torch").Tensor,) if _RUNNING == "torch" else ()
# The calls of the others are compiled.
_prepare: Any = arguments.prepare
_surrounded: Any = arguments.surrounded
if _RUNNING == "torch":
    _remembered = importlib.import_module("truenorm.native.torch_cache").remembered
    _prepare, _surrounded = _remembered(_prepare), _remembered(_surrounded)

# What is no array of another framework, though it may have an array's methods.
_TAKEN = (numbers.Number, np.ndarray, np.generic, keras.Variable, keras.KerasTensor)


def group_normalization(
    x: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    groups: int = 32,
    axis: int = -1,
    epsilon: float = 1e-3,
    mask: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
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
        activation: None, "relu", "silu", "gelu" (exact) or "gelu_tanh", applied to the result
            before it is rounded.
        residual: added to x before; of x's shape and dtype.
        implementation: None, "plain", "native" or "triton"; see `truenorm.use_implementation`.

    Returns:
        A tensor of x's shape and dtype; with a residual the pair of it and of x + residual, rounded
        to their dtype, which is normalized in the place of x. Statistics and math are in float64
        for float64 and in float32 otherwise. A group with no element that the mask leaves yields
        beta.

    Raises:
        ValueError: a shape, axis, number of groups, epsilon or name does not fit.
        TypeError: x is not floating or of another framework than Keras' backend, the residual not
            of its dtype, the mask not boolean, or axis or groups not an integer.
        NotImplementedError: the named implementation does not support the call.
    """
    partition = {"groups": check_group_count(groups), "axis": check_single_axis(axis)}
    options = {**partition, "epsilon": check_epsilon(epsilon), "activation": activation}
    return _apply(KINDS["group"], x, gamma, beta, mask, residual, implementation, options)


def instance_normalization(
    x: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-3,
    mask: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
    implementation: str | None = None,
) -> Tensor:
    """Normalize each channel of each sample by itself (Ulyanov et al., 2016, arXiv:1607.08022).

    This is `group_normalization` with one group per channel, and takes its other arguments.
    """
    options = {
        "axis": check_single_axis(axis),
        "epsilon": check_epsilon(epsilon),
        "activation": activation,
    }
    return _apply(KINDS["instance"], x, gamma, beta, mask, residual, implementation, options)


def layer_normalization(
    x: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    axis: int | Sequence[int] = -1,
    epsilon: float = 1e-3,
    mask: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
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
        mask, activation, residual: as in `group_normalization`.
        implementation: None, "plain", "native" or "triton"; see `truenorm.use_implementation`.

    Returns:
        A tensor of x's shape and dtype, computed as in `group_normalization`.

    Raises:
        ValueError, TypeError, NotImplementedError: as `group_normalization`.
    """
    options = {"axis": axis, "epsilon": check_epsilon(epsilon), "activation": activation}
    return _apply(KINDS["layer"], x, gamma, beta, mask, residual, implementation, options)


def rms_normalization(
    x: Tensor,
    gamma: Tensor | None = None,
    *,
    axis: int | Sequence[int] = -1,
    epsilon: float = 1e-6,
    mask: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
    implementation: str | None = None,
) -> Tensor:
    """Divide by the root mean square over the given axes (Zhang and Sennrich, arXiv:1910.07467).

    y = gamma * x / sqrt(mean(x**2) + epsilon). The arguments, the result and the errors are those
    of `layer_normalization`, without beta.
    """
    options = {"axis": axis, "epsilon": check_epsilon(epsilon), "activation": activation}
    return _apply(KINDS["rms"], x, gamma, None, mask, residual, implementation, options)


def filter_response_normalization(
    x: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    axis: int | Sequence[int] = (1, 2),
    epsilon: float = 1e-6,
    mask: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
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
        mask, activation, residual: as in `group_normalization`.
        implementation: None, "plain", "native" or "triton"; see `truenorm.use_implementation`.

    Returns:
        A tensor of x's shape and dtype, computed as in `group_normalization`.

    Raises:
        ValueError, TypeError, NotImplementedError: as `group_normalization`.
    """
    options = {"axis": axis, "epsilon": check_epsilon(epsilon), "activation": activation}
    return _apply(KINDS["frn"], x, gamma, beta, mask, residual, implementation, options)


def check_float64(requested: Any, given: Any) -> None:
    """Raise ValueError where float64 was requested and the backend made something else of it."""
    arguments.check_float64(str(requested), backend.standardize_dtype(given))


def _apply(
    kind: Kind,
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    mask: Tensor | None,
    residual: Tensor | None,
    implementation: str | None,
    options: dict[str, Any],
) -> Tensor:
    """Compute the call, or record it where an argument is a KerasTensor."""
    engine.check(implementation)
    symbolic = keras.KerasTensor
    if (
        isinstance(x, symbolic)
        or isinstance(gamma, symbolic)
        or isinstance(beta, symbolic)
        or isinstance(mask, symbolic)
        or isinstance(residual, symbolic)
    ):
        given = {"gamma": gamma, "beta": beta, "mask": mask, "residual": residual}
        operation = NormalizationOperation(kind.function, implementation, options)
        return operation(x, **{name: one for name, one in given.items() if one is not None})
    return normalize(
        kind, x, gamma, beta, mask, residual=residual, implementation=implementation, **options
    )


def normalize(
    kind: Kind,
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    mask: Tensor | None,
    *,
    axis: int | Sequence[int],
    epsilon: float,
    groups: int | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
    learned_epsilon: Tensor | None = None,
    implementation: str | None = None,
) -> Tensor:
    """Convert and check the tensors, prepare the call, and compute it.

    `learned_epsilon` is a tensor of one number in the place of epsilon.
    """
    call, x, gamma, beta, mask, residual = prepared(
        kind, x, gamma, beta, mask,
        axis=axis, epsilon=epsilon, groups=groups, activation=activation, residual=residual,
    )  # fmt: skip
    return engine.normalize(
        FRONT, implementation, call, x, gamma, beta, mask, learned_epsilon, residual
    )


def prepared(
    kind: Kind,
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    mask: Tensor | None,
    *,
    axis: int | Sequence[int],
    epsilon: float,
    groups: int | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> tuple[Call, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """The call; and x, gamma, beta, mask and residual as the backend's tensors, all checked."""
    x, gamma, beta, mask = (
        _convert(name, one)
        for name, one in (("x", x), ("gamma", gamma), ("beta", beta), ("mask", mask))
    )
    shapes = [None if one is None else tuple(one.shape) for one in (x, gamma, beta, mask)]
    call = _prepare(kind, *shapes, axis, groups, epsilon)
    if kind.groups and groups != -1 and x.shape[call.view.parameter_axes[-1]] is None:
        x = _with_whole_groups(x, call.view.parameter_axes[-1], groups)
    if activation is not None or residual is not None:
        residual = _convert("residual", residual)
        call = _surrounded(call, activation, _described(residual), _described(x))
    return call, x, gamma, beta, mask, residual


def _described(tensor: Any) -> tuple[tuple[int | None, ...], str] | None:
    """The shape and the dtype; None of None."""
    if tensor is None:
        return None
    return tuple(tensor.shape), backend.standardize_dtype(tensor.dtype)


def _with_whole_groups(x: Tensor, axis: int, groups: int | None) -> Tensor:
    """X, whose number of channels is known when it runs: an error then where groups do not fit."""
    check = getattr(NATIVE, "with_whole_groups", None)
    return x if check is None else check(x, axis, groups)


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
    """Raise TypeError where value is an array, but not the backend's, nor NumPy's."""
    if isinstance(value, (list, tuple)):
        for one in value:
            check_framework(name, one)
    elif (
        not keras.ops.is_tensor(value)
        and not isinstance(value, _TAKEN)
        and arguments.is_array(value)
    ):
        why = f"Keras runs on {_RUNNING}"
        arguments.refuse_array(name, value, _RUNNING, why, f"or a NumPy array, np.asarray({name})")


def _check_dtype(name: str, tensor: Any) -> None:
    arguments.check_dtype(name, backend.standardize_dtype(tensor.dtype))


@keras.saving.register_keras_serializable("truenorm")
class NormalizationOperation(keras.Operation):
    """One of the functions above in a functional model, with its options.

    Args:
        function: the function's name.
        implementation: its argument of that name.
        options: its other options: epsilon, axis, and groups and activation where it has them.

    Raises:
        ValueError: there is no such function.
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
        # Older configs have options that follow from the kind.
        known_options = ("groups", "axis", "epsilon")
        self.options: dict[str, Any] = {k: options[k] for k in known_options if k in options}
        if options.get("activation") is not None:
            self.options["activation"] = options["activation"]
        known = {kind.function: kind for kind in KINDS.values()}
        if function not in known:
            raise ValueError(
                f"function={brief(function)} is unknown; expected one of {', '.join(known)}. A "
                "model of a newer truenorm needs that version."
            )
        self.kind = known[function]

    def call(
        self,
        x: Tensor,
        gamma: Tensor | None = None,
        beta: Tensor | None = None,
        mask: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """Compute the normalization of x."""
        return normalize(
            self.kind, x, gamma, beta, mask,
            residual=residual, implementation=self.implementation, **self.options,
        )  # fmt: skip

    def compute_output_spec(
        self, x: Any, gamma: Any = None, beta: Any = None, mask: Any = None, residual: Any = None
    ) -> Any:
        """Check dtypes and shapes; the result has x's shape and dtype. Nothing is computed."""
        shapes: list[Any] = []
        for name, one in {"x": x, "gamma": gamma, "beta": beta, "mask": mask}.items():
            if one is not None:
                _check_dtype(name, one)
            shapes.append(None if one is None else tuple(one.shape))
        options = self.options
        rest = (options["axis"], options.get("groups"), options["epsilon"])
        call = arguments.prepare(self.kind, shapes[0], shapes[1], shapes[2], shapes[3], *rest)
        _surrounded(call, options.get("activation"), _described(residual), _described(x))
        y = keras.KerasTensor(x.shape, dtype=x.dtype)
        return y if residual is None else (y, keras.KerasTensor(x.shape, dtype=x.dtype))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "function": self.function,
            "implementation": self.implementation,
            "options": self.options,
            "name": self.name,
        }
