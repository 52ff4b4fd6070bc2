"""The two models of a comparison, and which normalizations make sense in them."""

from typing import Any

import keras
from keras import ops

from truenorm import layers
from truenorm.core.errors import InputError
from truenorm.core.kinds import KINDS
from truenorm.tools.compare.settings import Norm, Settings
from truenorm.tools.explain.explanation import Explanation, explain

FILTERS = 10
UNITS = 64  # width of the recurrent state
CLASSES = 10


def normalized_shape(
    model: str, image_shape: tuple[int, int], batch_size: int | None
) -> tuple[int | None, ...]:
    """The shape of the tensor that is normalized, samples first."""
    if model == "rnn":
        return (batch_size, UNITS)
    return (batch_size, image_shape[0] - 2, image_shape[1] - 2, FILTERS)


def explained(
    norm: Norm, model: str, image_shape: tuple[int, int], batch_size: int | None
) -> Explanation:
    """Which elements this normalization puts together in this model.

    Raises:
        InputError: axes or groups that do not fit the tensor.
    """
    relevant = ("axis", "groups", "center", "scale")
    options = {k: v for k, v in norm.options.items() if k in relevant}
    shape = normalized_shape(model, image_shape, batch_size)
    try:
        return explain(norm.name, shape, **options)
    except InputError as error:
        raise InputError(f"the normalization {norm.label!r} does not fit: {error}") from None


def check(settings: Settings, image_shape: tuple[int, int]) -> None:
    """Refuse options that do not fit the model, before anything is trained.

    Raises:
        InputError: axes or groups that do not fit the tensor that is normalized.
    """
    for norm in settings.norms:
        if norm.name != "none":
            explained(norm, settings.model, image_shape, settings.batch_sizes[0])


def not_applicable(
    norm: Norm, model: str, image_shape: tuple[int, int], batch_size: int
) -> str | None:
    """Why this normalization makes no sense in this model at this batch size; None if it does."""
    if norm.name == "none":
        return None
    if norm.name == "batch" and model == "rnn" and keras.backend.backend() == "jax":
        return (
            "on the JAX backend Keras runs the steps of a recurrent network inside jax.lax.scan, "
            "where BatchNormalization cannot assign its moving mean and variance"
        )
    explanation = explained(norm, model, image_shape, batch_size)
    if explanation.elements_per_group == 1:
        shape = ", ".join(map(str, explanation.shape))
        return (
            f"in a tensor of shape ({shape}) every group that shares statistics has one element, "
            "so the output is the same whatever the input"
        )
    return None


def build(model: str, norm: Norm, image_shape: tuple[int, int], seed: int) -> keras.Model:
    """The compiled model. Its input is (batch, H, W), float32; its output (batch, 10).

    The layers that all models share are made first, so that a seed gives them the same initial
    weights whichever normalization comes between them.
    """
    keras.utils.set_random_seed(seed)
    if model == "rnn":
        cell = NormalizedCell(UNITS)
        output = keras.layers.Dense(CLASSES, activation="softmax")
        cell.normalization = layer(norm)
        parts = [keras.layers.RNN(cell), output]
    else:
        before = [keras.layers.Reshape((*image_shape, 1)), keras.layers.Conv2D(FILTERS, (3, 3))]
        after = [
            keras.layers.Flatten(),
            keras.layers.Dense(128, activation="relu"),
            # Without a seed Keras' PyTorch backend draws from PyTorch's own generator, whose
            # state depends on what ran before.
            keras.layers.Dropout(0.2, seed=seed),
            keras.layers.Dense(CLASSES, activation="softmax"),
        ]
        normalization = layer(norm)
        parts = [*before, *([] if normalization is None else [normalization]), *after]
    built = keras.Sequential([keras.Input(image_shape), *parts])
    built.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return built


def layer(norm: Norm) -> keras.Layer | None:
    """The normalization layer, or None for "none"."""
    if norm.name == "none":
        return None
    return getattr(layers, KINDS[norm.name].keras)(**norm.options)


@keras.saving.register_keras_serializable("truenorm.tools.compare")
class NormalizedCell(keras.layers.Layer):
    """One step of a recurrent network: h' = tanh(norm(x W + h U + b)).

    Input x (batch, features) and state h (batch, units); output and new state (batch, units).
    """

    def __init__(self, units: int, normalization: keras.Layer | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = self.state_size = self.output_size = units
        self.normalization = normalization
        self.kernel_initializer = keras.initializers.GlorotUniform()
        self.recurrent_initializer = keras.initializers.Orthogonal()

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Make W, U and b, and the weights of the normalization."""
        self.kernel = self.add_weight(
            name="kernel",
            shape=(input_shape[-1], self.units),
            initializer=self.kernel_initializer,
        )
        self.recurrent_kernel = self.add_weight(
            name="recurrent_kernel",
            shape=(self.units, self.units),
            initializer=self.recurrent_initializer,
        )
        self.bias = self.add_weight(name="bias", shape=(self.units,), initializer="zeros")
        if self.normalization is not None:
            self.normalization.build((input_shape[0], self.units))

    def call(self, x: Any, states: Any) -> tuple[Any, list[Any]]:
        """One step."""
        z = ops.matmul(x, self.kernel) + ops.matmul(states[0], self.recurrent_kernel) + self.bias
        h = ops.tanh(z if self.normalization is None else self.normalization(z))
        return h, [h]
