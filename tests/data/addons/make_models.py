"""Make the files of TensorFlow Addons that the tests of `truenorm migrate` open.

    python make_models.py [NAME...]

It ran on Python 3.11 with tensorflow-addons 0.23.0, tensorflow-cpu 2.15.1 (Keras 2.15.0) and
numpy 1.26, and is not part of the tests. Each NAME.zip holds one trained model in formats that
Keras 2 knows, and io.npz: an input x, the outputs y0, y1, ..., the targets, the outputs next0, ...
after one more training step with them, and what went into and came out of each normalization at the
model's top (NAME/in, NAME/out). The models small_* were made in the same way before, without these.
"""

import os

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"

import pathlib
import sys
import tempfile
import warnings
import zipfile

import numpy as np
import tensorflow as tf
import tensorflow_addons as tfa

HERE = pathlib.Path(__file__).parent
layers, keras = tf.keras.layers, tf.keras
EVERYTHING = (
    "model.h5",
    "model.keras",
    "weights.h5",
    "model.weights.h5",
    "saved_model",
    "checkpoint",
)
FILES = EVERYTHING[:4]


def image(channels=6):
    return keras.Input((5, 5, channels))


def head(x):
    return layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(x))


def branches():
    """Branches that meet, a layer called twice, a model of two outputs with named losses."""
    inputs = image(4)
    x = layers.Conv2D(6, 3, padding="same", activation="relu")(inputs)
    a = tfa.layers.GroupNormalization(groups=3)(x)
    b = tfa.layers.InstanceNormalization(
        center=True,
        scale=True,
        beta_initializer="random_uniform",
        gamma_initializer="random_uniform",
    )(x)
    c = tfa.layers.FilterResponseNormalization()(x)
    x = layers.Concatenate()([layers.Add()([a, b]), c])
    shared = layers.Dense(12)
    x = shared(layers.Activation("tanh")(shared(x)))
    pooled = layers.GlobalAveragePooling2D()(x)
    outputs = [layers.Dense(3, name="one")(pooled), layers.Dense(2, "softmax", name="two")(pooled)]
    model = keras.Model(inputs, outputs)
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
        {"one": "mse", "two": keras.losses.CategoricalCrossentropy(label_smoothing=0.1)},
        metrics={"one": ["mae"], "two": "accuracy"},
        loss_weights={"one": 1.0, "two": 0.5},
    )
    return model


def nested():
    """Models in models, each with normalizations."""
    inner = keras.Sequential(
        [
            keras.Input((5, 5, 6)),
            layers.Conv2D(4, 3, use_bias=False),
            tfa.layers.GroupNormalization(groups=2),
            layers.ReLU(max_value=6),
        ],
        name="inner",
    )
    inputs = keras.Input((3, 3, 4))
    x = layers.BatchNormalization()(inputs)
    x = tfa.layers.FilterResponseNormalization()(x)
    middle = keras.Model(inputs, tfa.layers.TLU()(x), name="middle")
    outside = image()
    x = middle(inner(outside))
    x = layers.Dropout(0.0)(x)
    model = keras.Model(outside, head(tfa.layers.InstanceNormalization()(x)))
    model.compile(keras.optimizers.RMSprop(0.003, momentum=0.5), keras.losses.Huber())
    return model


def wrappers():
    """TimeDistributed and Bidirectional around Keras' and Addons' layers and cells."""
    inputs = keras.Input((4, 6))
    x = layers.TimeDistributed(layers.Dense(6))(inputs)
    x = layers.TimeDistributed(tfa.layers.GroupNormalization(groups=2))(x)
    x = layers.Bidirectional(layers.LSTM(3, return_sequences=True))(x)
    x = layers.Bidirectional(
        layers.RNN(tfa.rnn.LayerNormLSTMCell(2), return_sequences=True), merge_mode="sum"
    )(x)
    x = layers.Bidirectional(layers.GRU(2, return_sequences=True))(x)
    x = tfa.layers.InstanceNormalization()(x)
    model = keras.Model(inputs, layers.Dense(3)(layers.GlobalMaxPooling1D()(x)))
    model.compile("adam", "mse", metrics=["mse", "mae"])
    return model


def channels_first():
    """Channels at axis 1."""
    model = keras.Sequential(
        [
            keras.Input((6, 4, 5)),
            tfa.layers.GroupNormalization(groups=3, axis=1),
            layers.Activation("elu"),
            tfa.layers.InstanceNormalization(axis=1),
            tfa.layers.GroupNormalization(groups=2, axis=1, epsilon=0.1),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )
    model.compile("sgd", "mse")
    return model


def arguments():
    """Without scale, without center; constraints, regularizers, initializers; a frozen layer."""
    make = tfa.layers.GroupNormalization
    model = keras.Sequential(
        [
            image(),
            make(groups=2, scale=False, beta_constraint="non_neg", beta_regularizer="l1"),
            make(groups=3, center=False, gamma_regularizer=keras.regularizers.L1L2(0.01, 0.02)),
            tfa.layers.InstanceNormalization(scale=False, center=False),
            make(
                groups=1,
                gamma_constraint=keras.constraints.MaxNorm(1.5, axis=0),
                beta_constraint=keras.constraints.UnitNorm(),
                gamma_initializer=keras.initializers.RandomNormal(1.0, 0.1, seed=3),
                beta_initializer=keras.initializers.Constant(0.3),
            ),
            make(groups=6, trainable=False),
            layers.LeakyReLU(alpha=0.2),
            layers.Conv2D(4, 3, kernel_regularizer=keras.regularizers.L2(0.01)),
            tfa.layers.InstanceNormalization(gamma_regularizer="l2"),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )
    schedule = keras.optimizers.schedules.ExponentialDecay(0.01, 10, 0.9)
    model.compile(keras.optimizers.Adam(schedule, clipnorm=1.0, use_ema=True), "mae")
    return model


def addons_optimizer():
    """An optimizer that only Addons has."""
    model = keras.Sequential(
        [
            image(),
            tfa.layers.GroupNormalization(groups=3),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3, "sigmoid"),
        ]
    )
    optimizer = tfa.optimizers.Lookahead(tfa.optimizers.RectifiedAdam(0.01))
    model.compile(optimizer, "binary_crossentropy", metrics=["accuracy"])
    return model


def addons_loss():
    """A loss and a metric that only Addons has; and no input shape before the first call."""
    model = keras.Sequential(
        [
            layers.Flatten(),
            layers.Dense(4),
            tfa.layers.GroupNormalization(groups=2),
            layers.Dense(3),
        ]
    )
    loss = tfa.losses.SigmoidFocalCrossEntropy(from_logits=True)
    model.compile("adam", loss, metrics=["mae", tfa.metrics.HammingLoss("multiclass")])
    model(np.zeros((1, 5, 5, 6), "float32"))
    return model


def keras_layers():
    """Keras' layers whose config changed in Keras 3, or with a name that Addons has too."""
    inputs = keras.Input((6, 6, 4))
    x = layers.DepthwiseConv2D(3, depth_multiplier=2)(inputs)
    x = layers.SeparableConv2D(6, 3, activation=tf.nn.relu)(x)
    x = layers.GroupNormalization(groups=2)(x)
    x = tfa.layers.GroupNormalization(groups=3)(x)
    x = layers.LayerNormalization(axis=[-1])(layers.Reshape((4, 6))(x))
    attention = layers.MultiHeadAttention(2, 3)
    x = layers.Add()([x, attention(x, value=x)])
    x = layers.Dense(6, activation=tfa.activations.mish)(x)
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))
    model.compile(keras.optimizers.Adagrad(0.01), "mse")
    return model


def legacy_optimizer():
    """The optimizer that Keras 2.11 kept as `legacy`."""
    model = keras.Sequential(
        [
            image(),
            tfa.layers.InstanceNormalization(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3, activation="softmax"),
        ]
    )
    model.compile(
        keras.optimizers.legacy.Adam(0.01, decay=1e-3), "categorical_crossentropy", metrics=["acc"]
    )
    return model


def weight_normalized():
    """WeightNormalization of convolutions, with the clone for data_init and without."""
    model = keras.Sequential(
        [
            image(),
            tfa.layers.WeightNormalization(layers.Conv2D(4, 3, activation="relu")),
            tfa.layers.WeightNormalization(layers.Conv2D(4, 3, use_bias=False), data_init=False),
            layers.Flatten(),
            tfa.layers.WeightNormalization(layers.Dense(3), data_init=False),
        ]
    )
    model.compile("adam", "mse")
    return model


def spectral_normalized():
    """SpectralNormalization of a convolution and an embedding."""
    inputs = keras.Input((7,))
    x = tfa.layers.SpectralNormalization(layers.Embedding(9, 6))(inputs)
    x = tfa.layers.SpectralNormalization(
        layers.Conv1D(4, 3, activation="relu"), power_iterations=2
    )(x)
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))
    model.compile("adam", "mse")
    return model


def learned_epsilon():
    """Filter response normalization with a learned epsilon, and TLU."""
    model = keras.Sequential(
        [
            image(),
            tfa.layers.FilterResponseNormalization(
                learned_epsilon=True, learned_epsilon_constraint="non_neg", epsilon=1e-4
            ),
            tfa.layers.TLU(affine=True, tau_initializer="random_uniform"),
            layers.Conv2D(4, 3),
            tfa.layers.FilterResponseNormalization(axis=[1, 2]),
            tfa.layers.TLU(),
            tfa.layers.PoincareNormalize(axis=-1),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )
    model.compile("adam", "mse")
    return model


def recurrent():
    """Cells with normalization inside the step, alone and stacked."""
    inputs = keras.Input((5, 4))
    x = layers.RNN(tfa.rnn.LayerNormLSTMCell(4), return_sequences=True)(inputs)
    x = layers.RNN(
        [tfa.rnn.LayerNormSimpleRNNCell(3), tfa.rnn.LayerNormLSTMCell(3)], return_sequences=True
    )(x)
    x = layers.RNN(tfa.rnn.LayerNormSimpleRNNCell(4, use_bias=False))(x)
    model = keras.Model(inputs, layers.Dense(3)(x))
    model.compile("adam", "mse")
    return model


def masked():
    """A mask that Addons' statistics ignored and the LSTM behind them does not."""
    inputs = keras.Input((6,))
    x = layers.Embedding(9, 4, mask_zero=True)(inputs)
    x = tfa.layers.GroupNormalization(groups=2)(x)
    x = tfa.layers.InstanceNormalization()(x)
    model = keras.Model(inputs, layers.Dense(3)(layers.LSTM(4)(x)))
    model.compile("adam", "mse")
    return model


def lambdas():
    """Code in the file, in a model inside the model."""
    inner = keras.Sequential([keras.Input((5, 5, 6)), layers.Lambda(lambda x: x * 2)], name="inner")
    model = keras.Sequential([image(), inner, tfa.layers.InstanceNormalization(), layers.Flatten()])
    model.add(layers.Dense(3))
    model.compile("adam", "mse")
    return model


@keras.utils.register_keras_serializable("mine")
class Shift(layers.Layer):
    """A user's layer."""

    def __init__(self, by=1.0, **kwargs):
        super().__init__(**kwargs)
        self.by = by

    def build(self, shape):
        self.factor = self.add_weight(name="factor", shape=(shape[-1],), initializer="ones")

    def call(self, x):
        return x * self.factor + self.by

    def get_config(self):
        return {**super().get_config(), "by": self.by}


def custom():
    """Layers that neither Keras 3 nor truenorm has, at three places."""
    inner = keras.Sequential(
        [keras.Input((5, 5, 6)), Shift(2.0, name="shift_inside")], name="inner"
    )
    inputs = image()
    x = layers.TimeDistributed(Shift(name="shift_wrapped"), name="timed")(inner(inputs))
    x = tfa.layers.Maxout(3, name="maxout")(tfa.layers.GroupNormalization(groups=2)(x))
    x = x + 1.0
    model = keras.Model(inputs, head(x))
    model.compile("adam", "mse")
    return model


def mixed():
    """Half precision with a scaled loss."""
    half = keras.mixed_precision.Policy("mixed_float16")
    model = keras.Sequential(
        [
            image(),
            tfa.layers.GroupNormalization(groups=3, dtype=half),
            layers.GlobalAveragePooling2D(dtype=half),
            layers.Dense(3, dtype="float32"),
        ]
    )
    model.compile(keras.mixed_precision.LossScaleOptimizer(keras.optimizers.Adam(0.01)), "mse")
    return model


def batch_normalized():
    """What of Keras 2's batch normalization not every Keras 3 has."""
    x = inputs = image()
    clips = {"rmin": 0.8, "rmax": 1.3, "dmax": 0.4}
    for norm in (
        layers.BatchNormalization(renorm=True, momentum=0.8, name="corrected"),
        layers.BatchNormalization(
            renorm=True, renorm_clipping=clips, renorm_momentum=0.7, momentum=0.8, name="clipped"
        ),
        layers.BatchNormalization(axis=[1, 3], momentum=0.8, name="of_rows"),
        layers.experimental.SyncBatchNormalization(momentum=0.8, name="synchronized"),
    ):
        x = norm(layers.Conv2D(6, 3, padding="same", activation="relu")(x))
    model = keras.Model(inputs, head(x))
    model.compile(keras.optimizers.SGD(0.05), "mse")
    return model


def virtual_batches():
    """Batch normalization of two samples at a time: Keras 2 took the first and the third, ..."""
    x = inputs = image()
    x = layers.Conv2D(6, 3, padding="same", activation="relu")(x)
    x = layers.BatchNormalization(virtual_batch_size=2, momentum=0.8)(x)
    model = keras.Model(inputs, head(x))
    model.compile(keras.optimizers.SGD(0.05), "mse")
    return model


NORMALIZATIONS = (
    tfa.layers.GroupNormalization,
    tfa.layers.InstanceNormalization,
    tfa.layers.FilterResponseNormalization,
)
MODELS = {
    branches: EVERYTHING,
    nested: EVERYTHING,
    wrappers: (*FILES, "checkpoint"),
    channels_first: FILES,
    arguments: FILES,
    addons_optimizer: (*FILES[:2], "saved_model"),
    addons_loss: FILES[:2],
    keras_layers: (*FILES, "checkpoint"),
    legacy_optimizer: (*FILES[:2], "checkpoint"),
    weight_normalized: EVERYTHING,
    spectral_normalized: EVERYTHING,
    learned_epsilon: EVERYTHING,
    recurrent: (*FILES, "checkpoint"),
    masked: FILES,
    lambdas: FILES[:2],
    custom: FILES[:2],
    mixed: FILES[:2],
    batch_normalized: (*FILES, "checkpoint"),
    virtual_batches: (*FILES, "checkpoint"),
}


def random_input(model, rng):
    shape = (4, *model.input_shape[1:])
    if any(isinstance(layer, layers.Embedding) for layer in model._flatten_layers()):
        x = rng.integers(1, 9, shape).astype("float32")
        x[:, -2:] = 0
        return x
    return rng.normal(0.3, 1.5, shape).astype("float32")


def make(build, formats):
    keras.backend.clear_session()
    keras.utils.set_random_seed(1)
    rng = np.random.default_rng(2)
    model = build()
    x = random_input(model, rng)
    outputs = model.outputs
    targets = [
        keras.utils.to_categorical(np.arange(4) % one.shape[-1], one.shape[-1]) for one in outputs
    ]
    target = targets if len(targets) > 1 else targets[0]
    for _ in range(3):
        model.train_on_batch(x, target)
    stored = {"x": x}
    stored |= {f"y{i}": y for i, y in enumerate(aslist(model.predict(x, verbose=0)))}
    stored |= {f"target{i}": y for i, y in enumerate(targets)}
    norms = [one for one in model.layers if isinstance(one, NORMALIZATIONS)]
    for layer in norms:
        both = keras.Model(model.inputs, [layer.input, layer.output])
        taken = both.predict(x, verbose=0)
        stored |= {f"{layer.name}/in": taken[0], f"{layer.name}/out": taken[1]}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for name in formats:
            path = folder / name
            try:
                if name == "weights.h5":
                    model.save_weights(path, save_format="h5")
                elif name == "model.weights.h5":
                    model.save_weights(path)
                elif name == "checkpoint":
                    path.mkdir()
                    model.save_weights(path / "weights", save_format="tf")
                else:
                    model.save(path)
            except Exception as error:
                print(f"{build.__name__}: no {name}: {type(error).__name__}: {str(error)[:150]}")
                path.unlink(missing_ok=True)
        model.train_on_batch(x, target)
        stored |= {f"next{i}": y for i, y in enumerate(aslist(model.predict(x, verbose=0)))}
        np.savez(folder / "io.npz", **stored)
        with zipfile.ZipFile(
            HERE / f"{build.__name__}.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9
        ) as z:
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    z.write(path, path.relative_to(folder))


def aslist(value):
    return value if isinstance(value, list) else [value]


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    for build, formats in MODELS.items():
        if not sys.argv[1:] or build.__name__ in sys.argv[1:]:
            make(build, formats)
            print(build.__name__)
