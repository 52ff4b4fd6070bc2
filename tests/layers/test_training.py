"""The layers as parts of models: training, regularizers, constraints, cloning, functional state."""

import keras
import numpy as np
import pytest
from keras import ops
from kinds import MAKERS, RICH_OPTIONS, assert_close, expected, make, randomize


def small_model(layer):
    return keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            keras.layers.Conv2D(8, 3),
            layer,
            keras.layers.Activation("relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(2, activation="softmax"),
        ]
    )


def task(rng):
    """Images whose label is which half is brighter, whatever their brightness and contrast."""
    x = rng.normal(0, 1, (64, 6, 6, 3))
    label = rng.integers(0, 2, 64)
    x[label == 0, :3] += 1
    x[label == 1, 3:] += 1
    return (rng.uniform(0.5, 2, (64, 1, 1, 1)) * x).astype("float32"), label


@pytest.mark.parametrize("kind", MAKERS)
def test_trains_in_fit_and_its_weights_move(kind, rng):
    layer = make(kind)
    model = small_model(layer)
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    before = layer.get_weights()
    x, label = task(rng)
    history = model.fit(x, label, batch_size=16, epochs=6, verbose=0).history["loss"]
    assert history[-1] < 0.6 * history[0]
    for old, new in zip(before, layer.get_weights(), strict=True):
        assert np.all(old != new)
    predicted = np.argmax(model.predict(x, verbose=0), -1)
    assert np.mean(predicted == label) > 0.9


@pytest.mark.parametrize("kind", MAKERS)
def test_training_equals_inference(kind, rng):
    layer = make(kind)
    x = rng.normal(0.5, 2, (3, 5, 4)).astype("float32")
    model = keras.Sequential([keras.Input((5, 4)), layer])
    randomize(layer, rng)
    assert layer.non_trainable_weights == []
    np.testing.assert_array_equal(
        ops.convert_to_numpy(model(x, training=True)),
        ops.convert_to_numpy(model(x, training=False)),
    )


@pytest.mark.parametrize("kind", MAKERS)
def test_initializers_regularizers_and_constraints(kind, rng):
    layer = make(kind, **RICH_OPTIONS)
    layer.build((2, 5, 4))
    gamma = layer.get_weights()[0]
    assert np.all((gamma >= 0.5) & (gamma <= 2))
    assert len(set(gamma)) == 4
    loss = 0.25 * np.sum(gamma**2)
    if kind != "rms":
        beta = layer.get_weights()[1]
        assert len(set(beta)) == 4
        loss += 0.5 * np.sum(np.abs(beta))
    np.testing.assert_allclose(float(sum(ops.convert_to_numpy(one) for one in layer.losses)), loss)

    model = keras.Sequential([keras.Input((5, 4)), layer])
    model.compile(keras.optimizers.SGD(10.0), "mse")
    model.fit(
        rng.normal(size=(4, 5, 4)).astype("float32"), rng.normal(5, 9, size=(4, 5, 4)), verbose=0
    )
    gamma, *betas = layer.get_weights()
    assert np.linalg.norm(gamma) <= 3 * (1 + 1e-6)
    assert all(np.all(beta >= 0) for beta in betas)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_frozen_layer_stays_as_it_is(kind, rng):
    layer = make(kind, trainable=False)
    model = small_model(layer)
    model.compile("adam", "sparse_categorical_crossentropy")
    assert layer.trainable_weights == []
    assert len(layer.non_trainable_weights) == (1 if kind == "rms" else 2)
    before = layer.get_weights()
    x, label = task(rng)
    model.fit(x, label, verbose=0)
    for old, new in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("kind", MAKERS)
def test_clone_model(kind, rng):
    layer = make(kind, axis=1, **RICH_OPTIONS)
    model = keras.Sequential([keras.Input((4, 5)), layer])
    clone = keras.models.clone_model(model)
    assert clone.layers[0] is not layer
    assert clone.layers[0].get_config() == layer.get_config()
    clone.set_weights(model.get_weights())
    x = rng.normal(size=(3, 4, 5)).astype("float32")
    np.testing.assert_array_equal(ops.convert_to_numpy(clone(x)), ops.convert_to_numpy(layer(x)))


@pytest.mark.parametrize("kind", MAKERS)
def test_stateless_call(kind, rng):
    layer = make(kind)
    x = rng.normal(0.5, 2, (3, 5, 4)).astype("float32")
    layer.build(x.shape)
    before = layer.get_weights()
    other = make(kind)
    other.build(x.shape)
    randomize(other, rng)
    values = [ops.convert_to_tensor(one) for one in other.get_weights()]
    y, state = layer.stateless_call(values, [], x)
    assert state == []
    assert_close(y, expected(other, x))
    for old, new in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    mask = np.array([True, False, True])
    masked, _ = layer.stateless_call(values, [], x, mask=mask)
    assert_close(masked, expected(other, x, mask))


@pytest.mark.parametrize("kind", MAKERS)
def test_inside_time_distributed_and_twice_in_one_model(kind, rng):
    layer = make(kind)
    inputs = keras.Input((3, 5, 4))
    model = keras.Model(inputs, keras.layers.TimeDistributed(layer)(inputs))
    randomize(layer, rng)
    x = rng.normal(0.5, 2, (2, 3, 5, 4)).astype("float32")
    wanted = expected(layer, x.reshape(6, 5, 4)).reshape(x.shape)
    assert_close(model.predict(x, verbose=0), wanted)
    shared = keras.Input((5, 4))
    twice = keras.Model(shared, layer(layer(shared)))
    assert_close(twice(x[0]), expected(layer, expected(layer, x[0])), 2e-5)
