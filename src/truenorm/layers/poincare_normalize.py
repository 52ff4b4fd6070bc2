"""Projection into the Poincaré ball."""

from collections.abc import Sequence
from typing import Any

import keras

from truenorm.core.arguments import check_epsilon
from truenorm.core.view import integer_axes
from truenorm.layers.base import RoundedOnce, Shape, wider


@keras.saving.register_keras_serializable("truenorm")
class PoincareNormalize(RoundedOnce):
    """Shorten vectors to the norm 1 - epsilon where they are longer (arXiv:1705.08039).

    The vectors lie along `axis`. Those that are shorter stay as they are: the result is in the
    Poincaré ball, in which Nickel and Kiela, 2017, embed hierarchies. Arguments, defaults and
    config are those of the layer of this name in TensorFlow Addons. Where a vector is zero the
    gradient is that of the identity, also under XLA, where Addons' was NaN.

    Args:
        axis: the axis, or a list of them, along which a vector lies; None for all: the whole input
            is one vector.
        epsilon: the distance from the unit sphere, from 0 to less than 1.
        **kwargs: `name`, `dtype`, `trainable`.

    Input and output: a float tensor; any sizes may be unknown. Norms are computed in float64 for
    float64 and in float32 otherwise, and cannot overflow. The result is rounded to its dtype, in
    half precision by more than the default epsilon.

    Raises:
        ValueError: epsilon does not fit, there is no axis, or one is given twice; at build, if an
            axis does not exist.
        TypeError: an axis is not an integer.
    """

    def __init__(
        self, axis: int | Sequence[int] | None = 1, epsilon: float = 1e-5, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.epsilon: float = check_epsilon(epsilon)
        if self.epsilon >= 1:
            raise ValueError(f"epsilon={epsilon!r} must be less than 1, the radius of the ball.")
        axes = () if axis is None else integer_axes(axis)
        if axis is not None and (not axes or len(set(axes)) < len(axes)):
            raise ValueError(
                f"axis={axis!r} must name at least one axis, and none twice; None is all of them."
            )
        self.axis: Any = (
            list(axes) if isinstance(axis, (list, tuple)) else axes[0] if axes else None
        )

    def build(self, input_shape: Shape) -> None:
        """Check the axes; there are no weights."""
        rank = len(input_shape)
        axes = range(rank) if self.axis is None else integer_axes(self.axis)
        if any(not -rank <= axis < rank for axis in axes):
            raise ValueError(
                f"axis={self.axis!r} is out of range for an input of rank {rank}; allowed axes are "
                f"{-rank} to {rank - 1}."
            )
        if len({axis % rank for axis in axes}) < len(axes):
            raise ValueError(f"axis={self.axis!r} names an axis twice for an input of rank {rank}.")

    def call(self, inputs: Any) -> Any:
        """Shorten the vectors of a float tensor."""
        x = self.widened(inputs)
        x = keras.ops.cast(x, wider(keras.backend.standardize_dtype(x.dtype), "float32"))
        axes = range(len(x.shape)) if self.axis is None else integer_axes(self.axis)
        # In units of the largest element, whose choice changes nothing, no square overflows.
        unit = keras.ops.stop_gradient(keras.ops.max(keras.ops.abs(x), tuple(axes), keepdims=True))
        unit = keras.ops.where(unit > 0, unit, keras.ops.ones_like(unit))
        squares = keras.ops.sum(keras.ops.square(x / unit), tuple(axes), keepdims=True)
        limit = 1.0 - self.epsilon
        short = unit * keras.ops.sqrt(squares) <= limit  # False for NaN, which thus is passed on
        # The root's derivative is infinite at zero: what is short does not take it.
        root = keras.ops.sqrt(keras.ops.where(short, keras.ops.ones_like(squares), squares))
        factor = keras.ops.where(short, keras.ops.ones_like(squares), limit / unit / root)
        return self.rounded(x * factor)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "axis": self.axis, "epsilon": self.epsilon}
