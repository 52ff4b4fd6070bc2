"""Root mean square normalization."""

from collections.abc import Sequence
from typing import Any

import keras

from truenorm.core.kinds import KINDS
from truenorm.layers.base import NormalizationLayer, checked_axes


@keras.saving.register_keras_serializable("truenorm")
class RMSNormalization(NormalizationLayer):
    """Divide by the root mean square over the given axes (Zhang and Sennrich, arXiv:1910.07467).

    y = gamma * x / sqrt(mean(x**2) + epsilon): layer normalization without a mean and an offset.

    Args:
        axis: the normalized axis or a list of them, positive or negative, not the batch axis 0.
        epsilon: added to the mean square, in units of the input squared.
        scale: multiply by the learned scale gamma, shaped like the normalized axes in ascending
            order.
        gamma_initializer: initializer of gamma.
        gamma_regularizer: optional regularizer.
        gamma_constraint: optional constraint.
        use_mask: keep masked elements out of the statistics; False ignores the mask, which is
            passed on either way.
        implementation: None for the fastest that supports the call, "plain", "native" or "triton".
        activation: None, "relu", "silu", "gelu" (exact) or "gelu_tanh", applied to the result.
        **kwargs: `name`, `dtype`, `trainable`.

    Input and output: a float tensor (N, ...) of rank 2 or more; sizes of axes that are not
    normalized may be unknown.

    Raises:
        ValueError: an argument does not fit; at build, if an axis does not exist.
    """

    kind = KINDS["rms"]

    def __init__(
        self,
        axis: int | Sequence[int] = -1,
        epsilon: float = 1e-6,
        scale: bool = True,
        gamma_initializer: Any = "ones",
        gamma_regularizer: Any = None,
        gamma_constraint: Any = None,
        use_mask: bool = True,
        implementation: str | None = None,
        activation: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            epsilon=epsilon,
            center=False,
            scale=scale,
            gamma_initializer=gamma_initializer,
            gamma_regularizer=gamma_regularizer,
            gamma_constraint=gamma_constraint,
            use_mask=use_mask,
            implementation=implementation,
            activation=activation,
            **kwargs,
        )
        self.axis = checked_axes(axis)

    def partition(self) -> dict[str, Any]:
        """See the base class."""
        return {"axis": self.axis}

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments; there is no beta."""
        config = super().get_config()
        return {
            key: value
            for key, value in config.items()
            if key != "center" and not key.startswith("beta_")
        }
