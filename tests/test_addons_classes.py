"""TensorFlow Addons' outputs, gradients and trained weights, element by element.

`tests/data/make_addons_classes.py` recorded them. Each layer is trained, saved and loaded as well.
"""

import pathlib

import keras
import numpy as np
import pytest
from keras import ops

import truenorm as tfa
from gradients import value_and_gradients

FRN, TLU = tfa.layers.FilterResponseNormalization, tfa.layers.TLU
CELLS = {"lstm": tfa.rnn.LayerNormLSTMCell, "simple": tfa.rnn.LayerNormSimpleRNNCell}


def rnn(kind, **options):
    cell = CELLS[kind](4, **options)
    return keras.layers.RNN(cell, return_sequences=True, return_state=True, name="rnn")


MAKERS = {
    "frn": FRN,
    "frn_epsilon": lambda: FRN(epsilon=0.3),
    "frn_learned": lambda: FRN(learned_epsilon=True),
    "frn_learned_small": lambda: FRN(learned_epsilon=True),
    "frn_nonneg": lambda: FRN(learned_epsilon=True, learned_epsilon_constraint="non_neg"),
    "tlu": TLU,
    "tlu_affine": lambda: TLU(affine=True),
    "frn_tlu": lambda: keras.Sequential([FRN(learned_epsilon=True), TLU(affine=True)]),
    "poincare_1": tfa.layers.PoincareNormalize,
    "poincare_last": lambda: tfa.layers.PoincareNormalize(axis=-1),
    "poincare_list": lambda: tfa.layers.PoincareNormalize(axis=[1, 2]),
    "poincare_all": lambda: tfa.layers.PoincareNormalize(axis=None),
    "poincare_epsilon": lambda: tfa.layers.PoincareNormalize(epsilon=0.25),
    "lstm": lambda: rnn("lstm"),
    "lstm_masked": lambda: rnn("lstm"),
    "lstm_bare": lambda: rnn(
        "lstm", activation=None, recurrent_activation="relu", use_bias=False, norm_epsilon=0.1
    ),
    "simple": lambda: rnn("simple"),
    "simple_masked": lambda: rnn("simple"),
    "simple_bare": lambda: rnn("simple", activation=None, use_bias=False, layernorm_epsilon=0.1),
    "model": FRN,
}
NAMES = {
    "frn": ["gamma", "beta"],
    "frn_learned": ["learned_epsilon", "gamma", "beta"],
    "tlu": ["tau"],
    "tlu_affine": ["tau", "alpha"],
    "lstm": [
        "kernel", "recurrent_kernel", "bias", "kernel_norm/gamma", "kernel_norm/beta",
        "recurrent_norm/gamma", "recurrent_norm/beta", "state_norm/gamma", "state_norm/beta",
    ],
    "lstm_bare": [
        "kernel", "recurrent_kernel", "kernel_norm/gamma", "kernel_norm/beta",
        "recurrent_norm/gamma", "recurrent_norm/beta", "state_norm/gamma", "state_norm/beta",
    ],
    "simple": ["kernel", "recurrent_kernel", "bias", "layernorm/gamma"],
    "simple_bare": ["kernel", "recurrent_kernel", "layernorm/gamma"],
}  # fmt: skip


class Recorded:
    """The arrays of one case."""

    def __init__(self, name):
        with np.load(pathlib.Path(__file__).parent / "data" / "addons_classes.npz") as file:
            prefix = f"{name}/"
            self.arrays = {
                key.removeprefix(prefix): file[key] for key in file.files if key.startswith(prefix)
            }

    def __getitem__(self, key):
        return self.arrays[key]

    def __contains__(self, key):
        return key in self.arrays

    def numbered(self, letters):
        """w0, w1, ... for "w"."""
        keys = [f"{letters}{i}" for i in range(len(self.arrays))]
        return [self.arrays[key] for key in keys if key in self.arrays]


def assert_close(found, wanted, tolerance):
    """Assert |found - wanted| <= tolerance * max(1, |wanted|), element by element."""
    found = ops.convert_to_numpy(found)
    assert found.dtype == wanted.dtype
    assert found.shape == wanted.shape
    error = np.abs(found.astype("float64") - wanted) / np.maximum(1, np.abs(wanted))
    assert error.max() <= tolerance


def as_list(outputs):
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


@pytest.mark.parametrize("name", MAKERS)
def test_outputs_and_gradients(name):
    recorded = Recorded(name)
    layer = MAKERS[name]()
    layer.build(recorded["x"].shape)
    weights = recorded.numbered("w")
    assert [tuple(one.shape) for one in layer.weights] == [one.shape for one in weights]
    layer.set_weights(weights)
    options = {"mask": ops.convert_to_tensor(recorded["mask"])} if "mask" in recorded else {}
    outputs = as_list(layer(recorded["x"], **options))
    for found, wanted in zip(outputs, recorded.numbered("y"), strict=True):
        assert_close(found, wanted, 4e-6)
    if "dx" not in recorded:
        return

    state = [one.value for one in layer.non_trainable_variables]

    def function(x, *weights):
        y, _ = layer.stateless_call(list(weights), state, x, **options)
        return ops.concatenate([ops.reshape(one, [-1]) for one in as_list(y)])

    cotangent = np.concatenate([one.ravel() for one in recorded.numbered("dy")])
    _, gradients = value_and_gradients(function, [recorded["x"], *weights], cotangent)
    wanted = [recorded["dx"], *recorded.numbered("dw")]
    for found, one in zip(gradients, wanted, strict=True):
        scale = np.float32(np.maximum(1, np.abs(one).max()))
        assert_close(found / scale, one / scale, 2e-6)


@pytest.mark.parametrize("name", [one for one in MAKERS if "t0" in Recorded(one)])
def test_trained_weights_saved_and_loaded(name, tmp_path):
    recorded = Recorded(name)
    layer = MAKERS[name]()
    source = keras.Input(recorded["x"].shape[1:])
    model = keras.Model(source, as_list(layer(source))[0])
    layer.set_weights(recorded.numbered("w"))
    model.compile(keras.optimizers.SGD(0.1), "mse")
    x, target = recorded["x"], recorded["target"]

    def fit(one, epochs):
        one.fit(x, target, batch_size=len(x), epochs=epochs, shuffle=False, verbose=0)
        return one

    fit(model, 2).save(tmp_path / "model.keras")
    assert any(
        np.any(one != other)
        for one, other in zip(layer.get_weights(), recorded.numbered("w"), strict=True)
    )
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        loaded.predict(x, verbose=0, batch_size=len(x)),
        model.predict(x, verbose=0, batch_size=len(x)),
    )
    # Trained without a break, and with a save and a load before the last step.
    for one in (fit(model, 1), fit(loaded, 1)):
        for found, wanted in zip(one.get_weights(), recorded.numbered("t"), strict=True):
            assert_close(found, wanted, 1e-5)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_training_in_mixed_precision(policy, rng, tmp_path):
    layers = [
        keras.layers.Conv2D(4, 3, dtype=policy),
        FRN(learned_epsilon=True, dtype=policy),
        TLU(affine=True, dtype=policy),
        FRN(dtype=policy),
        TLU(shared_axes=[1, 2], dtype=policy),
        tfa.layers.PoincareNormalize(axis=-1, epsilon=0.1, dtype=policy),
        keras.layers.Flatten(dtype=policy),
        keras.layers.Dense(1, dtype="float32"),
    ]
    model = keras.Sequential([keras.Input((6, 6, 2)), *layers])
    model.compile(keras.optimizers.Adam(0.05), "mse")
    before = model.get_weights()
    x = rng.normal(size=(32, 6, 6, 2)).astype("float32")
    y = x[:, :3].mean((1, 2, 3)) - x[:, 3:].mean((1, 2, 3))
    loss = model.fit(x, 3 * y, batch_size=32, epochs=15, verbose=0).history["loss"]
    assert loss[-1] < 0.5 * loss[0]
    for old, new in zip(before, model.get_weights(), strict=True):
        assert new.dtype == "float32"
        assert np.isfinite(new).all()
        assert np.any(new != old)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


@pytest.mark.parametrize("name", NAMES)
def test_the_names_of_the_weights(name):
    layer = MAKERS[name]()
    layer(Recorded(name)["x"])
    cell = f"{layer.cell.path}/" if hasattr(layer, "cell") else f"{layer.path}/"
    assert [one.path.removeprefix(cell) for one in layer.weights] == NAMES[name]
    assert [one.name for one in layer.weights] == [one.split("/")[-1] for one in NAMES[name]]


@pytest.mark.parametrize("kind", CELLS)
def test_dropout_with_the_masks_that_it_drew(kind):
    recorded = Recorded(f"{kind}_dropout")
    masks = [ops.convert_to_tensor(recorded[key]) for key in ("mask", "recurrent_mask")]

    class Cell(CELLS[kind]):
        def get_dropout_mask(self, step_input):
            return masks[0]

        def get_recurrent_dropout_mask(self, step_input):
            return masks[1]

    layer = keras.layers.RNN(Cell(4, dropout=0.4, recurrent_dropout=0.3), return_sequences=True)
    layer.build(recorded["x"].shape)
    layer.set_weights(recorded.numbered("w"))
    assert_close(layer(recorded["x"], training=True), recorded["y0"], 4e-6)
    # Without training nothing is dropped.
    other = keras.layers.RNN(CELLS[kind](4), return_sequences=True)
    other.build(recorded["x"].shape)
    other.set_weights(recorded.numbered("w"))
    np.testing.assert_array_equal(
        *(ops.convert_to_numpy(one(recorded["x"], training=False)) for one in (layer, other))
    )


def test_the_poincare_cases_have_vectors_of_both_kinds():
    for name in ("poincare_1", "poincare_last"):
        kept = Recorded(name)["y0"] == Recorded(name)["x"]
        assert kept.any()
        assert not kept.all()


@pytest.mark.parametrize("axis", [-1, -2, -3])
def test_instance_normalization_with_negative_axes(axis, rng):
    """In TensorFlow Addons -3 raised IndexError, and -2 was silently wrong."""
    x = rng.normal(2, 3, (3, 4, 5, 6)).astype("float32")
    layer = tfa.layers.InstanceNormalization(axis=axis)
    layer.build(x.shape)
    shape = [1] * 4
    shape[axis] = x.shape[axis]
    gamma, beta = rng.uniform(-1, 1, (2, x.shape[axis])).astype("float32")
    layer.set_weights([gamma, beta])
    others = tuple(i for i in (1, 2, 3) if i != axis % 4)
    wide = x.astype("float64")
    xhat = wide - wide.mean(others, keepdims=True)
    xhat = xhat / np.sqrt(wide.var(others, keepdims=True) + 1e-3)
    wanted = gamma.reshape(shape) * xhat + beta.reshape(shape)
    assert_close(layer(x), wanted.astype("float32"), 2e-6)
    assert layer.get_config()["axis"] == axis


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("layers", "FilterResponseNormalization"),
        ("layers", "GroupNormalization"),
        ("layers", "InstanceNormalization"),
        ("layers", "PoincareNormalize"),
        ("layers", "TLU"),
        ("rnn", "LayerNormLSTMCell"),
        ("rnn", "LayerNormSimpleRNNCell"),
    ],
)
def test_old_code_finds_the_class(module, name):
    found = getattr(getattr(tfa, module), name)
    assert keras.saving.get_registered_name(found) == f"truenorm>{name}"
    if module == "layers":
        assert getattr(tfa, name) is found
