"""Layer normalization."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from truenorm.core.activation import activate, add
from truenorm.core.arguments import check_residual
from truenorm.core.kinds import KINDS
from truenorm.core.view import canonical_axes
from truenorm.layers.base import NormalizationLayer, checked_axes, wider


@keras.saving.register_keras_serializable("truenorm")
class LayerNormalization(NormalizationLayer):
    """Normalize over the given axes (Ba, Kiros and Hinton, 2016, arXiv:1607.06450).

    On (N, H, W, C), `axis=3` takes one mean and variance per pixel, over its channels, and
    `axis=[1, 2, 3]` one per sample.

    Args:
        axis: the normalized axis or a list of them, positive or negative, not the batch axis 0.
        epsilon: added to the variance, in units of the input squared.
        center: add the learned offset beta, shaped like the normalized axes in ascending order.
        scale: multiply by the learned scale gamma, of the same shape.
        beta_initializer, gamma_initializer: initializers of the weights.
        beta_regularizer, gamma_regularizer: optional regularizers.
        beta_constraint, gamma_constraint: optional constraints.
        use_mask: keep masked elements out of the statistics; False ignores the mask. A place all
            of whose elements are masked yields beta.
        implementation: None for the fastest that supports the call, "plain", "native" or "triton".
        activation: None, "relu", "silu", "gelu" (exact) or "gelu_tanh", applied to the result.
        **kwargs: `name`, `dtype`, `trainable`; and `rms_scaling`, which Keras' configs have: True
            divides by the standard deviation without subtracting the mean, and has a gamma but no
            beta, as Keras' layer does. It is not RMS normalization; `RMSNormalization` is.

    Input and output: a float tensor (N, ...) of rank 2 or more; sizes of axes that are not
    normalized may be unknown.

    Raises:
        ValueError: an argument does not fit; at build, if an axis does not exist.
    """

    kind = KINDS["layer"]

    def __init__(
        self,
        axis: int | Sequence[int] = -1,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        beta_regularizer: Any = None,
        gamma_regularizer: Any = None,
        beta_constraint: Any = None,
        gamma_constraint: Any = None,
        use_mask: bool = True,
        implementation: str | None = None,
        activation: str | None = None,
        **kwargs: Any,
    ) -> None:
        rms_scaling = bool(kwargs.pop("rms_scaling", False))
        super().__init__(
            epsilon=epsilon,
            center=center and not rms_scaling,
            scale=scale or rms_scaling,
            beta_initializer=beta_initializer,
            gamma_initializer=gamma_initializer,
            beta_regularizer=beta_regularizer,
            gamma_regularizer=gamma_regularizer,
            beta_constraint=beta_constraint,
            gamma_constraint=gamma_constraint,
            use_mask=use_mask,
            implementation=implementation,
            activation=activation,
            **kwargs,
        )
        self.axis = checked_axes(axis)
        self.rms_scaling = rms_scaling

    def call(
        self, inputs: Any, mask: Any = None, residual: Any = None, inputs_mask: Any = None
    ) -> Any:
        """See the base class."""
        if not self.rms_scaling:
            return super().call(inputs, mask, residual, inputs_mask)
        mask = inputs_mask if mask is None else mask
        x = self.widened(inputs)
        if residual is not None:
            residual = self.widened(residual)
            described = [
                (tuple(t.shape), keras.backend.standardize_dtype(t.dtype)) for t in (residual, x)
            ]
            check_residual(*described[0], *described[1])
            x = add(ops, x, residual)
        mask = mask if self.use_mask else None
        y = activate(ops, self.activation, self._scaled(x, mask), mask is not None)
        y = self.rounded(y)
        return y if residual is None else (y, x)

    def _scaled(self, x: Any, mask: Any) -> Any:
        """Gamma * x / sqrt(variance + epsilon), with the variance about the mean, in float32."""
        x = ops.cast(x, wider(keras.backend.standardize_dtype(x.dtype), "float32"))
        rank = len(x.shape)
        axes = canonical_axes(self.axis, rank)
        real = ops.ones_like(x, dtype="bool")
        if mask is not None:
            real = ops.logical_and(
                real, ops.reshape(mask, [*ops.shape(mask), *[1] * (rank - len(mask.shape))])
            )
        count = ops.sum(ops.cast(real, x.dtype), axes, keepdims=True)
        occupied, share = count > 0, 1 / ops.where(count > 0, count, ops.ones_like(count))
        zero = ops.zeros_like(x)
        # Selected before it is used: the gradient of what is hidden would be 0 * NaN.
        known = ops.where(real, x, zero)
        mean = ops.sum(known, axes, keepdims=True) * share
        squares = ops.square(ops.where(real, known - mean, zero))
        variance = ops.sum(squares, axes, keepdims=True) * share
        sizes = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]
        gamma = ops.reshape(ops.cast(self.gamma, x.dtype), sizes)
        scale = gamma / ops.sqrt(variance + self.epsilon)
        usable = ops.logical_or(real, ops.isfinite(x))
        y = ops.where(usable, ops.where(usable, x, zero) * scale, x * ops.stop_gradient(scale))
        return ops.where(occupied, y, zero)

    def partition(self) -> dict[str, Any]:
        """See the base class."""
        return {"axis": self.axis}

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments; rms_scaling only where it was set."""
        config = super().get_config()
        return {**config, "rms_scaling": True} if self.rms_scaling else config
