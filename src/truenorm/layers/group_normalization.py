"""Group normalization."""

from typing import Any

import keras

from truenorm.core.arguments import check_group_count, check_single_axis
from truenorm.core.kinds import KINDS
from truenorm.layers.base import NormalizationLayer, checked_axes


@keras.saving.register_keras_serializable("truenorm")
class GroupNormalization(NormalizationLayer):
    """Normalize each sample's channels in groups (Wu and He, 2018, arXiv:1803.08494).

    The mean and variance are taken over every axis but the batch, within each group of C / groups
    neighbouring channels. Arguments, defaults, weights and config are those of the layer of this
    name in Keras and TensorFlow Addons.

    Args:
        groups: a divisor of the number of channels, or -1 for one group per channel.
        axis: the channel axis, positive or negative, anywhere but the batch axis 0.
        epsilon: added to the variance, in units of the input squared.
        center: add the learned offset beta, of shape (C,).
        scale: multiply by the learned scale gamma, of shape (C,).
        beta_initializer, gamma_initializer: initializers of the weights.
        beta_regularizer, gamma_regularizer: optional regularizers.
        beta_constraint, gamma_constraint: optional constraints.
        use_mask: keep masked elements (a Keras mask of shape (N,), (N, T), ...) out of the
            statistics; False ignores the mask. It is passed on either way.
        implementation: None for the fastest that supports the call, "plain", "native" or "triton".
        activation: None, "relu", "silu", "gelu" (exact) or "gelu_tanh", applied to the result.
        **kwargs: `name`, `dtype`, `trainable`.

    Input and output: a float tensor (N, ...) of rank 2 or more; unknown sizes are allowed except
    of the channel axis.

    Raises:
        ValueError: an argument does not fit; at build, if groups do not divide the channels.
        TypeError: axis or groups is not an integer.
    """

    kind = KINDS["group"]

    def __init__(
        self,
        groups: int = 32,
        axis: int = -1,
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
        super().__init__(
            epsilon=epsilon,
            center=center,
            scale=scale,
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
        self.groups = check_group_count(groups)
        self.axis = checked_axes(check_single_axis(axis))

    def partition(self) -> dict[str, Any]:
        """See the base class."""
        return {"groups": self.groups, "axis": self.axis}
