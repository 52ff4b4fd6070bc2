"""Spectral normalization: TensorFlow Addons' outputs, the formula and its gradient, inference."""

import keras
import numpy as np
import pytest
from addons_cases import cases, split
from keras import ops
from kinds import assert_close

import truenorm
from gradients import value_and_gradients

CASES = cases("addons_spectral_normalization.npz")


def wrap(layer, **options):
    return truenorm.SpectralNormalization(layer, **options)


def numpy(value):
    return ops.convert_to_numpy(value).astype("float64")


def iterate(w, u, power_iterations=1):
    """The vectors and sigma of the paper's algorithm 1, in float64."""
    w = w.reshape(-1, w.shape[-1])
    for _ in range(power_iterations):
        v = u @ w.T
        v /= np.linalg.norm(v)
        u = v @ w
        u /= np.linalg.norm(u)
    return u, v, (v @ w @ u.T).item()


def addons_wrapper(name):
    """The wrapper of a case, and a function that gives it the weights of one of its steps."""
    arrays = CASES[name]
    kind, options, _, power_iterations = arrays["case"]
    wrapper = wrap(getattr(keras.layers, kind)(**options), power_iterations=power_iterations)
    wrapper.build(arrays["x"].shape)
    variables = [*wrapper.layer.weights, wrapper.sn_u]  # a .h5 file's order

    def load(step):
        shapes = [tuple(one.shape) for one in variables]
        values = split(arrays[f"{step}/weights"], shapes)
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        return values

    return wrapper, load


@pytest.mark.parametrize("name", CASES)
def test_calls_equal_those_of_addons(name):
    arrays = CASES[name]
    wrapper, load = addons_wrapper(name)
    x = ops.convert_to_tensor(arrays["x"])
    load("untrained")
    w = numpy(wrapper.w)
    steps = {"untrained": False, "first": True, "second": True, "inference": False}
    for step, training in steps.items():
        assert_close(wrapper(x, training=training), arrays[f"{step}/y"])
        if step != "untrained":
            # The kernel stays here; there it is divided.
            kernel, *_, u = split(
                arrays[f"{step}/weights"],
                [tuple(one.shape) for one in (*wrapper.layer.weights, wrapper.sn_u)],
            )
            assert_close(wrapper.sn_u, u)
            assert_close(w / numpy(wrapper.sigma), kernel)
        np.testing.assert_array_equal(numpy(wrapper.w), w)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("step", ["untrained", "second", "fitted"])
def test_weights_of_addons_give_its_outputs_in_inference(name, step):
    arrays = CASES[name]
    wrapper, load = addons_wrapper(name)
    load(step)
    y = arrays["inference/y" if step == "second" else f"{step}/y"]
    assert_close(wrapper(ops.convert_to_tensor(arrays["x"])), y)


def test_the_gradient_flows_through_sigma(rng):
    x = rng.normal(0.5, 2, (6, 5)).astype("float32")
    dy = rng.normal(0, 1, (6, 3)).astype("float32")
    wrapper = wrap(keras.layers.Dense(3), power_iterations=2)
    wrapper.build(x.shape)
    variables = wrapper.trainable_variables
    assert [one.name for one in variables] == ["kernel", "bias"]
    state = [ops.convert_to_tensor(one) for one in wrapper.non_trainable_variables]

    def train(x, *trained):
        return wrapper.stateless_call(list(trained), state, x, training=True)[0]

    def infer(x, *trained):
        return wrapper.stateless_call(list(trained), state, x, training=False)[0]

    arguments = [x, *(ops.convert_to_numpy(one) for one in variables)]
    w = numpy(wrapper.w)
    u, v, sigma = iterate(w, numpy(wrapper.sn_u), 2)
    y, (dx, dw, db) = value_and_gradients(train, arguments, dy)
    normal = w / sigma
    dk = x.T.astype("float64") @ dy
    assert_close(y, x @ normal)
    assert_close(dx, dy @ normal.T)
    # Equation 12: the part of the gradient along the kernel is taken from v u.
    assert_close(dw, (dk - np.sum(dk * normal) * v.T @ u) / sigma)
    assert_close(db, dy.sum(0))

    # In inference sigma is a constant, one before training.
    y, (_, dw, _) = value_and_gradients(infer, arguments, dy)
    assert_close(y, x @ w)
    assert_close(dw, dk)


def test_fit_keeps_the_vector_and_sigma_and_inference_uses_them(rng):
    x = rng.normal(0.5, 2, (8, 5)).astype("float32")
    y = rng.normal(0, 1, (8, 3)).astype("float32")
    wrapper = wrap(keras.layers.Dense(3))
    model = keras.Sequential([keras.Input((5,)), wrapper])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    for _ in range(3):
        w, bias = (numpy(one) for one in (wrapper.w, wrapper.layer.bias))
        u, v, sigma = iterate(w, numpy(wrapper.sn_u))
        model.fit(x, y, batch_size=8, verbose=0)
        assert_close(wrapper.sn_u, u)
        assert_close(wrapper.sigma, np.array(sigma))
        error = 2 / y.size * (x @ w / sigma + bias - y)
        dk = x.T @ error
        dw = (dk - np.sum(dk * w / sigma) * v.T @ u) / sigma
        assert_close(wrapper.w, w - 0.1 * dw)
        assert_close(wrapper.layer.bias, bias - 0.1 * error.sum(0))
        before = wrapper.get_weights()
        wanted = x @ numpy(wrapper.w) / sigma + numpy(wrapper.layer.bias)
        assert_close(model.predict(x, verbose=0), wanted)
        model.evaluate(x, y, verbose=0)
        for old, new in zip(before, wrapper.get_weights(), strict=True):
            np.testing.assert_array_equal(old, new)


def test_the_iteration_finds_the_largest_singular_value(rng):
    wrapper = wrap(keras.layers.Conv2D(4, 3), power_iterations=50)
    wrapper.build((None, 6, 6, 2))
    wrapper(rng.normal(0, 1, (2, 6, 6, 2)).astype("float32"), training=True)
    w = numpy(wrapper.w).reshape(-1, 4)
    assert_close(wrapper.sigma, np.linalg.norm(w, 2))
    wrapper.w.assign(1e8 * numpy(wrapper.w))
    wrapper(np.zeros((2, 6, 6, 2), "float32"), training=True)
    np.testing.assert_allclose(numpy(wrapper.sigma), 1e8 * np.linalg.norm(w, 2), rtol=1e-5)


def test_a_kernel_of_zeros_stays_and_recovers(rng):
    x = rng.normal(0, 1, (8, 5)).astype("float32")
    wrapper = wrap(keras.layers.Dense(3, kernel_initializer="zeros"))
    model = keras.Sequential([keras.Input((5,)), wrapper])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    start = wrapper.sn_u.numpy().copy()
    model(x, training=True)
    np.testing.assert_array_equal(wrapper.sn_u.numpy(), start)
    assert float(wrapper.sigma.numpy()) == 1
    y = x @ rng.normal(0, 1, (5, 3))
    loss = model.fit(x, y, epochs=3, verbose=0).history["loss"]
    assert np.all(np.isfinite(loss))
    assert loss[-1] < loss[0]
    assert float(wrapper.sigma.numpy()) != 1


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (keras.layers.DepthwiseConv2D(2, depth_multiplier=2), np.ones((2, 4, 4, 3), "float32")),
        (keras.layers.Conv3DTranspose(2, 2), np.ones((2, 2, 2, 2, 3), "float32")),
        (keras.layers.LSTM(2), np.ones((2, 4, 3), "float32")),
    ],
    ids=["depthwise", "transposed", "recurrent"],
)
def test_other_layers(layer, x, rng):
    wrapper = wrap(layer)
    wrapper.build(x.shape)
    w = numpy(wrapper.w)
    assert wrapper.sn_u.shape == (1, w.shape[-1])
    assert wrapper.w is (layer.cell.recurrent_kernel if wrapper.is_rnn else layer.kernel)
    u, _, sigma = iterate(w, numpy(wrapper.sn_u))
    y = numpy(wrapper(x, training=True))
    assert_close(wrapper.sn_u, u)
    plain = type(layer).from_config(layer.get_config())
    plain.build(x.shape)
    plain.set_weights(
        [numpy(one) / (sigma if one is wrapper.w else 1) for one in layer.weights],
    )
    assert_close(y, numpy(plain(x)))


def test_weights_and_their_order():
    wrapper = wrap(keras.layers.Conv2D(4, 3))
    wrapper.build((None, 8, 8, 2))
    assert [(one.name, tuple(one.shape)) for one in wrapper.weights] == [
        ("sn_u", (1, 4)),
        ("sigma", ()),
        ("kernel", (3, 3, 2, 4)),
        ("bias", (4,)),
    ]
    assert [one.name for one in wrapper.trainable_weights] == ["kernel", "bias"]


def test_power_iterations_are_checked():
    with pytest.raises(ValueError, match=r"power_iterations=0 must be 1 or more"):
        wrap(keras.layers.Dense(3), power_iterations=0)
    with pytest.raises(TypeError, match=r"power_iterations=1\.5 must be an integer"):
        wrap(keras.layers.Dense(3), power_iterations=1.5)
