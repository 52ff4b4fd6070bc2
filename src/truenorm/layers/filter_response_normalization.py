"""Filter response normalization."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import constraints

from truenorm.core.kinds import KINDS
from truenorm.core.view import View, integer_axes
from truenorm.layers.base import NormalizationLayer, Shape, checked_axes


@keras.saving.register_keras_serializable("truenorm")
class FilterResponseNormalization(NormalizationLayer):
    """Divide each channel of each sample by its root mean square (arXiv:1911.09737).

    y = gamma * x / sqrt(mean(x**2) + epsilon) + beta, after Singh and Krishnan, 2019, who follow it
    by a `TLU`. Arguments, defaults, weights and config are those of the layer of this name in
    TensorFlow Addons, which took inputs (N, H, W, C) of known size alone.

    Args:
        epsilon: added to the mean square, in units of the input squared; not negative.
        axis: the axis or axes over which the mean is taken: all but the batch axis 0 and the
            channel axis, which is the one that is left. [1, 2] for (N, H, W, C), [2, 3] for
            (N, C, H, W), 1 for (N, T, C), [] for (N, C), where each value is by itself.
        beta_initializer, gamma_initializer: initializers of the weights.
        beta_regularizer, gamma_regularizer: optional regularizers.
        beta_constraint, gamma_constraint: optional constraints.
        learned_epsilon: add the absolute value of one more weight to epsilon, first 1e-4. The paper
            advises it where few elements share a mean. The plain formula computes it.
        learned_epsilon_constraint: optional constraint of that weight.
        name: the layer's name.
        use_mask: keep masked elements (a Keras mask of shape (N,), (N, T), ...) out of the mean;
            False ignores the mask. It is passed on either way.
        implementation: None for the fastest that supports the call, "plain", "native" or "triton".
        activation: None, "relu", "silu", "gelu" (exact) or "gelu_tanh", applied to the result.
        **kwargs: `dtype`, `trainable`.

    Weights: learned_epsilon, of shape (1,), if there is one; then gamma and beta, of the input's
    rank and of size 1 except along the channel axis: (1, 1, 1, C) for (N, H, W, C).

    Input and output: a float tensor (N, ...) of rank 2 or more; unknown sizes are allowed except
    of the channel axis.

    Raises:
        ValueError: an argument does not fit; at build, if the axes do not leave just one axis for
            the channels.
        TypeError: an axis is not an integer.
    """

    kind = KINDS["frn"]
    without_size = "give the number of channels"

    def __init__(
        self,
        epsilon: float = 1e-6,
        axis: int | Sequence[int] = (1, 2),
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        beta_regularizer: Any = None,
        gamma_regularizer: Any = None,
        beta_constraint: Any = None,
        gamma_constraint: Any = None,
        learned_epsilon: bool = False,
        learned_epsilon_constraint: Any = None,
        name: str | None = None,
        use_mask: bool = True,
        implementation: str | None = None,
        activation: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            epsilon=epsilon,
            center=True,
            scale=True,
            beta_initializer=beta_initializer,
            gamma_initializer=gamma_initializer,
            beta_regularizer=beta_regularizer,
            gamma_regularizer=gamma_regularizer,
            beta_constraint=beta_constraint,
            gamma_constraint=gamma_constraint,
            use_mask=use_mask,
            implementation=implementation,
            activation=activation,
            name=name,
            **kwargs,
        )
        self.axis = checked_axes(axis) if integer_axes(axis) else []
        self.learned_epsilon = learned_epsilon
        self.learned_epsilon_constraint = constraints.get(learned_epsilon_constraint)
        self.eps_learned: Any = None

    def partition(self) -> dict[str, Any]:
        """See the base class."""
        return {"axis": self.axis}

    def parameter_shape(self, view: View, input_shape: Shape) -> Shape:
        """See the base class; TensorFlow Addons' weights have the rank of the input."""
        channel = view.parameter_axes[0]
        return tuple(size if axis == channel else 1 for axis, size in enumerate(input_shape))

    def build(self, input_shape: Shape) -> None:
        """Create learned_epsilon, if it is asked for, then gamma and beta."""
        if self.learned_epsilon:
            self.eps_learned = self.add_weight(
                name="learned_epsilon",
                shape=(1,),
                initializer=keras.initializers.Constant(1e-4),
                constraint=self.learned_epsilon_constraint,
                autocast=False,
            )
        super().build(input_shape)

    def call(
        self, inputs: Any, mask: Any = None, residual: Any = None, inputs_mask: Any = None
    ) -> Any:
        """See the base class."""
        epsilon = None
        if self.learned_epsilon:
            # Not abs, whose gradient at zero differs between backends: here it is zero.
            sign = keras.ops.stop_gradient(keras.ops.sign(self.eps_learned))
            epsilon = self.epsilon + sign * self.eps_learned
        gamma, beta = (keras.ops.reshape(one, [-1]) for one in (self.gamma, self.beta))
        mask = inputs_mask if mask is None else mask
        return self.normalized(inputs, gamma, beta, mask, residual, epsilon)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments; there is always a gamma and a beta."""
        config = {
            **super().get_config(),
            "learned_epsilon": self.learned_epsilon,
            "learned_epsilon_constraint": constraints.serialize(self.learned_epsilon_constraint),
        }
        for key in ("center", "scale"):
            del config[key]
        return config
