"""Weight normalization: TensorFlow Addons' steps, the formula, the first batch, remove."""

import keras
import numpy as np
import pytest
from addons_cases import cases, split
from keras import ops
from kinds import assert_close

import truenorm
from gradients import value_and_gradients

BACKEND = keras.backend.backend()
CASES = cases("addons_weight_normalization.npz")
# Saved and loaded between the steps; to compile the model twice takes long.
SAVED = ("dense_adam", "conv2d", "dense_without_data", "simple_rnn")

# More kinds of layers, beside those of the cases: how to make each, and its input shape.
LAYERS = {
    "dense": (lambda **o: keras.layers.Dense(3, **o), (8, 5)),
    "einsum": (
        lambda **o: keras.layers.EinsumDense("abc,cd->abd", (4, 3), bias_axes="d", **o),
        (8, 4, 5),
    ),
    "conv2d": (lambda **o: keras.layers.Conv2D(3, 2, **o), (8, 4, 3, 2)),
    "conv2d_transpose": (lambda **o: keras.layers.Conv2DTranspose(3, 2, **o), (8, 2, 3, 4)),
    "depthwise1d": (lambda **o: keras.layers.DepthwiseConv1D(2, **o), (8, 5, 3)),
    "depthwise2d": (
        lambda **o: keras.layers.DepthwiseConv2D(2, depth_multiplier=2, **o),
        (8, 4, 3, 3),
    ),
    "embedding": (lambda: keras.layers.Embedding(7, 3), (8, 4)),
    "gru": (lambda: keras.layers.GRU(3), (8, 4, 2)),
}
WITH_BIAS = [name for name in LAYERS if name not in ("embedding", "gru")]


def wrap(layer, **options):
    return truenorm.WeightNormalization(layer, **options)


def batch(name, rng):
    shape = LAYERS[name][1]
    if name == "embedding":
        return rng.integers(0, 7, shape).astype("int32")
    return rng.normal(0.5, 2, shape).astype("float32")


def numpy(value):
    return ops.convert_to_numpy(value).astype("float64")


@pytest.mark.filterwarnings("ignore:WeightNormalization initializes an RNN")
@pytest.mark.parametrize("name", CASES)
def test_two_steps_of_fit_equal_those_of_addons(name, tmp_path):
    arrays = CASES[name]
    kind, options, shape, data_init, optimizer = arrays["case"]
    wrapper = wrap(getattr(keras.layers, kind)(**options), data_init=data_init)
    model = keras.Sequential([keras.Input(shape), wrapper])
    model.compile(keras.optimizers.deserialize(optimizer), "mse")
    rest = [one for one in wrapper.layer.weights if one is not wrapper.v]
    shapes = [tuple(one.shape) for one in (wrapper.g, wrapper.v, *rest)]
    _, *before = split(arrays["before"], shapes)
    for variable, value in zip((wrapper.v, *rest), before, strict=True):
        variable.assign(value)

    for step in ("first", "second"):
        model.fit(arrays[f"{step}/x"], arrays[f"{step}/target"], batch_size=8, verbose=0)
        if step == "first" and name in SAVED:
            model.save(tmp_path / "model.keras")
            model = keras.models.load_model(tmp_path / "model.keras")
            wrapper = model.layers[0]
        assert ops.convert_to_numpy(wrapper.initialized)
        g, v, *others = split(arrays[f"{step}/weights"], shapes)
        assert_close(wrapper.effective_g, g)
        assert_close(wrapper.v, v)
        if wrapper.bias is not None:
            assert_close(wrapper.effective_bias, others[0])
        else:
            rest = [one for one in wrapper.layer.weights if one is not wrapper.v]
            for variable, value in zip(rest, others, strict=True):
                assert_close(variable, value)
        y = model.predict(arrays[f"{step}/x"], verbose=0)
        assert_close(y, arrays[f"{step}/y"])


def formula(v, g, kept):
    """G * v / |v| in float64, with g over the last `kept` axes."""
    return g * v / np.sqrt(np.sum(v**2, axis=tuple(range(v.ndim - kept))))


@pytest.mark.parametrize("name", LAYERS)
def test_the_kernel_is_g_v_over_its_norm(name, rng):
    make, shape = LAYERS[name]
    x = batch(name, rng)
    wrapper = wrap(make(), data_init=False)
    wrapper.build(shape)
    kept = 2 if name.startswith("depthwise") else 1
    assert wrapper.g.shape == wrapper.v.shape[-kept:]

    # Without data, the first call leaves the layer as it was: g becomes |v|.
    plain = make()
    plain.build(shape)
    plain.set_weights(wrapper.layer.get_weights())
    assert_close(wrapper(x), numpy(plain(x)))
    v = numpy(wrapper.v)
    norm = np.sqrt(np.sum(v**2, axis=tuple(range(v.ndim - kept))))
    assert_close(wrapper.effective_g, norm)

    # From then on g is free.
    wrapper.g.assign(rng.normal(0, 1, wrapper.g.shape))
    wrapper.v.assign(rng.normal(0, 1, wrapper.v.shape))
    g = numpy(wrapper.g) + norm
    values = [
        formula(numpy(one), g, kept) if one is wrapper.v else numpy(one)
        for one in wrapper.layer.weights
    ]
    plain.set_weights(values)
    wanted = numpy(plain(x))
    assert_close(wrapper(x), wanted)
    assert_close(wrapper(x, training=True), wanted)


@pytest.mark.parametrize("name", WITH_BIAS)
def test_the_first_batch_gives_g_and_bias(name, rng):
    make, shape = LAYERS[name]
    x = batch(name, rng)
    wrapper = wrap(make(activation="softplus"))
    wrapper.build(shape)
    bias = rng.normal(0, 1, wrapper.bias.shape).astype("float32")
    wrapper.bias.assign(bias)
    linear = make()
    linear.build(shape)
    linear.set_weights(wrapper.layer.get_weights())
    y = numpy(linear(x))
    axes = tuple(range(y.ndim - 1))
    scale = 1 / np.sqrt(y.var(axes) + 1e-10)
    wrapper(x)
    assert wrapper.layer.activation is keras.activations.softplus
    assert_close(wrapper.effective_bias, -y.mean(axes) * scale)
    assert_close(wrapper.effective_g, np.resize(scale, wrapper.g.shape))
    # Only the first does.
    before = [one.copy() for one in wrapper.get_weights()]
    wrapper(x + 1)
    for old, new in zip(before, wrapper.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.skipif(BACKEND == "tensorflow", reason="its convolutions on a CPU want channels last")
def test_the_first_batch_with_channels_first(rng):
    x = rng.normal(0.5, 2, (8, 2, 5, 4)).astype("float32")
    wrapper = wrap(keras.layers.Conv2D(3, 2, data_format="channels_first"))
    wrapper.build(x.shape)
    y = numpy(wrapper.layer(x))
    wrapper(x)
    assert_close(wrapper.effective_g, 1 / y.std((0, 2, 3)))
    assert_close(wrapper.effective_bias, -y.mean((0, 2, 3)) / y.std((0, 2, 3)))


@pytest.mark.parametrize("mode", ["call", "training", "predict", "evaluate", "train_on_batch"])
def test_whatever_comes_first_initializes(mode, rng):
    x = rng.normal(1e4, 5e3, (8, 5)).astype("float32")  # g is small: it must not be rounded
    wrapper = wrap(keras.layers.Dense(3))
    model = keras.Sequential([keras.Input((5,)), wrapper])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    y = numpy(x) @ numpy(wrapper.v)
    match mode:
        case "call":
            model(x)
        case "training":
            model(x, training=True)
        case "predict":
            model.predict(x, verbose=0)
        case "evaluate":
            model.evaluate(x, np.zeros((8, 3)), verbose=0)
        case "train_on_batch":
            model.train_on_batch(x, np.zeros((8, 3)))
    assert ops.convert_to_numpy(wrapper.initialized)
    np.testing.assert_allclose(numpy(wrapper.effective_g), 1 / y.std(0), rtol=1e-5)
    np.testing.assert_allclose(numpy(wrapper.effective_bias), -y.mean(0) / y.std(0), rtol=1e-4)


def test_a_symbolic_call_does_not_initialize(rng):
    wrapper = wrap(keras.layers.Dense(3, activation="relu"))
    keras.Model(inputs := keras.Input((5,)), wrapper(inputs))
    model = keras.Sequential([wrapper])
    model.compute_output_shape((4, 5))
    assert not ops.convert_to_numpy(wrapper.initialized)
    assert wrapper.layer.activation is keras.activations.relu


def test_gradients_in_v_g_and_bias(rng):
    x = rng.normal(0.5, 2, (8, 5)).astype("float32")
    wrapper = wrap(keras.layers.Dense(3))
    wrapper.build(x.shape)
    wrapper(x)
    dy = rng.normal(0, 1, (8, 3)).astype("float32")
    variables = wrapper.trainable_variables
    assert [one.name for one in variables] == ["g", "kernel", "bias"]
    state = [ops.convert_to_tensor(one) for one in wrapper.non_trainable_variables]

    def function(x, *trained):
        return wrapper.stateless_call(list(trained), state, x)[0]

    arguments = [x, *(ops.convert_to_numpy(one) for one in variables)]
    y, (dx, dg, dv, db) = value_and_gradients(function, arguments, dy)
    v, g = numpy(wrapper.v), numpy(wrapper.effective_g)
    norm = np.sqrt(np.sum(v**2, 0))
    kernel = g * v / norm
    assert_close(y, x @ kernel + numpy(wrapper.effective_bias))
    dk = x.T.astype("float64") @ dy
    along = np.sum(dk * v, 0) / norm
    assert_close(dx, dy @ kernel.T)
    assert_close(dg, along)
    assert_close(dv, g / norm * (dk - along * v / norm))
    assert_close(db, dy.sum(0))


def test_a_kernel_of_zeros_gives_no_nan(rng):
    x = rng.normal(0, 1, (8, 5)).astype("float32")
    for data_init in (True, False):
        wrapper = wrap(keras.layers.Dense(3, kernel_initializer="zeros"), data_init=data_init)
        model = keras.Sequential([keras.Input((5,)), wrapper])
        model.compile(keras.optimizers.SGD(1e-9), "mse")
        model.fit(x, rng.normal(0, 1, (8, 3)), epochs=2, verbose=0)
        for one in wrapper.get_weights():
            assert np.all(np.isfinite(one))
        assert np.all(np.isfinite(model.predict(x, verbose=0)))


@pytest.mark.parametrize("name", ["dense", "conv2d_transpose", "depthwise2d", "embedding", "gru"])
def test_remove_gives_an_ordinary_layer_with_the_same_outputs(name, rng):
    make, _ = LAYERS[name]
    x = batch(name, rng)
    wrapper = wrap(make(), data_init=name in WITH_BIAS)
    wrapper(x)
    wrapper.g.assign(rng.normal(0, 2, wrapper.g.shape))  # of either sign
    wanted = numpy(wrapper(x))
    layer = wrapper.remove()
    assert type(layer) is type(make())
    assert_close(layer(x), wanted)
    assert len(layer.weights) == len(wrapper.weights) - (4 if wrapper.bias is not None else 3)
    assert_close(wrapper(x), wanted)
    again = type(layer).from_config(layer.get_config())
    again.build(x.shape)
    again.set_weights(layer.get_weights())
    assert_close(again(x), wanted)


def test_remove_before_the_first_call(rng):
    x = rng.normal(0, 1, (8, 5)).astype("float32")
    wrapper = wrap(keras.layers.Dense(3), data_init=False)
    with pytest.raises(ValueError, match=r"'weight_norm.*' has no kernel yet: call it, or build"):
        wrapper.remove()
    wrapper.build(x.shape)
    kernel = wrapper.layer.get_weights()[0]
    np.testing.assert_array_equal(wrapper.remove().get_weights()[0], kernel)


def test_an_rnn_and_data_init_warn():
    with pytest.warns(UserWarning, match=r"an RNN from data.*advises against.*data_init=False"):
        wrap(keras.layers.LSTM(2))


def test_weights_and_their_order():
    wrapper = wrap(keras.layers.Conv2D(4, 3))
    wrapper.build((None, 8, 8, 2))
    assert [(one.name, tuple(one.shape)) for one in wrapper.weights] == [
        ("g", (4,)),
        ("initialized", ()),
        ("initial_g", (4,)),
        ("initial_bias", (4,)),
        ("kernel", (3, 3, 2, 4)),
        ("bias", (4,)),
    ]
    assert [one.name for one in wrapper.trainable_weights] == ["g", "kernel", "bias"]
    wrapper = wrap(keras.layers.Conv2D(4, 3), data_init=False)
    wrapper.build((None, 8, 8, 2))
    names = ["g", "initialized", "initial_g", "kernel", "bias"]
    assert [one.name for one in wrapper.weights] == names
