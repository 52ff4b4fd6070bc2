"""Models saved to .keras open in another process and on other backends, and predict the same."""

import keras
import numpy as np
import pytest

import truenorm
from processes import TRAINING_BACKENDS, installed, run_python

BACKEND = keras.backend.backend()
LAYERS = {
    "group": lambda: truenorm.GroupNormalization(groups=5, axis=3),
    "group_channels_first": lambda: truenorm.GroupNormalization(groups=-1, axis=1, scale=False),
    "instance": lambda: truenorm.InstanceNormalization(
        axis=3, beta_initializer="random_uniform", gamma_initializer="random_uniform"
    ),
    "layer": lambda: truenorm.LayerNormalization(axis=3, implementation="plain"),
    "layer_of_samples": lambda: truenorm.LayerNormalization(axis=[3, 1, 2], use_mask=False),
    "rms": lambda: truenorm.RMSNormalization(),
    "filter_response": lambda: truenorm.FilterResponseNormalization(
        axis=[-1, 1], learned_epsilon=True
    ),
    "tlu": lambda: truenorm.TLU(affine=True, shared_axes=1),
}
# A process that knows of truenorm no more than its import.
LOAD_AND_PREDICT = """
import pathlib, sys
import keras, numpy as np
import truenorm
folder, result = map(pathlib.Path, sys.argv[1:])
x = np.load(folder / "x.npy")
np.savez(result, **{
    path.stem: keras.models.load_model(path).predict(x, batch_size=16, verbose=0)
    for path in folder.glob("*.keras")
})
"""


def trained_model(layer, x, y):
    model = keras.Sequential(
        [
            keras.Input(x.shape[1:]),
            keras.layers.Dense(10),
            layer,
            keras.layers.Activation("relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )
    # JAX compiles by default, and that is saved: the others then compile too, which takes long, so
    # that one model stands for all.
    compiled = "auto" if isinstance(layer, truenorm.LayerNormalization) else False
    model.compile(keras.optimizers.Adam(0.01), "mse", jit_compile=compiled)
    loss = model.fit(x, y, batch_size=8, epochs=3, verbose=0).history["loss"]
    assert loss[-1] < loss[0]
    return model


def functional_model(shape, rng):
    """The functions in a model, with constants for weights."""
    inputs = keras.Input(shape)
    gamma, beta = rng.uniform(-2, 2, (2, shape[-1])).astype("float32")
    y = truenorm.ops.group_normalization(inputs, gamma, beta, groups=3)
    y = truenorm.ops.instance_normalization(y, axis=1)
    y = truenorm.ops.layer_normalization(y, beta=beta, axis=3, epsilon=0.5)
    y = truenorm.ops.rms_normalization(y, gamma, axis=-1)
    return keras.Model(inputs, y)


def recurrent_model(shape):
    """The cells in a model, one under the other, not trained."""
    inputs = keras.Input(shape)
    y = keras.layers.Reshape((shape[0], shape[1] * shape[2]))(inputs)
    y = keras.layers.RNN(truenorm.rnn.LayerNormLSTMCell(8), return_sequences=True)(y)
    return keras.Model(inputs, keras.layers.RNN(truenorm.rnn.LayerNormSimpleRNNCell(4))(y))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a model for each layer, an input, and what the models predict here."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("saved")
    x = rng.normal(0.5, 2, (32, 4, 5, 3)).astype("float32")
    y = np.tanh(x[:, 0, 0] * x[:, 1, 1])
    models = {name: trained_model(make(), x, y) for name, make in LAYERS.items()}
    models["functions"] = functional_model(x.shape[1:], rng)
    models["recurrent"] = recurrent_model(x.shape[1:])
    np.save(folder / "x.npy", x)
    predictions = {}
    for name, model in models.items():
        model.save(folder / f"{name}.keras")
        predictions[name] = model.predict(x, batch_size=16, verbose=0)
    return folder, x, predictions


@pytest.mark.slow
@pytest.mark.parametrize("backend", [*TRAINING_BACKENDS, "numpy"])
def test_another_process_predicts_the_same(backend, saved, tmp_path):
    if not installed(backend):
        pytest.skip(f"{backend} is not installed")
    folder, _, wanted = saved
    run_python(backend, "-c", LOAD_AND_PREDICT, folder, tmp_path / "result.npz")
    predicted = np.load(tmp_path / "result.npz")
    assert set(predicted) == {*LAYERS, "functions", "recurrent"}
    for name, one in wanted.items():
        assert np.std(one) > 0.1
        if backend == BACKEND:
            np.testing.assert_array_equal(predicted[name], one, err_msg=name)
        error = np.abs(predicted[name] - one) / np.maximum(1, np.abs(one))
        assert np.max(error) <= 1e-5, (name, np.max(error))


@pytest.mark.parametrize("name", LAYERS)
def test_the_loaded_layer_is_the_layer(name, saved):
    folder, x, wanted = saved
    model = keras.models.load_model(folder / f"{name}.keras")
    layer = model.layers[1]
    fresh = LAYERS[name]()
    assert type(layer) is type(fresh)
    ours, theirs = ({**one.get_config(), "name": None} for one in (layer, fresh))
    assert ours == theirs
    np.testing.assert_array_equal(model.predict(x, batch_size=16, verbose=0), wanted[name])
    # It is ready to go on training, with the state of its optimizer.
    assert int(model.optimizer.iterations) == 12
    model.fit(x, np.zeros((32, 3)), epochs=1, verbose=0)


@pytest.mark.parametrize("cls", ["FilterResponse", "Group", "Instance", "Layer", "RMS"])
def test_the_registered_name(cls):
    layer = getattr(truenorm, f"{cls}Normalization")
    name = f"truenorm>{cls}Normalization"
    assert keras.saving.get_registered_name(layer) == name
    assert keras.saving.get_registered_object(name) is layer
    assert keras.saving.serialize_keras_object(layer())["registered_name"] == name
