"""What TensorFlow Addons' classes compute, differentiate and train: writes addons_classes.npz.

Run with TensorFlow Addons 0.23.0, TensorFlow 2.15.1 (CPU), Keras 2.15.0, NumPy 1.26, Python 3.11:

    python make_addons_classes.py SMALL_MODEL OUT.npz

SMALL_MODEL is the folder of a trained model with `io.npz` and `weights_by_name.npz`, of which the
input and output of its FilterResponseNormalization and its weights go into the file too.

Keys are "case/array". Every case has its inputs, weights in Keras' order (w0, w1, ...), outputs
(y0, y1, ...), a cotangent for each output (dy0, ...) and the gradients in x and in the weights (dx,
dw0, ...) of the sum of cotangent * output. Where it was trained, t0, t1, ... are the weights after
three steps of SGD, with learning rate 0.1, on the mean squared error between y0 and `target`.
"""

import os
import pathlib
import sys

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import tensorflow as tf
import tensorflow_addons as tfa

tf.keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)
arrays = {}


def normal(*shape):
    return rng.normal(size=shape).astype("float32")


def record(name, layer, x, train=True, mask=None):
    """Randomize a layer's weights, and record what it computes of x, and what training does."""
    options = {} if mask is None else {"mask": tf.constant(mask)}
    layer(x, **options)
    layer.set_weights([rng.uniform(-1, 1, one.shape).astype("float32") for one in layer.weights])
    found = {f"w{i}": one for i, one in enumerate(layer.get_weights())}
    found["x"] = x
    if mask is not None:
        found["mask"] = mask
    inputs = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = layer(inputs, **options)
        outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        cotangents = [normal(*one.shape) for one in outputs]
        total = sum(tf.reduce_sum(a * b) for a, b in zip(cotangents, outputs, strict=True))
    dx, *gradients = tape.gradient(total, [inputs, *layer.weights])
    found |= {f"y{i}": one.numpy() for i, one in enumerate(outputs)}
    found |= {f"dy{i}": one for i, one in enumerate(cotangents)}
    found |= {f"dw{i}": one.numpy() for i, one in enumerate(gradients)} | {"dx": dx.numpy()}
    if train:
        found["target"] = normal(*outputs[0].shape)
        source = tf.keras.Input(x.shape[1:])
        y = layer(source)
        model = tf.keras.Model(source, y[0] if isinstance(y, (list, tuple)) else y)
        model.compile(tf.keras.optimizers.SGD(0.1), "mse")
        model.fit(x, found["target"], batch_size=len(x), epochs=3, shuffle=False, verbose=0)
        found |= {f"t{i}": one for i, one in enumerate(layer.get_weights())}
    arrays.update({f"{name}/{key}": value for key, value in found.items()})


def record_dropout(name, cell, x):
    """Record the steps of a cell under dropout, with the masks that it drew."""
    states = cell.get_initial_state(batch_size=len(x), dtype="float32")
    states = states if isinstance(states, list) else [states]
    cell(x[:, 0], states)
    cell.set_weights([rng.uniform(-1, 1, one.shape).astype("float32") for one in cell.weights])
    cell.reset_dropout_mask()  # that call has cached masks of ones
    cell.reset_recurrent_dropout_mask()
    steps = []
    for t in range(x.shape[1]):
        y, states = cell(x[:, t], states, training=True)
        steps.append(y.numpy())
    masks = [
        cell.get_dropout_mask_for_cell(x[:, 0], True, 4),
        cell.get_recurrent_dropout_mask_for_cell(states[0], True, 4),
    ]
    masks = [(one[0] if isinstance(one, list) else one).numpy() for one in masks]
    found = {f"w{i}": one for i, one in enumerate(cell.get_weights())}
    found |= {"x": x, "y0": np.stack(steps, 1), "mask": masks[0], "recurrent_mask": masks[1]}
    arrays.update({f"{name}/{key}": value for key, value in found.items()})


FRN, TLU = tfa.layers.FilterResponseNormalization, tfa.layers.TLU
images = normal(3, 4, 5, 6) * 2 + 0.5
record("frn", FRN(), images)
record("frn_epsilon", FRN(epsilon=0.3), images)
record("frn_learned", FRN(learned_epsilon=True), images)
record("frn_learned_small", FRN(learned_epsilon=True), images * 1e-2)
record("frn_nonneg", FRN(learned_epsilon=True, learned_epsilon_constraint="non_neg"), images * 1e-2)
record("tlu", TLU(), images)
record("tlu_affine", TLU(affine=True), images)
record("frn_tlu", tf.keras.Sequential([FRN(learned_epsilon=True), TLU(affine=True)]), images)
for name, axis in {"1": 1, "last": -1, "list": [1, 2], "all": None}.items():
    short = images * np.where(np.arange(6) % 2, 0.05, 1.0).astype("float32")
    record(f"poincare_{name}", tfa.layers.PoincareNormalize(axis=axis), short, train=False)
record("poincare_epsilon", tfa.layers.PoincareNormalize(epsilon=0.25), images, train=False)

steps = normal(4, 5, 3)
mask = np.array([[1, 1, 0, 1, 1], [1, 0, 0, 1, 0], [1, 1, 1, 1, 1], [0, 1, 1, 0, 0]], bool)
CELLS = {"lstm": tfa.rnn.LayerNormLSTMCell, "simple": tfa.rnn.LayerNormSimpleRNNCell}
for kind, cell in CELLS.items():
    epsilon = {"norm_epsilon" if kind == "lstm" else "layernorm_epsilon": 0.1}
    more = {"recurrent_activation": "relu"} if kind == "lstm" else {}

    def rnn(one):
        return tf.keras.layers.RNN(one, return_sequences=True, return_state=True)

    record(kind, rnn(cell(4)), steps)
    record(f"{kind}_masked", rnn(cell(4)), steps, train=False, mask=mask)
    bare = cell(4, activation=None, use_bias=False, **epsilon, **more)
    record(f"{kind}_bare", rnn(bare), steps)
    record_dropout(f"{kind}_dropout", cell(4, dropout=0.4, recurrent_dropout=0.3), steps)

folder = pathlib.Path(sys.argv[1])
with np.load(folder / "io.npz") as io, np.load(folder / "weights_by_name.npz") as weights:
    arrays["model/x"], arrays["model/y0"] = io["tfa_in_0"][:4], io["tfa_out_0"][:4]
    for i, name in enumerate(("gamma", "beta")):
        arrays[f"model/w{i}"] = weights[f"filter_response_normalization/{name}:0"]
np.savez_compressed(sys.argv[2], **arrays)
