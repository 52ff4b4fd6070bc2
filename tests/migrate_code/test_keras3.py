"""What Keras 3 breaks: the rows of the tables hold of Keras itself, and are found in code."""

import textwrap

import keras
import pytest

pytest.importorskip("libcst", reason="migrate-code needs LibCST")

from truenorm.tools.migrate_code import keras3

MODEL = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
MODEL.compile("sgd", "mse")
# How each function is called, but for the argument of the row.
CALLS = {
    "BatchNormalization": keras.layers.BatchNormalization,
    "Embedding": lambda **more: keras.layers.Embedding(2, 2, **more),
    "LeakyReLU": keras.layers.LeakyReLU,
    "ModelCheckpoint": lambda **more: keras.callbacks.ModelCheckpoint("a.keras", **more),
    "TensorBoard": keras.callbacks.TensorBoard,
    "compile": MODEL.compile,
    "evaluate": MODEL.evaluate,
    "fit": MODEL.fit,
    "load_weights": lambda **more: MODEL.load_weights("a.weights.h5", **more),
    "predict": lambda **more: MODEL.predict([[0.0]], **more),
    "save_weights": lambda **more: MODEL.save_weights("a.weights.h5", **more),
    "": lambda **more: keras.layers.Conv2D(2, 2, **more),
} | {name: getattr(keras.optimizers, name) for name in keras3.OPTIMIZERS}
RECURRENT = {name: getattr(keras.layers, name) for name in keras3.RECURRENT - {"RNN"}}
CALLS |= {name: lambda cls=cls, **more: cls(2, **more) for name, cls in RECURRENT.items()}
CALLS["RNN"] = lambda **more: keras.layers.RNN(keras.layers.LSTMCell(2), **more)
ROWS = [
    (argument, name, advice)
    for argument, names, advice in keras3.ARGUMENTS
    for name in sorted(names or {""})
]


@pytest.mark.parametrize(("argument", "name", "advice"), ROWS)
def test_keras_takes_the_argument_no_more(argument, name, advice):
    value = {"period": 2, "subsample": (2, 2)}.get(argument, 0.5)
    if advice.startswith(("deprecated", "ignored")):
        with pytest.warns(UserWarning, match=argument):
            CALLS[name](**{argument: value})
    else:
        with pytest.raises((TypeError, ValueError), match=argument):
            CALLS[name](**{argument: value})


@pytest.mark.parametrize("name", keras3.METHODS)
def test_keras_has_the_method_no_more(name):
    assert not hasattr(MODEL, name)
    assert not hasattr(MODEL.layers[0], name)


@pytest.mark.parametrize("name", keras3.NAMES)
def test_keras_has_the_name_no_more(name):
    found = keras
    for part in name.split("."):
        found = getattr(found, part, None)
    assert found is None


CODE = {
    "model.add(tf.keras.layers.LeakyReLU(alpha=0.2))": "LeakyReLU(alpha=): Keras 3: deprecated",
    "opt = Adam(lr=1e-3)": "Adam(lr=): Keras 3: gone: write learning_rate=",
    "x = tf.keras.Input(3)": "Input(shape=int): Keras 3: an error: write shape=(3,)",
    "x = Input(shape=784)": "Input(shape=int)",
    "model.save('folder')": "save('folder'): Keras 3: an error: the name must end in .keras",
    "model.save_weights('a.h5')": "save_weights('a.h5'): Keras 3: an error",
    "ModelCheckpoint('best')": "ModelCheckpoint('best'): Keras 3: an error",
    "ModelCheckpoint('a.h5', save_weights_only=True)": "ModelCheckpoint('a.h5')",
    "model.fit_generator(data)": ".fit_generator(): Keras 3: gone",
    "x = tf.keras.layers.CuDNNLSTM(3)": "keras.layers.CuDNNLSTM: Keras 3: gone",
    "from keras.layers.core import Dense": "keras.layers.core: Keras 3: gone",
    "from tensorflow.keras.utils import multi_gpu_model": "keras.utils.multi_gpu_model",
    "from tensorflow.keras import utils as u\nu.np_utils.f()": "keras.utils.np_utils",
    "import keras.engine": "keras.engine",
    "x = tf.keras.Input((3,))\nx = Dense(2)(x)\ny = tf.reshape(x + 1, (-1, 1))": "tf.reshape",
    "def f():\n x = Input((3,))\n return tf.nn.relu(Dense(2)(x))": "tf.nn.relu",
}


@pytest.mark.parametrize("code", CODE)
def test_it_is_found_with_its_line(code):
    source = "import tensorflow as tf\n" + code + "\n"
    (use,) = keras3.find(source.encode())
    assert str(use).split(": ", 1)[1].startswith(CODE[code])
    last = source.count("\n") if "Input((3,))" in code or "np_utils" in code else 2
    assert use.line == last


def test_code_of_keras_3_and_other_code_is_left_alone():
    code = """
    import numpy as np, tensorflow as tf, keras
    x = keras.Input((3,))
    y = keras.layers.LeakyReLU(negative_slope=0.1)(x)
    model = keras.Model(x, y)
    model.save("a.keras"), model.save_weights("a.weights.h5"), figure.save("a.png")
    np.save("a", x), keras.optimizers.Adam(learning_rate=1)
    def step(x):
        return tf.reshape(model(x), (-1,)), tf.constant(3)
    data = tf.data.Dataset.range(3)
    @tf.function
    def other(data):
        return tf.reduce_mean(data)
    """
    assert keras3.find(textwrap.dedent(code).encode()) == []
