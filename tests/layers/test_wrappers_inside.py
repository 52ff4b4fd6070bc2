"""Wrapped layers inside others: rematerialization, recurrent cells, Bidirectional, replicas."""

import concurrent.futures

import keras
import numpy as np
import pytest
from keras import ops
from kinds import assert_close

import truenorm
from processes import run_python

BACKEND = keras.backend.backend()
WRAPPERS = {
    "weight": truenorm.WeightNormalization,
    "spectral": truenorm.SpectralNormalization,
}
both = pytest.mark.parametrize("kind", WRAPPERS)
compiled = pytest.mark.skipif(BACKEND != "jax", reason="only JAX traces loops by themselves")


def numpy(value):
    return ops.convert_to_numpy(value).astype("float64")


def all_weights(model):
    return np.concatenate([numpy(one).ravel() for one in model.weights])


def wrapped(kind, layer, **options):
    if kind == "weight":
        options.setdefault("data_init", False)
    return WRAPPERS[kind](layer, **options)


class Cell(keras.layers.Layer):
    """A recurrent cell whose projection is wrapped."""

    state_size = output_size = 3

    def __init__(self, project):
        super().__init__()
        self.project = project

    def build(self, shape):
        if not self.project.built:
            self.project.build((shape[0], shape[-1] + 3))

    def call(self, x, states, training=None):
        joined = ops.concatenate([x, states[0]], -1)
        h = ops.tanh(self.project(joined, training=training))
        return h, [h]


class Repeated(keras.layers.Layer):
    """keras.remat around a layer."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def build(self, shape):
        self.layer.build(shape)

    def compute_output_shape(self, shape):
        return self.layer.compute_output_shape(shape)

    def call(self, x, training=None):
        return keras.remat(lambda x: self.layer(x, training=training))(x)


def trained(layer, x, **options):
    """A model with the layer, after two steps."""
    model = keras.Sequential([keras.Input(x.shape[1:]), layer, keras.layers.Dense(1, **options)])
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
    model.fit(x, x[:, :1].reshape(len(x), -1)[:, :1], batch_size=4, shuffle=False, verbose=0)
    return model


@both
@pytest.mark.parametrize("names", [None, ["inner"]], ids=["full", "by name"])
def test_rematerialization_changes_no_number(kind, names, rng):
    x = rng.normal(1, 2, (8, 4)).astype("float32")
    results = []
    for mode in (None, "list_of_layers" if names else "full"):
        keras.utils.set_random_seed(0)
        with keras.RematScope(mode=mode, layer_names=names):
            layer = WRAPPERS[kind](keras.layers.Dense(3, activation="tanh", name="inner"))
        results.append(all_weights(trained(layer, x)))
    assert_close(results[1], results[0])


@pytest.mark.skipif(BACKEND == "jax", reason="tested below")
def test_remat_around_weight_normalization(rng):
    x = rng.normal(1, 2, (8, 4)).astype("float32")
    results = []
    for around in (lambda layer: layer, Repeated):
        keras.utils.set_random_seed(0)
        wrapper = truenorm.WeightNormalization(keras.layers.Dense(3))
        results.append(all_weights(trained(around(wrapper), x)))
        assert ops.convert_to_numpy(wrapper.initialized)
    assert_close(results[1], results[0])


@pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow does not tell")
def test_remat_around_spectral_normalization_is_refused(rng):
    x = rng.normal(1, 2, (8, 4)).astype("float32")
    layer = Repeated(truenorm.SpectralNormalization(keras.layers.Dense(3), name="mine"))
    with pytest.raises(RuntimeError, match=r"'mine' keeps the vector.*alone inside keras.RematSc"):
        trained(layer, x)


def test_a_cell_without_data(rng):
    x = rng.normal(0, 1, (8, 5, 2)).astype("float32")
    results = []
    for unroll in (False, True):
        keras.utils.set_random_seed(0)
        wrapper = wrapped("weight", keras.layers.Dense(3))
        model = trained(keras.layers.RNN(Cell(wrapper), unroll=unroll), x)
        y = model.predict(x, verbose=0)
        # A call outside of the loop keeps what was learned inside.
        wrapper(np.ones((2, 5), "float32"))
        assert_close(model.predict(x, verbose=0), y.astype("float64"))
        assert ops.convert_to_numpy(wrapper.initialized)
        results.append(all_weights(model))
    assert_close(results[1], results[0])


def test_a_cell_that_was_called_before(rng):
    x = rng.normal(0, 1, (8, 5, 2)).astype("float32")
    wrapper = wrapped("weight", keras.layers.Dense(3), data_init=True)
    wrapper(rng.normal(0, 1, (8, 5)).astype("float32"))
    g = numpy(wrapper.initial_g)
    trained(keras.layers.RNN(Cell(wrapper)), x)
    np.testing.assert_array_equal(numpy(wrapper.initial_g), g)
    assert np.all(numpy(wrapper.g) != 0)


@compiled
def test_nothing_is_kept_inside_a_loop_of_jax(rng):
    import jax

    x = rng.normal(0, 1, (8, 4)).astype("float32")
    wrapper = wrapped("weight", keras.layers.Dense(3), data_init=True, name="mine")
    wrapper.build(x.shape)
    for function in (jax.jit(wrapper), jax.vmap(wrapper), keras.remat(wrapper)):
        with pytest.warns(UserWarning, match="'mine' is not initialized from data"):
            function(x[:, None])
        assert not ops.convert_to_numpy(wrapper.initialized)
    wrapper(x)
    assert_close(jax.jit(wrapper)(x), numpy(wrapper(x)))
    spectral = wrapped("spectral", keras.layers.Dense(3))
    spectral.build(x.shape)
    with pytest.raises(RuntimeError, match="a scan, a while_loop or vmap"):
        jax.lax.map(lambda x: spectral(x, training=True), x[:, None])


@compiled
def test_a_cell_with_data_warns_and_what_it_learns_is_kept(rng):
    x = rng.normal(0, 1, (8, 5, 2)).astype("float32")
    wrapper = wrapped("weight", keras.layers.Dense(3), data_init=True)
    with pytest.warns(UserWarning, match="nothing can be kept. It trains from g = 1"):
        model = trained(keras.layers.RNN(Cell(wrapper)), x)
    wrapper.was_initialized = True  # no second warning
    y = model.predict(x, verbose=0)
    wrapper(rng.normal(0, 1, (8, 5)).astype("float32"))
    assert ops.convert_to_numpy(wrapper.initialized)
    assert_close(model.predict(x, verbose=0), y.astype("float64"))


@pytest.mark.parametrize("data_init", [True, False])
def test_nothing_is_learned_from_no_rows(data_init, rng):
    x = rng.normal(1, 2, (8, 4)).astype("float32")
    one, other = (
        truenorm.WeightNormalization(keras.layers.Dense(3), data_init=data_init) for _ in range(2)
    )
    one.build((None, 4)), other.build((None, 4))
    other.set_weights(one.get_weights())
    assert one(x[:0], training=True).shape == (0, 3)
    assert bool(ops.convert_to_numpy(one.initialized)) is not data_init
    assert_close(one(x), numpy(other(x)))
    for mine, wanted in zip(one.weights, other.weights, strict=True):
        np.testing.assert_array_equal(numpy(mine), numpy(wanted))


@pytest.mark.skipif(BACKEND != "tensorflow", reason="its batches may have an unknown size")
def test_no_rows_in_a_function_of_tensorflow(rng):
    import tensorflow as tf

    x = rng.normal(1, 2, (8, 4)).astype("float32")
    one, other = (truenorm.WeightNormalization(keras.layers.Dense(3)) for _ in range(2))
    one.build((None, 4)), other.build((None, 4))
    other.set_weights(one.get_weights())
    function = tf.function(one, input_signature=[tf.TensorSpec((None, 4))])
    function(x[:0])
    assert not one.initialized.numpy()
    assert_close(function(x), numpy(other(x)))
    assert one.initialized.numpy()


@both
@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_bidirectional(kind, name, rng, tmp_path):
    x = rng.normal(0, 1, (2, 4, 3)).astype("float32")
    x[0, 3] = 0
    layer = getattr(keras.layers, name)(3, return_sequences=True)
    both_ways = keras.layers.Bidirectional(wrapped(kind, layer))
    model = keras.Sequential([keras.Input((4, 3)), keras.layers.Masking(), both_ways])
    model.compile("sgd", "mse", jit_compile=False)
    model.fit(x, np.zeros((2, 4, 6)), verbose=0)
    forward, backward = both_ways.forward_layer, both_ways.backward_layer
    assert type(forward) is type(backward) is WRAPPERS[kind]
    assert (forward.go_backwards, backward.go_backwards) == (False, True)
    assert forward.zero_output_for_mask
    mask = ops.convert_to_tensor(np.any(x != 0, -1))
    wanted = [numpy(forward(x, mask=mask)), numpy(backward(x, mask=mask))[:, ::-1]]
    y = model.predict(x, verbose=0)
    assert_close(y, np.concatenate(wanted, -1))
    model.save(tmp_path / "model.keras")
    assert_close(keras.models.load_model(tmp_path / "model.keras").predict(x, verbose=0), y)


def test_initial_states_reach_the_layer(rng):
    x = rng.normal(0, 1, (2, 4, 3)).astype("float32")
    state = [rng.normal(0, 1, (2, 3)).astype("float32") for _ in range(4)]
    layer = keras.layers.LSTM(3, stateful=True)
    both_ways = keras.layers.Bidirectional(wrapped("weight", layer), merge_mode="sum")
    y = numpy(both_ways(x, initial_state=state))
    assert len(both_ways.states) == 4
    assert all(numpy(one).any() for one in both_ways.states)
    first = both_ways.forward_layer.layer(x, initial_state=state[:2])
    second = both_ways.backward_layer.layer(x, initial_state=state[2:])
    assert_close(y, numpy(first) + numpy(second))
    both_ways.reset_state()
    assert not any(numpy(one).any() for one in both_ways.states)


MIRRORED = """
import keras, numpy as np, tensorflow as tf
import truenorm
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
x = np.random.default_rng(0).normal(5, 3, (16, 4)).astype("float32")
y = x[:, :1]
def trained(strategy):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        weight = truenorm.WeightNormalization(keras.layers.Dense(3))
        spectral = truenorm.SpectralNormalization(keras.layers.Dense(3))
        model = keras.Sequential([keras.Input((4,)), weight, spectral, keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.01), "mse")
    model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    return model
one = trained(tf.distribute.get_strategy())
two = trained(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
assert two.layers[0].initialized.numpy()
for alone, mirrored in zip(one.weights, two.weights):
    for copy in mirrored.value.values:
        np.testing.assert_allclose(copy.numpy(), alone.numpy(), rtol=1e-4, atol=1e-5)
"""


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a strategy of TensorFlow")
def test_replicas_of_tensorflow_learn_what_one_does():
    run_python("tensorflow", "-c", MIRRORED)


RANK = """
import sys
import keras, numpy as np, torch
import truenorm
from torch import distributed
rank, path = int(sys.argv[1]), sys.argv[2]
keras.utils.set_random_seed(0)
x = np.random.default_rng(0).normal(5, 3, (9, 4)).astype("float32")
alone, shared = (truenorm.WeightNormalization(keras.layers.Dense(3)) for _ in range(2))
alone.build(x.shape), shared.build(x.shape)
shared.set_weights(alone.get_weights())
wanted = alone(x)
distributed.init_process_group("gloo", init_method="file://" + path, rank=rank, world_size=2)
model = torch.nn.parallel.DistributedDataParallel(shared)
mine = slice(0, 6) if rank == 0 else slice(6, 9)
y = model(torch.from_numpy(x[mine]))
torch.testing.assert_close(y, wanted[mine], rtol=1e-4, atol=1e-4)
for one, other in zip(shared.weights, alone.weights):
    torch.testing.assert_close(one.value, other.value, rtol=1e-4, atol=1e-4)
y.sum().backward()
spectral = truenorm.SpectralNormalization(keras.layers.Dense(3))
spectral.build(x.shape)
model = torch.nn.parallel.DistributedDataParallel(spectral)
model(torch.from_numpy(x[mine]), training=True)
kept = torch.cat([spectral.sn_u.value.ravel(), spectral.sigma.value.ravel()])
both = [torch.empty_like(kept) for _ in range(2)]
distributed.all_gather(both, kept)
assert torch.equal(*both)
distributed.destroy_process_group()
"""


@pytest.mark.skipif(BACKEND != "torch", reason="processes of PyTorch")
def test_processes_of_torch_learn_what_one_does(tmp_path):
    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(
            pool.map(
                lambda rank: run_python("torch", "-c", RANK, str(rank), tmp_path / "store"),
                range(2),
            )
        )
