"""What weight and spectral normalization share: the call of a layer with a computed kernel."""

import json
import threading

import keras
import numpy as np
import pytest
from addons_cases import DATA
from keras import ops
from kinds import assert_close

import truenorm
from processes import TRAINING_BACKENDS, installed, run_python

BACKEND = keras.backend.backend()
WRAPPERS = {
    "weight": truenorm.WeightNormalization,
    "spectral": truenorm.SpectralNormalization,
}
ADDONS = {f"Addons>{one.__name__}": one for one in WRAPPERS.values()}
both = pytest.mark.parametrize("kind", WRAPPERS)


def wrap(kind, layer, **options):
    if kind == "weight":
        options.setdefault("data_init", False)
    return WRAPPERS[kind](layer, **options)


def numpy(value):
    return ops.convert_to_numpy(value).astype("float64")


@both
def test_masks_reach_the_layer_and_go_on(kind, rng):
    x = rng.integers(1, 7, (3, 4)).astype("int32")
    x[0, 2:] = 0
    inputs = keras.Input((4,), dtype="int32")
    embedded = wrap(kind, keras.layers.Embedding(7, 3, mask_zero=True))(inputs)
    recurrent = wrap(kind, keras.layers.SimpleRNN(3))
    model = keras.Model(inputs, recurrent(embedded))
    y = model.predict(x, verbose=0)
    model = keras.Model(inputs, embedded)
    vectors = model(x)
    assert_close(
        recurrent(vectors[:1, :2]), y[:1].astype("float64")
    )  # what is masked changes nothing
    mask = ops.convert_to_tensor(x != 0)
    assert_close(recurrent(ops.convert_to_tensor(vectors), mask=mask), y.astype("float64"))
    np.testing.assert_array_equal(
        ops.convert_to_numpy(model.layers[-1].compute_mask(ops.convert_to_tensor(x))), x != 0
    )


@both
def test_losses_are_those_of_the_layer(kind, rng):
    x = rng.normal(0, 1, (4, 5)).astype("float32")
    options = {"kernel_regularizer": "l2", "bias_regularizer": "l1", "activity_regularizer": "l2"}
    plain = keras.layers.Dense(3, bias_initializer="ones", **options)
    wrapper = wrap(kind, keras.layers.Dense(3, bias_initializer="ones", **options))
    for one in (plain, wrapper):
        one.build(x.shape)
    plain.set_weights(wrapper.layer.get_weights())
    plain(x), wrapper(x)
    ours, theirs = (
        sorted(float(ops.convert_to_numpy(a)) for a in b.losses) for b in (wrapper, plain)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert len(ours) == 3
    wrapper(x)
    model = keras.Sequential([keras.Input((5,)), wrapper])
    model.compile("sgd", "mse", jit_compile=False)
    loss = model.evaluate(x, y := model.predict(x, verbose=0), verbose=0)
    assert y.shape == (4, 3)
    np.testing.assert_allclose(loss, sum(theirs), rtol=1e-5)


@both
def test_what_the_layer_assigns_is_kept(kind, rng):
    x = rng.normal(0, 1, (2, 3, 4)).astype("float32")
    layer = keras.layers.SimpleRNN(3, stateful=True, dropout=0.5, seed=1)
    wrapper = wrap(kind, layer)
    wrapper(x, training=True)
    state, seed = numpy(layer.states[0]), numpy(layer.cell.seed_generator.state)
    assert np.all(state != 0)
    assert seed[1] > 0
    y = numpy(wrapper(x, training=True))
    np.testing.assert_array_equal(numpy(layer.states[0]), y)
    assert numpy(layer.cell.seed_generator.state)[1] > seed[1]
    # In a compiled step, too; there Keras itself keeps no state of an RNN on JAX.
    model = keras.Sequential([keras.Input((3, 4), batch_size=2), wrapper])
    model.compile("sgd", "mse")
    seed = numpy(layer.cell.seed_generator.state)
    model.fit(x, np.zeros((2, 3)), batch_size=2, verbose=0)
    assert numpy(layer.cell.seed_generator.state)[1] > seed[1]


@both
def test_stateless_call_changes_nothing(kind, rng):
    x = rng.normal(0, 1, (4, 5)).astype("float32")
    wrapper = wrap(kind, keras.layers.Dense(3))
    wrapper.build(x.shape)
    before = wrapper.get_weights()
    trained, others = wrapper.trainable_variables, wrapper.non_trainable_variables
    values = [ops.convert_to_tensor(one) for one in others]
    y, state = wrapper.stateless_call(
        [ops.convert_to_tensor(one) for one in trained], values, x, training=True
    )
    for old, new in zip(before, wrapper.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert_close(wrapper(x, training=True), numpy(y))
    for variable, value in zip(others, state, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(variable), ops.convert_to_numpy(value))


@both
@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16", "float16", "bfloat16"])
def test_the_kernel_is_computed_in_float32(kind, dtype, rng):
    half = dtype.removeprefix("mixed_")
    layer = keras.layers.Dense(3, use_bias=False, dtype=dtype)
    wrapper = wrap(kind, layer)
    assert wrapper.dtype_policy.name == dtype
    assert wrapper.compute_output_spec(keras.KerasTensor((9, 20), dtype=half)).dtype == half
    wrapper.build((20, 20))
    # Squares that float16 does not hold.
    layer.kernel.assign(rng.uniform(200, 900, (20, 3)))
    x = ops.eye(20, dtype=half)
    assert keras.backend.standardize_dtype(wrapper(x, training=True).dtype) == half
    if kind == "weight":
        wrapper.g.assign(rng.uniform(-1, 1, 3))

    def exact(variable):
        return numpy(ops.cast(variable, "float32"))

    w = exact(layer.kernel)
    if kind == "spectral":
        assert wrapper.sigma.dtype == wrapper.sn_u.dtype == layer.variable_dtype
        wanted = w / exact(wrapper.sigma)
    else:
        assert wrapper.g.dtype == layer.variable_dtype
        wanted = w / np.linalg.norm(w, axis=0) * (exact(wrapper.g) + exact(wrapper.initial_g))
    y = numpy(ops.cast(wrapper(x), "float32"))
    # The rows of the kernel: rounded once.
    unit = {"float16": 2.0**-10, "bfloat16": 2.0**-7}[half]
    room = 0.5 * unit * 2.0 ** np.floor(np.log2(np.abs(wanted)))
    assert np.all(np.abs(y - wanted) <= room + 2e-6 * np.abs(wanted))


@both
def test_a_policy_of_the_wrapper_s_own(kind, rng):
    x = rng.normal(0, 1, (4, 5)).astype("float32")
    wrapper = wrap(kind, keras.layers.Dense(3), dtype="mixed_float16")
    assert wrapper.layer.compute_dtype == "float32"
    assert wrapper(keras.Input((5,))).dtype == "float16"
    assert keras.backend.standardize_dtype(wrapper(x).dtype) == "float16"


@both
@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
def test_a_mixed_precision_model_trains(kind, dtype, rng):
    x = rng.normal(0, 1, (16, 6)).astype("float32")
    wrapper = WRAPPERS[kind](keras.layers.Dense(4, activation="tanh", dtype=dtype))
    outputs = keras.layers.Dense(1, dtype="float32")
    model = keras.Sequential([keras.Input((6,)), wrapper, outputs])
    model.compile(keras.optimizers.Adam(0.02), "mse")
    before = wrapper.get_weights()
    loss = model.fit(x, x[:, :1] * x[:, 1:2], epochs=8, verbose=0).history["loss"]
    assert loss[-1] < loss[0]
    for variable, old in zip(wrapper.weights, before, strict=True):
        assert np.any(variable.numpy() != old)
        assert variable.name == "initialized" or variable.dtype == "float32"


@pytest.mark.skipif(BACKEND == "jax", reason="JAX computes in 32 bits here")
@both
def test_float64(kind, rng):
    wrapper = wrap(kind, keras.layers.Embedding(5, 3, dtype="float64"))
    wrapper.build((5,))
    w = rng.normal(0, 1, (5, 3))
    wrapper.layer.embeddings.assign(w)
    y = numpy(wrapper(np.arange(5), training=True))
    assert {one.dtype for one in wrapper.weights} <= {"float64", "bool"}
    if kind == "spectral":
        y *= numpy(wrapper.sigma)
    np.testing.assert_allclose(y, w, rtol=1e-14)


@both
@pytest.mark.parametrize("size", [1e-30, 1e-8, 1e18])
def test_kernels_of_any_size(kind, size, rng):
    x = rng.normal(0, 1, (8, 5)).astype("float32")
    wrapper = wrap(kind, keras.layers.Dense(3))
    wrapper.build(x.shape)
    other = wrap(kind, keras.layers.Dense(3))
    other.build(x.shape)
    other.set_weights(wrapper.get_weights())
    if kind == "weight":
        wrapper(x)  # g is that of a kernel of ordinary size
        other(x)
    other.layer.kernel.assign(size * numpy(wrapper.layer.kernel))
    assert_close(other(x, training=True), numpy(wrapper(x, training=True)))


@both
def test_a_frozen_wrapper_trains_nothing(kind, rng):
    x = rng.normal(0, 1, (8, 5)).astype("float32")
    wrapper = WRAPPERS[kind](keras.layers.Dense(3), trainable=False)
    model = keras.Sequential([keras.Input((5,)), wrapper, keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    assert wrapper.trainable_weights == []
    before = {one.path: one.numpy() for one in wrapper.weights}
    model.fit(x, np.zeros((8, 2)), verbose=0)
    for one in wrapper.weights:
        # As in TensorFlow Addons, the first batch still counts, and the iteration goes on.
        kept = one.name in ("g", "kernel", "bias")
        assert kept == np.array_equal(one.numpy(), before[one.path])


@both
def test_one_layer_twice_in_a_model_and_models_in_models(kind, rng):
    x = rng.normal(0, 1, (8, 4)).astype("float32")
    wrapper = WRAPPERS[kind](keras.layers.Dense(4))
    inner = keras.Sequential([keras.Input((4,)), wrapper])
    inputs = keras.Input((4,))
    model = keras.Model(inputs, inner(inner(inputs)))
    model.compile("sgd", "mse")
    model.fit(x, x, verbose=0)
    kernel = numpy(wrapper.layer.kernel)
    if kind == "weight":
        kernel = kernel / np.linalg.norm(kernel, axis=0) * numpy(wrapper.effective_g)
        bias = numpy(wrapper.effective_bias)
    else:
        kernel, bias = kernel / numpy(wrapper.sigma), numpy(wrapper.layer.bias)
    wanted = (x @ kernel + bias) @ kernel + bias
    assert_close(model.predict(x, verbose=0), wanted)


@both
def test_time_distributed(kind, rng):
    x = rng.normal(0, 1, (8, 3, 4)).astype("float32")
    wrapper = wrap(kind, keras.layers.Dense(2))
    model = keras.Sequential([keras.Input((3, 4)), keras.layers.TimeDistributed(wrapper)])
    plain = numpy(wrapper.layer(x))
    assert_close(model.predict(x, verbose=0), plain)
    model.compile("sgd", "mse")
    model.fit(x, np.zeros((8, 3, 2)), verbose=0)
    assert np.all(np.isfinite(model.predict(x, verbose=0)))


@both
def test_clone_and_set_weights(kind, rng):
    x = rng.normal(0, 1, (8, 4)).astype("float32")
    model = keras.Sequential([keras.Input((4,)), WRAPPERS[kind](keras.layers.Dense(3))])
    model.compile("sgd", "mse")
    model.fit(x, np.zeros((8, 3)), verbose=0)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    assert clone.layers[0].layer is not model.layers[0].layer
    np.testing.assert_array_equal(clone.predict(x, verbose=0), model.predict(x, verbose=0))


@both
@pytest.mark.filterwarnings("ignore")  # the exporters'
def test_export(kind, rng, tmp_path):
    x = ops.convert_to_tensor(rng.normal(0, 1, (8, 4)).astype("float32"))
    model = keras.Sequential([keras.Input((4,)), WRAPPERS[kind](keras.layers.Dense(3))])
    wanted = numpy(model(x, training=True))
    wanted = numpy(model(x))
    match BACKEND:
        case "tensorflow":
            import tensorflow as tf

            model.export(tmp_path / "model", verbose=False)
            loaded = tf.saved_model.load(tmp_path / "model")
            y = loaded.serve(x)
        case "jax":
            import jax

            y = jax.export.export(jax.jit(model))(x).call(x)
        case "torch":
            import torch

            with torch.no_grad():
                y = torch.export.export(model, (x,), strict=False).module()(x)
    assert_close(y, wanted)


@both
def test_two_threads_do_not_disturb_each_other(kind, rng):
    wrapper = wrap(kind, keras.layers.Dense(3))
    batches = [rng.normal(0, 1, (2, 4)).astype("float32") for _ in range(2)]
    wrapper(batches[0], training=True)
    wanted = [numpy(wrapper(one)) for one in batches]
    differences = []

    def work(x, y):
        differences.extend(np.max(np.abs(numpy(wrapper(x)) - y)) for _ in range(50))

    threads = [
        threading.Thread(target=work, args=pair) for pair in zip(batches, wanted, strict=True)
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(differences) == 100
    assert max(differences) < 1e-6


@both
def test_the_config_is_the_same_before_and_after_build(kind):
    options = {"data_init": False} if kind == "weight" else {"power_iterations": 3}
    wrapper = WRAPPERS[kind](keras.layers.Conv1D(3, 2, name="inner"), name="outer", **options)

    def config():
        found = wrapper.get_config()
        found["layer"].pop("build_config", None)  # Keras adds it to every layer that is built
        return found

    before = config()
    wrapper.build((None, 5, 2))
    assert config() == before
    again = WRAPPERS[kind].from_config(wrapper.get_config())
    assert again.name == "outer"
    assert again.layer.name == "inner"
    assert again.layer.get_config() == wrapper.layer.get_config()
    assert all(getattr(again, key) == value for key, value in options.items())
    name = f"truenorm>{WRAPPERS[kind].__name__}"
    assert keras.saving.get_registered_object(name) is WRAPPERS[kind]
    assert before.keys() == {"name", "trainable", "dtype", "layer", *(options or {})}


@both
@pytest.mark.parametrize("style", ["2.12", "2.0"])
def test_configs_of_addons(kind, style):
    dense = {
        "name": "dense_33",
        "trainable": True,
        "dtype": "float32",
        "units": 5,
        "activation": "relu",
        "use_bias": True,
        "kernel_initializer": {
            "module": "keras.initializers",
            "class_name": "GlorotUniform",
            "config": {"seed": None},
            "registered_name": None,
        },
        "bias_initializer": {"class_name": "Zeros", "config": {}},
        "kernel_regularizer": None,
        "bias_regularizer": None,
        "activity_regularizer": None,
        "kernel_constraint": None,
        "bias_constraint": None,
    }
    nested = {"class_name": "Dense", "config": dense}
    if style == "2.12":
        nested |= {"module": "keras.layers", "registered_name": None}
    options = {"data_init": False} if kind == "weight" else {"power_iterations": 2}
    config = {"name": "old", "trainable": True, "dtype": "float32", "layer": nested, **options}
    stored = json.dumps(config)
    wrapper = WRAPPERS[kind].from_config(config)
    assert json.dumps(config) == stored
    assert (wrapper.name, wrapper.layer.name, wrapper.layer.units) == ("old", "dense_33", 5)
    assert all(getattr(wrapper, key) == value for key, value in options.items())
    assert type(wrapper.layer) is keras.layers.Dense


@pytest.mark.parametrize("suffix", ["h5", "keras"])
def test_models_that_addons_saved(suffix, rng):
    path = DATA / f"addons_wrappers.{suffix}"
    model = keras.models.load_model(path, custom_objects=ADDONS, compile=False)
    with np.load(DATA / "addons_wrappers.npz") as arrays:
        x, y = arrays["x"], arrays["y"]
    assert_close(model.predict(x, verbose=0), y.astype("float64"))
    names = [one.name for one in model.layers[0].weights]
    assert names == ["g", "initialized", "initial_g", "initial_bias", "kernel", "bias"]
    assert [one.name for one in model.layers[1].weights] == ["sn_u", "sigma", "kernel"]
    if suffix == "keras":
        model.compile("sgd", "mse")
        model.fit(x, y, verbose=0)


def test_weights_of_addons_in_a_model_of_truenorm(tmp_path):
    with np.load(DATA / "addons_wrappers.npz") as arrays:
        x, y = arrays["x"], arrays["y"]
    loaded = keras.models.load_model(
        DATA / "addons_wrappers.keras", custom_objects=ADDONS, compile=False
    )
    model = keras.models.clone_model(loaded)
    for one in wrappers_in(model):
        one.expect_addons_weights()
    model.load_weights(DATA / "addons_wrappers.h5")
    assert_close(model.predict(x, verbose=0), y.astype("float64"))


def wrappers_in(model):
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from wrappers_in(layer)
        layer = layer.layer if isinstance(layer, keras.layers.TimeDistributed) else layer
        if isinstance(layer, tuple(WRAPPERS.values())):
            yield layer


LOAD = """
import sys
import keras, numpy as np
import truenorm
path, x, result = sys.argv[1:]
model = keras.models.load_model(path, compile=False)
model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
y = model.predict(np.load(x), verbose=0)
model.fit(np.load(x), np.zeros_like(y), batch_size=8, verbose=0)
np.savez(result, y=y, after=model.predict(np.load(x), verbose=0))
"""


def test_another_backend_goes_on_after_the_first_step(rng, tmp_path):
    # Each backend's file is read by the next.
    backend = TRAINING_BACKENDS[TRAINING_BACKENDS.index(BACKEND) - 1]
    if not installed(backend):
        pytest.skip(f"{backend} is not installed")
    x = rng.normal(1, 2, (8, 4)).astype("float32")
    model = keras.Sequential(
        [
            keras.Input((4,)),
            truenorm.WeightNormalization(keras.layers.Dense(5, activation="tanh")),
            truenorm.SpectralNormalization(keras.layers.Dense(3)),
        ]
    )
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
    model.fit(x, np.zeros((8, 3)), batch_size=8, verbose=0)
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "x.npy", x)
    run_python(backend, "-c", LOAD, *(tmp_path / one for one in ("model.keras", "x.npy", "r.npz")))
    with np.load(tmp_path / "r.npz") as arrays:
        assert_close(arrays["y"], model.predict(x, verbose=0).astype("float64"))
        model.fit(x, np.zeros((8, 3)), batch_size=8, verbose=0)
        assert_close(arrays["after"], model.predict(x, verbose=0).astype("float64"))


@both
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_saved_before_the_first_call(kind, name, rng, tmp_path):
    x = rng.normal(1, 2, (8, 4)).astype("float32")
    model = keras.Sequential([keras.Input((4,)), WRAPPERS[kind](keras.layers.Dense(3))])
    model.save(tmp_path / name)
    loaded = keras.models.load_model(tmp_path / name)
    for one, other in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert_close(loaded.predict(x, verbose=0), numpy(model(x)))


@both
def test_a_layer_without_a_kernel(kind):
    wrapper = wrap(kind, keras.layers.BatchNormalization())
    with pytest.raises(ValueError, match=r"normalizes a variable named kernel.*BatchNormalization"):
        wrapper.build((None, 4))
    with pytest.raises(ValueError, match=r"StackedRNNCells 'stack.*' has none, or computes it"):
        wrap(
            kind, keras.layers.RNN([keras.layers.SimpleRNNCell(2), keras.layers.SimpleRNNCell(2)])
        ).build((None, 3, 4))
    layer = keras.layers.Dense(3, lora_rank=2)
    with pytest.raises(ValueError, match=r"LoRA and quantization do\). Wrap a layer"):
        wrap(kind, layer).build((None, 4))


@both
def test_what_is_no_layer(kind):
    with pytest.raises(ValueError, match=r"wraps a Keras layer, but layer='Dense' was passed"):
        wrap(kind, "Dense")
