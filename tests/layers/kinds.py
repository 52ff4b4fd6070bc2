"""The four layers, as the tests of this folder make them, and what they must compute."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

import truenorm
from truenorm.core import reference

# Group normalization's groups must divide the channels, which in these tests are even.
MAKERS: dict[str, Callable[..., Any]] = {
    "group": lambda **options: truenorm.GroupNormalization(**{"groups": 2, **options}),
    "instance": truenorm.InstanceNormalization,
    "layer": truenorm.LayerNormalization,
    "rms": truenorm.RMSNormalization,
}
# Keras' own layers with the same weights.
KERAS_MAKERS: dict[str, Callable[..., Any]] = {
    "group": lambda **options: keras.layers.GroupNormalization(**{"groups": 2, **options}),
    "instance": lambda **options: keras.layers.GroupNormalization(groups=-1, **options),
    "layer": keras.layers.LayerNormalization,
    "rms": keras.layers.RMSNormalization,
}
# All arguments that take more than a number, with something other than their default.
RICH_OPTIONS: dict[str, Any] = {
    "epsilon": 2e-2,
    "gamma_initializer": keras.initializers.RandomUniform(0.5, 2.0, seed=1),
    "gamma_regularizer": keras.regularizers.L2(0.25),
    "gamma_constraint": keras.constraints.MaxNorm(3.0),
    "beta_initializer": keras.initializers.RandomNormal(seed=2),
    "beta_regularizer": keras.regularizers.L1(0.5),
    "beta_constraint": keras.constraints.NonNeg(),
}


def make(kind: str, **options: Any) -> Any:
    """A layer, with those of the options that it has: RMS normalization has no beta."""
    if kind == "rms":
        options = {
            key: value
            for key, value in options.items()
            if key != "center" and not key.startswith("beta_")
        }
    return MAKERS[kind](**options)


def randomize(layer: Any, rng: np.random.Generator) -> None:
    """Give the weights of a built layer random values, so that forgetting one shows."""
    layer.set_weights([rng.uniform(-2, 2, one.shape).astype(one.dtype) for one in layer.weights])


def compiled(layer: Any) -> Callable[..., Any]:
    """The layer, in one piece on JAX, which else compiles every operation for every new shape."""
    if keras.backend.backend() != "jax":
        return layer
    import jax

    return jax.jit(lambda x, mask=None: layer(x, mask=mask))


def expected(layer: Any, x: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """What the layer must compute, in float64."""
    weights = {one.name: ops.convert_to_numpy(one).astype("float64") for one in layer.weights}
    if mask is not None:
        mask = np.broadcast_to(mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim)), x.shape)
    return reference.normalize(
        x.astype("float64"),
        weights.get("gamma"),
        weights.get("beta"),
        layer.kind.view(x.shape, **layer.partition()),
        epsilon=layer.epsilon,
        centered=layer.kind.centered,
        mask=mask,
    )


def assert_close(actual: Any, wanted: np.ndarray, tolerance: float = 1e-5) -> None:
    """Assert |actual - wanted| <= tolerance * max(1, |wanted|), for NumPy arrays or tensors."""
    actual = ops.convert_to_numpy(actual).astype("float64")
    assert actual.shape == wanted.shape
    np.testing.assert_array_less(np.abs(actual - wanted) / np.maximum(1, np.abs(wanted)), tolerance)
