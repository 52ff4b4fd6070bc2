"""Layer normalization."""

from collections.abc import Sequence
from typing import Any

import keras

from truenorm.layers.base import NormalizationLayer, checked_axes


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
        implementation: None for the fastest that supports the call, "plain" or "native".
        **kwargs: `name`, `dtype`, `trainable`.

    Input and output: a float tensor (N, ...) of rank 2 or more; sizes of axes that are not
    normalized may be unknown.

    Raises:
        ValueError: an argument does not fit; at build, if an axis does not exist.
    """

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
            **kwargs,
        )
        self.axis = checked_axes(axis)

    def partition(self) -> dict[str, Any]:
        """See the base class."""
        return {"axis": self.axis}
