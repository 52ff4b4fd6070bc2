"""The three models of the classic tutorial on normalization layers, as Keras code."""

import keras
import numpy as np
import pytest

import evenkeel as tfa

# Written as in the tutorial, but for the import.
MODELS = {
    "group": lambda: keras.models.Sequential([
        # Reshape into "channels last" setup.
        keras.layers.Reshape((28, 28, 1), input_shape=(28, 28)),
        keras.layers.Conv2D(filters=10, kernel_size=(3, 3), data_format="channels_last"),
        # Groupnorm Layer
        tfa.layers.GroupNormalization(groups=5, axis=3),
        keras.layers.Flatten(),
        keras.layers.Dense(128, activation="relu"),
        keras.layers.Dropout(0.2),
        keras.layers.Dense(10, activation="softmax"),
    ]),
    "instance": lambda: keras.models.Sequential([
        keras.layers.Reshape((28, 28, 1), input_shape=(28, 28)),
        keras.layers.Conv2D(filters=10, kernel_size=(3, 3), data_format="channels_last"),
        # LayerNorm Layer
        tfa.layers.InstanceNormalization(axis=3,
                                         center=True,
                                         scale=True,
                                         beta_initializer="random_uniform",
                                         gamma_initializer="random_uniform"),
        keras.layers.Flatten(),
        keras.layers.Dense(128, activation="relu"),
        keras.layers.Dropout(0.2),
        keras.layers.Dense(10, activation="softmax"),
    ]),
    "layer": lambda: keras.models.Sequential([
        keras.layers.Reshape((28, 28, 1), input_shape=(28, 28)),
        keras.layers.Conv2D(filters=10, kernel_size=(3, 3), data_format="channels_last"),
        # LayerNorm Layer
        tfa.layers.LayerNormalization(axis=3, center=True, scale=True),
        keras.layers.Flatten(),
        keras.layers.Dense(128, activation="relu"),
        keras.layers.Dropout(0.2),
        keras.layers.Dense(10, activation="softmax"),
    ]),
}  # fmt: skip


def digits(count):
    """Noise with a block at one of ten places, and the number of the place."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, count)
    x = rng.uniform(0, 0.3, (count, 28, 28))
    for image, label in zip(x, labels, strict=True):
        row, column = 5 * (label // 5) + 6, 5 * (label % 5) + 2
        image[row : row + 4, column : column + 4] += 0.7
    return x.astype("float32"), labels.astype("uint8")


@pytest.mark.filterwarnings(
    "ignore:Do not pass an `input_shape`:UserWarning"
)  # as the tutorial does
@pytest.mark.parametrize("name", MODELS)
def test_the_model_builds_compiles_fits_and_shows_its_progress(name, capsys):
    keras.backend.clear_session()  # names count from the start
    model = MODELS[name]()
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    x, labels = digits(512)
    history = model.fit(x[:384], labels[:384], epochs=4, verbose=1).history
    shown = capsys.readouterr().out
    assert "Epoch 4/4" in shown
    assert "12/12" in shown
    assert "accuracy:" in shown
    assert "loss:" in shown
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    _, accuracy = model.evaluate(x[384:], labels[384:], verbose=0)
    assert accuracy > 0.4  # chance is 0.1
    layer = model.layers[2]
    assert [one.shape for one in layer.weights] == [(10,), (10,)]
    assert layer.name == f"{name}_normalization"
