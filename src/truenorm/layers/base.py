"""What the layers share: how they take their inputs; the weights gamma and beta; the config."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import constraints, initializers, regularizers

from truenorm import ops
from truenorm.core.arguments import check_activation, check_epsilon, check_residual
from truenorm.core.engine import check as check_implementation
from truenorm.core.errors import brief
from truenorm.core.kinds import Kind
from truenorm.core.view import View, integer_axes

Shape = Sequence[int | None]


class OwnFramework:
    """A mixin of layers and cells: arrays of another framework than the backend's are refused.

    Keras would turn them into the backend's tensors without a word.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As in Keras.

        Raises:
            TypeError: an argument is an array of another framework.
        """
        for one in args:
            if not keras.ops.is_tensor(one):
                _check_frameworks(one)
        if kwargs:
            _check_frameworks(kwargs)
        return super().__call__(*args, **kwargs)  # type: ignore[misc]


def _check_frameworks(arguments: Any) -> None:
    for one in keras.tree.flatten(arguments):
        ops.check_framework("an argument", one)


def wider(one: str, other: str) -> str:
    """The narrowest floating dtype that holds the numbers of both.

    Not `keras.backend.result_type`, which knows no float64.
    """
    if one == other or "float64" in (one, other):
        return one if one == other else "float64"
    return "float32"


class RoundedOnce(OwnFramework, keras.layers.Layer):
    """A layer of one tensor that computes with what comes in, and rounds the result to its dtype.

    Keras would round the input first, which makes Inf of large numbers in half precision.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.autocast = False
        self.supports_masking = True

    def widened(self, inputs: Any) -> Any:
        """The inputs in the wider of their own dtype and the layer's; integers at least float32."""
        dtype = self.wide_dtype(inputs)
        if dtype == keras.backend.standardize_dtype(inputs.dtype):
            return inputs
        return keras.ops.cast(inputs, dtype)

    def wide_dtype(self, inputs: Any) -> str:
        """The dtype of these."""
        own = keras.backend.standardize_dtype(inputs.dtype)
        if not keras.backend.is_float_dtype(own):
            if own.startswith("complex"):
                raise TypeError(
                    f"{type(self).__name__} {self.name!r} takes real numbers, but its input is "
                    f"{own}; pass the real and the imaginary part as two channels."
                )
            own = "float32"
        return wider(own, self.compute_dtype)

    def rounded(self, outputs: Any) -> Any:
        """The result in the layer's dtype."""
        if keras.backend.standardize_dtype(outputs.dtype) == self.compute_dtype:
            return outputs
        return keras.ops.cast(outputs, self.compute_dtype)

    def compute_output_shape(self, input_shape: Shape) -> tuple[int | None, ...]:
        """The input shape."""
        return tuple(input_shape)


class NormalizationLayer(RoundedOnce):
    """A layer with optional weights gamma and beta; a subclass says which normalization it is.

    The weights keep their own dtype (autocast is off), so that mixed precision loses nothing of
    them.
    """

    kind: Kind
    # What to do where the size of the weights is unknown.
    without_size = "give those sizes, or pass scale=False and center=False"

    def __init__(
        self,
        *,
        epsilon: float,
        center: bool,
        scale: bool,
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
        super().__init__(**kwargs)
        self.epsilon = check_epsilon(epsilon)
        ops.check_float64(self.compute_dtype, keras.ops.zeros((), dtype=self.compute_dtype).dtype)
        self.center = center
        self.scale = scale
        self.beta_initializer = initializers.get(beta_initializer)
        self.gamma_initializer = initializers.get(gamma_initializer)
        self.beta_regularizer = regularizers.get(beta_regularizer)
        self.gamma_regularizer = regularizers.get(gamma_regularizer)
        self.beta_constraint = constraints.get(beta_constraint)
        self.gamma_constraint = constraints.get(gamma_constraint)
        self.use_mask = use_mask
        self.activation = check_activation(activation)
        self.implementation = check_implementation(implementation)
        self.gamma: Any = None
        self.beta: Any = None

    def partition(self) -> dict[str, Any]:
        """The arguments that tell the kind which elements share statistics."""
        raise NotImplementedError

    def parameter_shape(self, view: View, input_shape: Shape) -> Shape:
        """The shape of the weights gamma and beta."""
        return view.parameter_shape(input_shape)

    def build(self, input_shape: Shape) -> None:
        """Create gamma and beta, in this order, where `scale` and `center` ask for them."""
        view = self.kind.view(input_shape, **self.partition(), first=1)
        shape = self.parameter_shape(view, input_shape)
        if None in shape and (self.scale or self.center):
            raise ValueError(
                f"{type(self).__name__} {self.name!r} needs the size of axes "
                f"{list(view.parameter_axes)} to create gamma and beta, but its input shape is "
                f"{tuple(input_shape)}; {self.without_size}."
            )
        for name, wanted in (("gamma", self.scale), ("beta", self.center)):
            if wanted:
                weight = self.add_weight(
                    name=name,
                    shape=shape,
                    initializer=getattr(self, f"{name}_initializer"),
                    regularizer=getattr(self, f"{name}_regularizer"),
                    constraint=getattr(self, f"{name}_constraint"),
                    autocast=False,
                )
                setattr(self, name, weight)

    def call(
        self, inputs: Any, mask: Any = None, residual: Any = None, inputs_mask: Any = None
    ) -> Any:
        """Normalize a tensor of the shape that the layer was built for.

        Args:
            inputs: tensor (N, ...); integers are taken as float32.
            mask: boolean, its shape a prefix of the inputs'; ignored where use_mask is False.
            residual: a tensor of the shape and dtype of the inputs, added to them before.
            inputs_mask: what Keras calls the mask of the inputs where there is a residual too.

        Returns:
            The result in the layer's dtype; with a residual the pair of it and of the sum, which
            has the dtype of the inputs, or the layer's where that is wider.
        """
        mask = inputs_mask if mask is None else mask
        return self.normalized(inputs, self.gamma, self.beta, mask, residual)

    def normalized(
        self,
        inputs: Any,
        gamma: Any,
        beta: Any,
        mask: Any,
        residual: Any = None,
        learned_epsilon: Any = None,
    ) -> Any:
        """The result with these parameters, in the layer's dtype."""
        outputs = ops.normalize(
            self.kind,
            self.widened(inputs),
            gamma,
            beta,
            mask if self.use_mask else None,
            epsilon=self.epsilon,
            activation=self.activation,
            residual=None if residual is None else self.widened(residual),
            learned_epsilon=learned_epsilon,
            implementation=self.implementation,
            **self.partition(),
        )
        return self.finished(outputs, residual)

    def finished(self, outputs: Any, residual: Any) -> Any:
        """The outputs in the layer's dtype; with a residual the sum beside them, as it is."""
        if residual is None:
            return self.rounded(outputs)
        outputs, total = outputs
        return self.rounded(outputs), total

    def compute_output_spec(
        self, inputs: Any, mask: Any = None, residual: Any = None, inputs_mask: Any = None
    ) -> Any:
        """A tensor of the input's shape; with a residual a pair of them."""
        outputs = keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)
        if residual is None:
            return outputs
        one, other = (self.wide_dtype(tensor) for tensor in (inputs, residual))
        check_residual(tuple(residual.shape), other, tuple(inputs.shape), one)
        return outputs, keras.KerasTensor(inputs.shape, dtype=one)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments; the last three only where they were set."""
        config = {
            **super().get_config(),
            **self.partition(),
            "epsilon": self.epsilon,
            "center": self.center,
            "scale": self.scale,
            "beta_initializer": initializers.serialize(self.beta_initializer),
            "gamma_initializer": initializers.serialize(self.gamma_initializer),
            "beta_regularizer": regularizers.serialize(self.beta_regularizer),
            "gamma_regularizer": regularizers.serialize(self.gamma_regularizer),
            "beta_constraint": constraints.serialize(self.beta_constraint),
            "gamma_constraint": constraints.serialize(self.gamma_constraint),
        }
        if not self.use_mask:
            config["use_mask"] = False
        if self.activation is not None:
            config["activation"] = self.activation
        if self.implementation is not None:
            config["implementation"] = self.implementation
        return config


def checked_axes(axis: int | Sequence[int]) -> int | list[int]:
    """Axis or axes as the config stores them: an integer, or a list in the given order.

    Raises:
        ValueError: there is no axis, one is given twice, or one is the batch axis 0.
        TypeError: an axis is not an integer.
    """
    axes = integer_axes(axis)
    if not axes:
        raise ValueError(
            f"axis={brief(axis)} names no axis; expected an integer or a list of them."
        )
    if 0 in axes:
        raise ValueError(
            f"axis={brief(axis)} names the batch axis, whose samples must not be mixed; "
            "expected axes from 1 on, or negative ones."
        )
    if len(set(axes)) < len(axes):
        raise ValueError(f"axis={brief(axis)} names an axis twice; expected each axis once.")
    return list(axes) if isinstance(axis, (list, tuple)) else axes[0]
