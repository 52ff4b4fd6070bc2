"""Recurrent cells with layer normalization inside the step, for `keras.layers.RNN`.

They are Keras' cells with the arguments, defaults, weights and formulas of TensorFlow Addons' cells
of these names. The layer normalization is truenorm's; `truenorm.use_implementation` chooses how it
is computed.
"""

from typing import Any

import keras
from keras import constraints, initializers, ops, regularizers

from truenorm.core.arguments import check_epsilon
from truenorm.layers.base import OwnFramework, Shape
from truenorm.layers.layer_normalization import LayerNormalization

__all__ = ["LayerNormLSTMCell", "LayerNormSimpleRNNCell"]


def _fresh(initializer: Any) -> Any:
    """A copy with a seed of its own where none was given: one that is shared repeats its values."""
    return initializer.clone() if isinstance(initializer, initializers.Initializer) else initializer


@keras.saving.register_keras_serializable("truenorm")
class LayerNormLSTMCell(OwnFramework, keras.layers.LSTMCell):
    """LSTM cell with layer normalization (Ba, Kiros and Hinton, 2016, arXiv:1607.06450).

    With LN a layer normalization over the last axis, each with its own gamma and beta:

        i, f, g, o = split(LN(x @ kernel) + LN(h @ recurrent_kernel) + bias)
        c = LN(sigmoid(f) * c + sigmoid(i) * tanh(g))
        h = sigmoid(o) * tanh(c)

    The carry c that is passed on is the normalized one. Unlike `keras.layers.LSTMCell`, all four
    gates share one dropout mask, as in TensorFlow Addons.

    Args:
        units: size of h and of c.
        activation: in the place of tanh; None is the identity.
        recurrent_activation: in the place of sigmoid; None is the identity.
        use_bias: add the bias.
        kernel_initializer, recurrent_initializer, bias_initializer: initializers.
        unit_forget_bias: start the bias of the gate f at 1.
        kernel_regularizer, recurrent_regularizer, bias_regularizer: optional regularizers.
        kernel_constraint, recurrent_constraint, bias_constraint: optional constraints.
        dropout: the share of x that is dropped in training, from 0 to 1.
        recurrent_dropout: the same of h, with one mask for all steps.
        norm_gamma_initializer, norm_beta_initializer: initializers of gamma and beta.
        norm_epsilon: added to the variance of each normalization.
        **kwargs: `seed` of the dropout, `name`, `dtype`, `trainable`. `implementation`, which old
            configs have, is accepted: 1 and 2 compute the same.

    Weights: kernel (D, 4 units), recurrent_kernel (units, 4 units), bias (4 units,), then gamma and
    beta of kernel_norm (4 units,), of recurrent_norm (4 units,) and of state_norm (units,).

    Raises:
        ValueError: an argument does not fit.
    """

    def __init__(
        self,
        units: int,
        activation: Any = "tanh",
        recurrent_activation: Any = "sigmoid",
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        recurrent_initializer: Any = "orthogonal",
        bias_initializer: Any = "zeros",
        unit_forget_bias: bool = True,
        kernel_regularizer: Any = None,
        recurrent_regularizer: Any = None,
        bias_regularizer: Any = None,
        kernel_constraint: Any = None,
        recurrent_constraint: Any = None,
        bias_constraint: Any = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        norm_gamma_initializer: Any = "ones",
        norm_beta_initializer: Any = "zeros",
        norm_epsilon: float = 1e-3,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            units,
            activation=activation,
            recurrent_activation=recurrent_activation,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            recurrent_initializer=recurrent_initializer,
            bias_initializer=bias_initializer,
            unit_forget_bias=unit_forget_bias,
            kernel_regularizer=kernel_regularizer,
            recurrent_regularizer=recurrent_regularizer,
            bias_regularizer=bias_regularizer,
            kernel_constraint=kernel_constraint,
            recurrent_constraint=recurrent_constraint,
            bias_constraint=bias_constraint,
            dropout=dropout,
            recurrent_dropout=recurrent_dropout,
            **kwargs,
        )
        self.dropout_mask_count = None  # one mask, where Keras' cell has a list of four
        self.norm_gamma_initializer = initializers.get(norm_gamma_initializer)
        self.norm_beta_initializer = initializers.get(norm_beta_initializer)
        self.norm_epsilon = check_epsilon(norm_epsilon)
        self.kernel_norm = self._normalization("kernel_norm")
        self.recurrent_norm = self._normalization("recurrent_norm")
        self.state_norm = self._normalization("state_norm")

    def _normalization(self, name: str) -> LayerNormalization:
        return LayerNormalization(
            epsilon=self.norm_epsilon,
            gamma_initializer=_fresh(self.norm_gamma_initializer),
            beta_initializer=_fresh(self.norm_beta_initializer),
            name=name,
            dtype=self.dtype_policy,
            trainable=self.trainable,
        )

    def build(self, input_shape: Shape) -> None:
        """Create the weights for inputs (N, D)."""
        super().build(input_shape)
        self.kernel_norm.build((input_shape[0], 4 * self.units))
        self.recurrent_norm.build((input_shape[0], 4 * self.units))
        self.state_norm.build((input_shape[0], self.units))

    def call(self, inputs: Any, states: Any, training: bool = False) -> tuple[Any, list[Any]]:
        """Compute one step.

        Args:
            inputs: (N, D).
            states: h and c, each (N, units).
            training: drop out.

        Returns:
            h, and the list of h and c.
        """
        h, c = states
        if training and 0 < self.dropout < 1:
            inputs = inputs * self.get_dropout_mask(inputs)
        if training and 0 < self.recurrent_dropout < 1:
            h = h * self.get_recurrent_dropout_mask(h)
        z = self.kernel_norm(ops.matmul(inputs, self.kernel))
        z = z + self.recurrent_norm(ops.matmul(h, self.recurrent_kernel))
        if self.use_bias:
            z = z + self.bias
        i, f, g, o = ops.split(z, 4, axis=1)
        c = self.recurrent_activation(f) * c + self.recurrent_activation(i) * self.activation(g)
        c = self.state_norm(c)
        h = self.recurrent_activation(o) * self.activation(c)
        return h, [h, c]

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "norm_gamma_initializer": initializers.serialize(self.norm_gamma_initializer),
            "norm_beta_initializer": initializers.serialize(self.norm_beta_initializer),
            "norm_epsilon": self.norm_epsilon,
        }


@keras.saving.register_keras_serializable("truenorm")
class LayerNormSimpleRNNCell(OwnFramework, keras.layers.SimpleRNNCell):
    """Simple recurrent cell with layer normalization (arXiv:1607.06450).

    With LN a layer normalization over the last axis, which has a gamma but no beta (the bias is
    one):

        h = tanh(LN(x @ kernel + h @ recurrent_kernel) + bias)

    Args:
        units: size of h.
        activation: in the place of tanh; None is the identity.
        use_bias: add the bias.
        layernorm_epsilon: added to the variance.
        kernel_initializer, recurrent_initializer, bias_initializer, gamma_initializer:
            initializers.
        kernel_regularizer, recurrent_regularizer, bias_regularizer, gamma_regularizer: optional
            regularizers.
        kernel_constraint, recurrent_constraint, bias_constraint, gamma_constraint: optional
            constraints.
        dropout: the share of x that is dropped in training, from 0 to 1.
        recurrent_dropout: the same of h, with one mask for all steps.
        **kwargs: `seed` of the dropout, `name`, `dtype`, `trainable`.

    Weights: kernel (D, units), recurrent_kernel (units, units), bias (units,), then gamma of
    layernorm (units,).

    Raises:
        ValueError: an argument does not fit.
    """

    def __init__(
        self,
        units: int,
        activation: Any = "tanh",
        use_bias: bool = True,
        layernorm_epsilon: float = 1e-5,
        kernel_initializer: Any = "glorot_uniform",
        recurrent_initializer: Any = "orthogonal",
        bias_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        kernel_regularizer: Any = None,
        recurrent_regularizer: Any = None,
        bias_regularizer: Any = None,
        gamma_regularizer: Any = None,
        kernel_constraint: Any = None,
        recurrent_constraint: Any = None,
        bias_constraint: Any = None,
        gamma_constraint: Any = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            units,
            activation=activation,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            recurrent_initializer=recurrent_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            recurrent_regularizer=recurrent_regularizer,
            bias_regularizer=bias_regularizer,
            kernel_constraint=kernel_constraint,
            recurrent_constraint=recurrent_constraint,
            bias_constraint=bias_constraint,
            dropout=dropout,
            recurrent_dropout=recurrent_dropout,
            **kwargs,
        )
        self.layernorm = LayerNormalization(
            epsilon=layernorm_epsilon,
            center=False,
            gamma_initializer=gamma_initializer,
            gamma_regularizer=gamma_regularizer,
            gamma_constraint=gamma_constraint,
            name="layernorm",
            dtype=self.dtype_policy,
            trainable=self.trainable,
        )

    def build(self, input_shape: Shape) -> None:
        """Create the weights for inputs (N, D)."""
        super().build(input_shape)
        self.layernorm.build((input_shape[0], self.units))

    def call(self, inputs: Any, states: Any, training: bool = False) -> tuple[Any, list[Any]]:
        """Compute one step.

        Args:
            inputs: (N, D).
            states: a list of h, (N, units).
            training: drop out.

        Returns:
            h, and the list of h.
        """
        (h,) = states
        if training and self.dropout > 0:
            inputs = inputs * self.get_dropout_mask(inputs)
        if training and self.recurrent_dropout > 0:
            h = h * self.get_recurrent_dropout_mask(h)
        h = self.layernorm(ops.matmul(inputs, self.kernel) + ops.matmul(h, self.recurrent_kernel))
        if self.use_bias:
            h = h + self.bias
        h = self.activation(h)
        return h, [h]

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        norm = self.layernorm
        return {
            **super().get_config(),
            "layernorm_epsilon": norm.epsilon,
            "gamma_initializer": initializers.serialize(norm.gamma_initializer),
            "gamma_regularizer": regularizers.serialize(norm.gamma_regularizer),
            "gamma_constraint": constraints.serialize(norm.gamma_constraint),
        }
