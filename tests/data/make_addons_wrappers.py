"""Make the reference data of the two wrappers with TensorFlow Addons.

Ran on tensorflow-addons 0.23.0, tensorflow-cpu 2.15.1, Keras 2.15.0, NumPy 1.26, Python 3.11:

    python tests/data/make_addons_wrappers.py

It writes beside itself

- addons_weight_normalization.npz: per case, the weights before, after the first and after the
  second step of fit, and what predict gives after each;
- addons_spectral_normalization.npz: per case, the weights and the outputs of two calls in training
  and of inference before and after; and of inference after some steps of fit;
- addons_wrappers.h5, addons_wrappers.keras: a model of both wrappers, trained and saved.
  addons_wrappers.npz: its input and output.
"""

import json
import pathlib

import numpy as np
import tensorflow as tf
import tensorflow_addons as tfa

FOLDER = pathlib.Path(__file__).parent
L = tf.keras.layers
SGD = {"class_name": "SGD", "config": {"learning_rate": 0.1, "momentum": 0.9}}
ADAM = {"class_name": "Adam", "config": {"learning_rate": 0.01}}

# name: layer class, its options, input shape without the batch, data_init, optimizer
WEIGHT_CASES = {
    "dense": ("Dense", {"units": 5, "activation": "relu"}, (4,), True, SGD),
    "dense_adam": ("Dense", {"units": 3, "activation": "tanh"}, (7,), True, ADAM),
    "dense_without_bias": ("Dense", {"units": 3, "use_bias": False}, (4,), True, SGD),
    "dense_without_data": ("Dense", {"units": 3, "activation": "tanh"}, (4,), False, SGD),
    "dense_of_sequences": ("Dense", {"units": 3}, (6, 4), True, SGD),
    "conv1d": (
        "Conv1D",
        {"filters": 3, "kernel_size": 3, "padding": "causal", "activation": "relu"},
        (7, 2),
        True,
        SGD,
    ),
    "conv2d": (
        "Conv2D",
        {"filters": 4, "kernel_size": 3, "strides": 2, "activation": "relu"},
        (7, 6, 2),
        True,
        SGD,
    ),
    "conv2d_grouped": (
        "Conv2D",
        {"filters": 4, "kernel_size": 2, "groups": 2},
        (4, 4, 2),
        True,
        SGD,
    ),
    "conv3d": ("Conv3D", {"filters": 2, "kernel_size": 2}, (4, 3, 3, 2), True, SGD),
    "conv1d_transpose": (
        "Conv1DTranspose",
        {"filters": 3, "kernel_size": 2, "strides": 2},
        (4, 3),
        True,
        SGD,
    ),
    "conv2d_transpose": (  # with a bias, TensorFlow Addons fails on other channels than at first
        "Conv2DTranspose",
        {"filters": 2, "kernel_size": 2, "use_bias": False},
        (3, 4, 4),
        True,
        SGD,
    ),
    "conv2d_transpose_without_data": (
        "Conv2DTranspose",
        {"filters": 3, "kernel_size": 2},
        (3, 4, 4),
        False,
        SGD,
    ),
    "conv3d_transpose": (
        "Conv3DTranspose",
        {"filters": 2, "kernel_size": 2},
        (2, 2, 3, 2),
        True,
        SGD,
    ),
    "simple_rnn": ("SimpleRNN", {"units": 3}, (4, 2), True, SGD),
    "lstm": ("LSTM", {"units": 3, "return_sequences": True}, (4, 2), True, SGD),
    "lstm_without_data": ("LSTM", {"units": 3}, (4, 2), False, SGD),
    "gru_without_data": ("GRU", {"units": 3}, (4, 2), False, SGD),
}
# name: layer class, its options, input shape without the batch, power_iterations
SPECTRAL_CASES = {
    "dense": ("Dense", {"units": 5, "activation": "relu"}, (4,), 1),
    "dense_three": ("Dense", {"units": 3}, (7,), 3),
    "conv1d": ("Conv1D", {"filters": 3, "kernel_size": 3}, (7, 2), 1),
    "conv2d": ("Conv2D", {"filters": 4, "kernel_size": 3, "activation": "relu"}, (7, 6, 2), 1),
    "conv3d": ("Conv3D", {"filters": 2, "kernel_size": 2}, (4, 3, 3, 2), 2),
    "conv2d_transpose": ("Conv2DTranspose", {"filters": 3, "kernel_size": 2}, (3, 4, 2), 1),
    "embedding": ("Embedding", {"input_dim": 9, "output_dim": 4}, (3,), 1),
}


def legacy_weights(layer):
    """The values of the weights in the order of a .h5 file."""
    return [one.numpy() for one in layer.trainable_weights + layer.non_trainable_weights]


def keep(arrays, name, values):
    """Store a list of arrays, one after the other in one vector."""
    arrays[name] = np.concatenate([np.ravel(one).astype("float32") for one in values])


def spread(rng, layer):
    """Give the biases of a layer values other than zero."""
    layer.set_weights(
        [
            one if one.ndim > 1 else rng.normal(0, 0.3, one.shape).astype("float32")
            for one in layer.get_weights()
        ]
    )


def weight_normalization():
    """Two steps of fit per case, each on its own batch."""
    arrays = {}
    for number, (name, case) in enumerate(WEIGHT_CASES.items()):
        kind, options, shape, data_init, optimizer = case
        tf.keras.utils.set_random_seed(number)
        rng = np.random.default_rng(number)
        layer = getattr(L, kind)(**options)
        layer.build((None, *shape))
        spread(rng, layer)
        wrapper = tfa.layers.WeightNormalization(layer, data_init=data_init)
        model = tf.keras.Sequential([tf.keras.Input(shape), wrapper])
        model.compile(tf.keras.optimizers.deserialize(optimizer), "mse")
        arrays[f"{name}/case"] = np.array(json.dumps(case))
        # g, the kernel, which is no longer the layer's, and the rest of the layer. The list goes on
        # with a flag and a copy of the layer that the first batch goes through.
        count = 2 + len(layer.weights)
        keep(arrays, f"{name}/before", legacy_weights(wrapper)[:count])
        for step in ("first", "second"):
            x = rng.normal(0.5, 2, (8, *shape)).astype("float32")
            target = rng.normal(0, 1, (8, *model.output_shape[1:])).astype("float32")
            model.fit(x, target, batch_size=8, epochs=1, verbose=0)
            arrays[f"{name}/{step}/x"] = x
            arrays[f"{name}/{step}/target"] = target
            keep(arrays, f"{name}/{step}/weights", legacy_weights(wrapper)[:count])
            arrays[f"{name}/{step}/y"] = model.predict(x, verbose=0)
    np.savez_compressed(FOLDER / "addons_weight_normalization.npz", **arrays)


def spectral_normalization():
    """Calls in training and in inference, then fit."""
    arrays = {}
    for number, (name, case) in enumerate(SPECTRAL_CASES.items()):
        kind, options, shape, power_iterations = case
        tf.keras.utils.set_random_seed(number)
        rng = np.random.default_rng(number)
        layer = getattr(L, kind)(**options)
        wrapper = tfa.layers.SpectralNormalization(layer, power_iterations=power_iterations)
        model = tf.keras.Sequential([tf.keras.Input(shape), wrapper])
        x = rng.normal(0.5, 2, (8, *shape)).astype("float32")
        if kind == "Embedding":
            x = rng.integers(0, options["input_dim"], (8, *shape)).astype("int32")
            model = tf.keras.Sequential([tf.keras.Input(shape, dtype="int32"), wrapper])
        else:
            spread(rng, layer)
        arrays[f"{name}/case"] = np.array(json.dumps(case))
        arrays[f"{name}/x"] = x
        steps = {"untrained": False, "first": True, "second": True, "inference": False}
        for step, training in steps.items():
            arrays[f"{name}/{step}/y"] = wrapper(x, training=training).numpy()
            keep(arrays, f"{name}/{step}/weights", legacy_weights(wrapper))
        model.compile(tf.keras.optimizers.Adam(0.02), "mse")
        target = rng.normal(0, 1, arrays[f"{name}/first/y"].shape)
        model.fit(x, target, batch_size=4, epochs=2, verbose=0)
        keep(arrays, f"{name}/fitted/weights", legacy_weights(wrapper))
        arrays[f"{name}/fitted/y"] = model.predict(x, verbose=0)
    np.savez_compressed(FOLDER / "addons_spectral_normalization.npz", **arrays)


def saved_model():
    """Both wrappers in one model, also within other layers, trained and saved."""
    tf.keras.utils.set_random_seed(0)
    weight, spectral = tfa.layers.WeightNormalization, tfa.layers.SpectralNormalization
    inner = tf.keras.Sequential(
        [
            tf.keras.Input((4, 3)),
            weight(L.LSTM(3, return_sequences=True), data_init=False),
            spectral(L.Dense(4, activation="tanh")),
            weight(L.Dense(2)),
        ]
    )
    model = tf.keras.Sequential(
        [
            tf.keras.Input((6, 2)),
            weight(L.Conv1D(3, 2, activation="relu")),
            spectral(L.Conv1D(3, 2, use_bias=False)),
            inner,
            L.TimeDistributed(weight(L.Dense(2))),
            L.Flatten(),
            weight(L.Dense(2), data_init=False),
        ]
    )
    model.compile("adam", "mse")
    rng = np.random.default_rng(0)
    x = rng.normal(0.5, 2, (16, 6, 2)).astype("float32")
    model.fit(x, rng.normal(0, 1, (16, 2)), epochs=2, batch_size=4, verbose=0)
    model.save(FOLDER / "addons_wrappers.h5", include_optimizer=False)
    model.optimizer = None
    model.save(FOLDER / "addons_wrappers.keras")
    np.savez_compressed(FOLDER / "addons_wrappers.npz", x=x, y=model.predict(x, verbose=0))


if __name__ == "__main__":
    weight_normalization()
    spectral_normalization()
    saved_model()
