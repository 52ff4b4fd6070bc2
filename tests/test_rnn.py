"""The recurrent cells: inside RNN, its wrappers and models, under dropout, masks and policies."""

import inspect

import keras
import numpy as np
import pytest
from keras import ops

import truenorm
from truenorm.rnn import LayerNormLSTMCell, LayerNormSimpleRNNCell

BACKEND = keras.backend.backend()
CELLS = {"lstm": LayerNormLSTMCell, "simple": LayerNormSimpleRNNCell}
EPSILON = {"lstm": "norm_epsilon", "simple": "layernorm_epsilon"}
every_cell = pytest.mark.parametrize("kind", CELLS)
UNITS, SHAPE = 4, (5, 6, 3)  # N, T, D


def randomize(layer, rng):
    layer.set_weights([rng.uniform(-1, 1, one.shape).astype(one.dtype) for one in layer.weights])


def make(kind, rng, cell=None, **options):
    """A built RNN of a cell with random weights."""
    layer = keras.layers.RNN(CELLS[kind](UNITS, **(cell or {})), return_sequences=True, **options)
    layer.build(SHAPE)
    randomize(layer, rng)
    return layer


def normalize(x, epsilon, gamma, beta=0):
    variance = x.var(-1, keepdims=True)
    return gamma * (x - x.mean(-1, keepdims=True)) / np.sqrt(variance + epsilon) + beta


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def expected(kind, weights, x, mask=None, states=None):
    """The outputs of all steps and the last states, in float64."""
    kernel, recurrent, bias, *norms = [one.astype("float64") for one in weights]
    count = 2 if kind == "lstm" else 1
    states = [np.zeros((len(x), UNITS))] * count if states is None else states
    outputs, output = [], np.zeros((len(x), UNITS))
    for t in range(x.shape[1]):
        step = x[:, t].astype("float64")
        if kind == "lstm":
            z = normalize(step @ kernel, 1e-3, *norms[:2]) + bias
            z = z + normalize(states[0] @ recurrent, 1e-3, *norms[2:4])
            i, f, g, o = np.split(z, 4, axis=1)
            c = normalize(sigmoid(f) * states[1] + sigmoid(i) * np.tanh(g), 1e-3, *norms[4:])
            new = [sigmoid(o) * np.tanh(c), c]
        else:
            z = step @ kernel + states[0] @ recurrent
            new = [np.tanh(normalize(z, 1e-5, *norms) + bias)]
        real = np.ones((len(x), 1), bool) if mask is None else mask[:, t : t + 1]
        states = [np.where(real, a, b) for a, b in zip(new, states, strict=True)]
        output = np.where(real, new[0], output)
        outputs.append(output)
    return np.stack(outputs, 1), states


def assert_close(found, wanted, tolerance=5e-6):
    found = ops.convert_to_numpy(ops.cast(found, "float32"))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance)


@every_cell
@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("implementation", [None, "plain"])
def test_outputs_and_states(kind, unroll, implementation, rng):
    layer = make(kind, rng, unroll=unroll, return_state=True)
    x = rng.normal(size=SHAPE).astype("float32")
    wanted, states = expected(kind, layer.get_weights(), x)
    with truenorm.use_implementation(implementation):
        y, *found = layer(x)
    for one, other in zip([y, *found], [wanted, *states], strict=True):
        assert_close(one, other)
    assert layer.compute_output_shape(SHAPE)[0] == (5, 6, 4)


@every_cell
def test_unknown_sizes_masks_and_directions(kind, rng):
    inputs = keras.Input((None, 3))
    masked = keras.layers.Masking()(inputs)
    forward = make(kind, rng)
    backward = make(kind, rng, go_backwards=True)
    model = keras.Model(inputs, [forward(masked), backward(inputs)])
    for steps in (6, 3):
        x = rng.normal(size=(5, steps, 3)).astype("float32")
        x[0, 1] = x[1, 0] = x[2, -1] = 0
        y, reverse = model.predict(x, verbose=0)
        mask = (x != 0).any(-1)
        assert_close(y, expected(kind, forward.get_weights(), x, mask)[0])
        assert_close(reverse, expected(kind, backward.get_weights(), x[:, ::-1])[0])


@every_cell
def test_initial_states_and_stateful(kind, rng):
    cell = CELLS[kind](UNITS)
    zeros = cell.get_initial_state(batch_size=5)
    assert [tuple(one.shape) for one in zeros] == [(5, UNITS)] * (2 if kind == "lstm" else 1)
    assert all(not ops.convert_to_numpy(one).any() for one in zeros)
    x = rng.normal(size=SHAPE).astype("float32")
    layer = make(kind, rng)
    states = [rng.normal(size=(5, UNITS)).astype("float32") for _ in zeros]
    wanted, _ = expected(kind, layer.get_weights(), x, states=states)
    tensors = [ops.convert_to_tensor(one) for one in states]
    assert_close(layer(x, initial_state=tensors), wanted)
    stateful = make(kind, rng, stateful=True)
    weights = stateful.get_weights()[: len(stateful.trainable_weights)]
    wanted, _ = expected(kind, weights, np.concatenate([x, x], 1))
    assert_close(ops.concatenate([stateful(x), stateful(x)], axis=1), wanted)


@every_cell
def test_a_model_learns_and_is_saved_and_loaded(kind, rng, tmp_path):
    jit_compile = (
        BACKEND == "jax"
    )  # else slow; test_addons_classes.py trains with XLA on TensorFlow
    cell = CELLS[kind](UNITS, dropout=0.05, recurrent_dropout=0.05, seed=1)
    layer = keras.layers.RNN(cell)
    model = keras.Sequential([keras.Input((4, 3)), layer, keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.05), "mse", jit_compile=jit_compile)
    x = rng.normal(size=(64, 4, 3)).astype("float32")
    y = np.sign(x[:, 2, :1]) + x[:, -1, :1]
    loss = model.fit(x, y, epochs=25, batch_size=64, verbose=0).history["loss"]
    assert loss[-1] < 0.5 * loss[0]
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    predicted = model.predict(x, batch_size=64, verbose=0)
    np.testing.assert_array_equal(loaded.predict(x, batch_size=64, verbose=0), predicted)
    assert loaded.layers[0].cell.get_config() == cell.get_config()
    again = loaded.fit(x, y, batch_size=64, verbose=0).history["loss"]
    assert again[0] < 0.5 * loss[0]


@every_cell
def test_bidirectional(kind, rng):
    layer = keras.layers.Bidirectional(keras.layers.RNN(CELLS[kind](UNITS)))
    layer.build(SHAPE)
    randomize(layer, rng)
    x = rng.normal(size=SHAPE).astype("float32")
    halves = [
        expected(kind, one.get_weights(), x[:, ::step])[0][:, -1]
        for one, step in ((layer.forward_layer, 1), (layer.backward_layer, -1))
    ]
    assert_close(layer(x), np.concatenate(halves, 1))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@every_cell
def test_mixed_precision(kind, policy, rng):
    keras.config.set_dtype_policy(policy)
    try:
        layer = make(kind, rng, return_state=True)
        inputs = keras.Input(SHAPE[1:])
        model = keras.Model(inputs, layer(inputs)[0])
    finally:
        keras.config.set_dtype_policy("float32")
    assert all(one.dtype == "float32" for one in layer.weights)
    x = rng.normal(size=SHAPE).astype("float32")
    outputs = layer(x)
    assert {keras.backend.standardize_dtype(one.dtype) for one in outputs} == {policy[6:]}
    wanted, _ = expected(kind, layer.get_weights(), x)
    assert_close(outputs[0], wanted, {"mixed_float16": 0.02, "mixed_bfloat16": 0.15}[policy])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    before = layer.get_weights()
    model.fit(x, np.zeros(wanted.shape), verbose=0)
    for old, new in zip(before, layer.get_weights(), strict=True):
        assert np.isfinite(new).all()
        assert np.any(new != old)


@every_cell
def test_the_normalizations_have_the_dtype_of_the_cell(kind):
    cell = CELLS[kind](UNITS, dtype="mixed_bfloat16", name="cell")
    names = ["kernel_norm", "recurrent_norm", "state_norm"] if kind == "lstm" else ["layernorm"]
    assert {getattr(cell, name).compute_dtype for name in names} == {"bfloat16"}
    assert [getattr(cell, name).name for name in names] == names


@every_cell
@pytest.mark.parametrize("where", ["dropout", "recurrent_dropout"])
def test_dropout_is_for_training_and_drawn_anew_for_each_batch(kind, where, rng):
    layer = make(kind, rng, cell={where: 0.5, "seed": 3})
    x = rng.normal(size=SHAPE).astype("float32")
    plain = ops.convert_to_numpy(layer(x))
    assert_close(plain, expected(kind, layer.get_weights(), x)[0])
    one, two = (ops.convert_to_numpy(layer(x, training=True)) for _ in range(2))
    assert np.abs(one - two).max() > 0.01
    assert np.abs(one - plain).max() > 0.01
    # The first step has no recurrent part to drop.
    assert (np.abs(one[:, 0] - plain[:, 0]).max() > 0.01) == (where == "dropout")
    same = make(kind, rng, cell={where: 0.5, "seed": 3})
    same.set_weights(layer.get_weights())
    same(x)
    np.testing.assert_array_equal(ops.convert_to_numpy(same(x, training=True)), one)


@every_cell
def test_all_steps_have_one_dropout_mask(kind, rng):
    """A cell that only looks at its input: equal steps stay equal where the mask is the same."""
    layer = make(kind, rng, cell={"dropout": 0.5, "seed": 3})
    kernel, recurrent, *others = layer.get_weights()
    if kind == "lstm":
        # Forget the carry, so that nothing but the input is left.
        others[0][UNITS : 2 * UNITS] = -60
    layer.set_weights([kernel, 0 * recurrent, *others])
    x = np.repeat(rng.normal(size=(5, 1, 3)).astype("float32"), 6, 1)
    y = ops.convert_to_numpy(layer(x, training=True))
    np.testing.assert_allclose(y, y[:, :1].repeat(6, 1), atol=1e-6)
    assert np.abs(y - ops.convert_to_numpy(layer(x))).max() > 0.01


@every_cell
def test_stacked_cells(kind, rng):
    cells = [CELLS[kind](UNITS, recurrent_dropout=0.1) for _ in range(2)]
    layer = keras.layers.RNN(cells, return_sequences=True)
    x = rng.normal(size=SHAPE).astype("float32")
    layer(x)
    randomize(layer, rng)
    first, _ = expected(kind, cells[0].get_weights(), x)
    assert_close(layer(x), expected(kind, cells[1].get_weights(), first)[0], 2e-5)
    assert layer(x, training=True).shape == (5, 6, 4)


@every_cell
def test_a_frozen_cell_has_no_trainable_weights(kind):
    layer = keras.layers.RNN(CELLS[kind](UNITS, trainable=False))
    layer.build(SHAPE)
    assert layer.cell.trainable_weights == []
    assert len(layer.cell.non_trainable_weights) == (9 if kind == "lstm" else 4)


def test_random_initializers_of_gamma_and_beta_repeat_no_values():
    cell = LayerNormLSTMCell(
        UNITS,
        norm_gamma_initializer=keras.initializers.RandomUniform(1, 2),
        norm_beta_initializer="random_normal",
    )
    cell.build((None, 3))
    for name in ("gamma", "beta"):
        one, other = (
            ops.convert_to_numpy(getattr(norm, name))
            for norm in (cell.kernel_norm, cell.recurrent_norm)
        )
        assert np.all(one != other)
    assert ops.convert_to_numpy(cell.kernel_norm.gamma).min() >= 1


ARGUMENTS = {
    "units": inspect.Parameter.empty,
    "activation": "tanh",
    "recurrent_activation": "sigmoid",
    "use_bias": True,
    "layernorm_epsilon": 1e-5,
    "kernel_initializer": "glorot_uniform",
    "recurrent_initializer": "orthogonal",
    "bias_initializer": "zeros",
    "gamma_initializer": "ones",
    "unit_forget_bias": True,
    "kernel_regularizer": None,
    "recurrent_regularizer": None,
    "bias_regularizer": None,
    "gamma_regularizer": None,
    "kernel_constraint": None,
    "recurrent_constraint": None,
    "bias_constraint": None,
    "gamma_constraint": None,
    "dropout": 0.0,
    "recurrent_dropout": 0.0,
    "norm_gamma_initializer": "ones",
    "norm_beta_initializer": "zeros",
    "norm_epsilon": 1e-3,
}
SIMPLE_ONLY = {
    "layernorm_epsilon", "gamma_initializer", "gamma_regularizer", "gamma_constraint",
}  # fmt: skip
LSTM_ONLY = {
    "recurrent_activation", "unit_forget_bias", "norm_gamma_initializer", "norm_beta_initializer",
    "norm_epsilon",
}  # fmt: skip


@every_cell
def test_arguments_are_those_of_addons_in_their_order(kind):
    others = SIMPLE_ONLY if kind == "lstm" else LSTM_ONLY
    wanted = {key: value for key, value in ARGUMENTS.items() if key not in others}
    parameters = inspect.signature(CELLS[kind]).parameters
    named = {name: one.default for name, one in parameters.items() if name != "kwargs"}
    assert list(named.items()) == list(wanted.items())
    assert set(CELLS[kind](UNITS).get_config()) == {"name", "trainable", "dtype", "seed"} | set(
        wanted
    )


@every_cell
def test_the_config_survives_build_and_round_trip(kind):
    uniform = keras.initializers.RandomUniform(1, 2, seed=1)
    own = (
        {"norm_gamma_initializer": uniform, "recurrent_activation": "relu", "norm_epsilon": 0.5}
        if kind == "lstm"
        else {
            "gamma_initializer": uniform,
            "gamma_regularizer": keras.regularizers.L2(0.5),
            "gamma_constraint": "non_neg",
            "layernorm_epsilon": 0.5,
        }
    )
    common = {
        "activation": None,
        "kernel_initializer": keras.initializers.RandomUniform(seed=2),
        "recurrent_initializer": keras.initializers.Orthogonal(seed=3),
        "kernel_regularizer": keras.regularizers.L1(0.5),
        "bias_constraint": "non_neg",
        "recurrent_dropout": 0.25,
        "seed": 7,
    }
    cell = CELLS[kind](UNITS, name="cell", **common, **own)
    before = cell.get_config()
    cell.build((None, 3))
    assert cell.get_config() == before
    again = CELLS[kind].from_config(before)
    assert again.get_config() == before
    again.build((None, 3))
    for one, other in zip(cell.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    loss = 0.5 * np.abs(cell.get_weights()[0]).sum()
    if kind == "simple":
        loss += 0.5 * np.sum(cell.get_weights()[-1] ** 2)
    found = sum(float(ops.convert_to_numpy(one)) for one in cell.losses)
    np.testing.assert_allclose(found, loss, rtol=1e-6)


@every_cell
def test_the_config_that_addons_wrote(kind):
    """As of Keras 2: an LSTM cell has `implementation`, a simple cell no name."""
    config = CELLS[kind](UNITS, **{EPSILON[kind]: 0.25}).get_config()
    del config["seed"]
    config["dtype"] = "float32"
    if kind == "lstm":
        config["implementation"] = 2
    else:
        del config["name"]
    cell = CELLS[kind].from_config(config)
    assert cell.get_config()[EPSILON[kind]] == 0.25
    cell.build((None, 3))
    bias = cell.get_weights()[2]
    forget = np.repeat([0, 1, 0, 0], UNITS) if kind == "lstm" else np.zeros(UNITS)
    np.testing.assert_array_equal(bias, forget)


@every_cell
def test_the_registered_name(kind):
    name = f"truenorm>{CELLS[kind].__name__}"
    assert keras.saving.get_registered_name(CELLS[kind]) == name


@every_cell
def test_bad_arguments_are_refused(kind):
    with pytest.raises(ValueError, match=r"epsilon=-1 must be a finite number of zero or more"):
        CELLS[kind](UNITS, **{EPSILON[kind]: -1})
    with pytest.raises(ValueError, match=r"`units`, expected a positive integer, got 0"):
        CELLS[kind](0)
