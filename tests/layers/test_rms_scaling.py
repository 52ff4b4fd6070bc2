"""`rms_scaling` of Keras' layer normalization configs: x over its standard deviation."""

import keras
import numpy as np
import pytest
from keras import ops

import truenorm

SHAPE = (4, 5, 6)


@pytest.mark.filterwarnings("ignore:You passed `rms_scaling=True`")  # Keras' own
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("axis", [-1, [1, 2]], ids=str)
def test_a_config_of_keras_gives_keras_numbers(scaled, axis, rng):
    theirs = keras.layers.LayerNormalization(axis=axis, rms_scaling=scaled)
    config = {**theirs.get_config(), "rms_scaling": scaled}
    ours = truenorm.LayerNormalization.from_config(config)
    for layer in (theirs, ours):
        layer.build(SHAPE)
    weights = [rng.uniform(0.5, 2, one.shape) for one in theirs.weights]
    theirs.set_weights(weights)
    ours.set_weights(weights)
    x = rng.normal(0.5, 2, SHAPE).astype("float32")
    wanted = ops.convert_to_numpy(theirs(x))
    np.testing.assert_allclose(ops.convert_to_numpy(ours(x)), wanted, rtol=1e-5, atol=1e-5)
    again = truenorm.LayerNormalization.from_config(ours.get_config())
    assert again.get_config() == ours.get_config()
    assert again.rms_scaling is scaled


def test_what_a_mask_hides_stays_out_of_the_variance(rng):
    layer = truenorm.LayerNormalization(axis=[1, 2], rms_scaling=True)
    layer.build(SHAPE)
    gamma = rng.uniform(0.5, 2, SHAPE[1:]).astype("float32")
    layer.set_weights([gamma])
    x = rng.normal(0.5, 2, SHAPE).astype("float32")
    mask = np.arange(5) < np.array([5, 3, 2, 1])[:, None]
    wanted = np.stack(
        [gamma * one / np.sqrt(one[real].var(dtype="float64") + layer.epsilon)
         for one, real in zip(x, mask, strict=True)]
    )  # fmt: skip
    x[~mask] = np.nan
    y = ops.convert_to_numpy(layer(x, mask=mask))
    np.testing.assert_allclose(y[mask], wanted[mask], rtol=1e-5, atol=1e-5)
