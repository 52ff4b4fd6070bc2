"""The thresholded linear unit."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import constraints, initializers, regularizers

from truenorm.core import tlu
from truenorm.core.view import canonical_axes
from truenorm.layers.base import RoundedOnce, Shape, checked_axes, wider


@keras.saving.register_keras_serializable("truenorm")
class TLU(RoundedOnce):
    """Thresholded linear unit, the activation after filter response normalization.

    y = max(x, tau), or max(x, alpha * x + tau) where it is affine, with tau and alpha learned
    (Singh and Krishnan, 2019, arXiv:1911.09737). Arguments, defaults, weights and config are those
    of the layer of this name in TensorFlow Addons. There, and here by default, every element of a
    sample has its own tau; the paper has one per channel, which is `shared_axes=[1, 2]` for
    (N, H, W, C).

    Args:
        affine: learn alpha too.
        tau_initializer, alpha_initializer: initializers of the weights.
        tau_regularizer, alpha_regularizer: optional regularizers.
        tau_constraint, alpha_constraint: optional constraints.
        shared_axes: the axis or axes along which tau and alpha are the same, and of size 1; not the
            batch axis 0, along which they always are.
        **kwargs: `name`, `dtype`, `trainable`.

    Weights: tau, then alpha, of the input's shape without the batch axis.

    Input and output: a float tensor (N, ...); sizes of the batch axis and of shared axes may be
    unknown. Where x equals its threshold the gradient is that of x, on every backend. Half
    precision is computed in float32.

    Raises:
        ValueError: an argument does not fit; at build, if an axis does not exist or a size is
            unknown.
        TypeError: a shared axis is not an integer.
    """

    def __init__(
        self,
        affine: bool = False,
        tau_initializer: Any = "zeros",
        tau_regularizer: Any = None,
        tau_constraint: Any = None,
        alpha_initializer: Any = "zeros",
        alpha_regularizer: Any = None,
        alpha_constraint: Any = None,
        shared_axes: int | Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.affine = affine
        self.tau_initializer = initializers.get(tau_initializer)
        self.tau_regularizer = regularizers.get(tau_regularizer)
        self.tau_constraint = constraints.get(tau_constraint)
        self.alpha_initializer = initializers.get(alpha_initializer)
        self.alpha_regularizer = regularizers.get(alpha_regularizer)
        self.alpha_constraint = constraints.get(alpha_constraint)
        self.shared_axes = None if shared_axes is None else checked_axes(shared_axes)
        self.tau: Any = None
        self.alpha: Any = None

    def build(self, input_shape: Shape) -> None:
        """Create tau, and alpha where `affine` asks for it."""
        rank = len(input_shape)
        shared = () if self.shared_axes is None else canonical_axes(self.shared_axes, rank, first=1)
        sizes = {axis: input_shape[axis] for axis in range(1, rank) if axis not in shared}
        unknown = [axis for axis, size in sizes.items() if size is None]
        if unknown:
            raise ValueError(
                f"TLU {self.name!r} has a threshold for each element of a sample and needs the "
                f"size of axes {unknown}, but its input shape is {tuple(input_shape)}; give those "
                f"sizes, or pass shared_axes={sorted([*shared, *unknown])} for thresholds that are "
                "the same along them."
            )
        for name in ("tau", "alpha") if self.affine else ("tau",):
            weight = self.add_weight(
                name=name,
                shape=[sizes.get(axis, 1) for axis in range(1, rank)],
                initializer=getattr(self, f"{name}_initializer"),
                regularizer=getattr(self, f"{name}_regularizer"),
                constraint=getattr(self, f"{name}_constraint"),
                autocast=False,
            )
            setattr(self, name, weight)
        self.input_spec = keras.layers.InputSpec(ndim=rank, axes=sizes)

    def call(self, inputs: Any) -> Any:
        """The larger of x and its threshold, element by element."""
        x = self.widened(inputs)
        compute_dtype = wider(keras.backend.standardize_dtype(x.dtype), "float32")
        x = keras.ops.cast(x, compute_dtype)
        tau = keras.ops.cast(self.tau, compute_dtype)
        alpha = keras.ops.cast(self.alpha, compute_dtype) if self.affine else None
        return self.rounded(tlu.compute(keras.ops, x, tau, alpha))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments; those of alpha and shared_axes only where they are used."""
        config = {
            **super().get_config(),
            "affine": self.affine,
            "tau_initializer": initializers.serialize(self.tau_initializer),
            "tau_regularizer": regularizers.serialize(self.tau_regularizer),
            "tau_constraint": constraints.serialize(self.tau_constraint),
        }
        if self.affine:
            config["alpha_initializer"] = initializers.serialize(self.alpha_initializer)
            config["alpha_regularizer"] = regularizers.serialize(self.alpha_regularizer)
            config["alpha_constraint"] = constraints.serialize(self.alpha_constraint)
        if self.shared_axes is not None:
            config["shared_axes"] = self.shared_axes
        return config
