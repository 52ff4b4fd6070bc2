"""Whole scripts as people wrote them for TensorFlow Addons: they compile, the covered ones run."""

import textwrap

import pytest

pytest.importorskip("libcst", reason="migrate-code needs LibCST")

from truenorm.tools.migrate_code.rewrite import rewrite

# Those that truenorm and Keras cover: the new code runs on Keras 3.
COVERED = {
    "GAN": """
        from keras import layers, Model, Input, initializers
        import tensorflow_addons as tfa

        gamma_init = initializers.RandomNormal(mean=0.0, stddev=0.02)

        def downsample(x, filters, norm_type="instance", **options):
            x = layers.Conv2D(filters, 4, strides=2, padding="same", use_bias=False)(x)
            if norm_type == "instance":
                x = tfa.layers.InstanceNormalization(gamma_initializer=gamma_init)(x)
            return layers.Activation("relu")(x)

        img = Input(shape=(16, 16, 3))
        out = downsample(downsample(img, 4), 8)
        result = Model(img, tfa.layers.SpectralNormalization(layers.Conv2D(1, 3))(out))
        """,
    "GAN, with the class imported": """
        try:
            from tensorflow_addons.layers import InstanceNormalization, SpectralNormalization
        except ImportError:
            raise SystemExit("pip install it")
        import keras
        class Residual(keras.layers.Layer):
            def __init__(self, filters):
                super().__init__()
                self.norm = InstanceNormalization(axis=-1, center=True, scale=True, epsilon=1e-5)
                self.conv = SpectralNormalization(keras.layers.Conv2D(filters, 3, padding="same"))
            def call(self, x):
                return x + self.norm(self.conv(x))
        result = keras.Sequential([keras.Input((8, 8, 4)), Residual(4)])
        """,
    "segmentation": """
        import keras
        import tensorflow_addons as tfa
        from keras.layers import Conv2D, Input, MaxPooling2D, UpSampling2D, concatenate
        L = tfa.layers
        NORMS = {"group": lambda: L.GroupNormalization(groups=2, axis=3),
                 "frn": lambda: L.FilterResponseNormalization()}
        def block(x, n, norm):
            x = NORMS[norm]()(Conv2D(n, 3, padding="same")(x))
            return tfa.activations.mish(x)
        inputs = Input((8, 8, 2))
        c1 = block(inputs, 4, "group")
        c2 = block(MaxPooling2D()(c1), 4, "frn")
        result = keras.Model(inputs, block(concatenate([c1, UpSampling2D()(c2)]), 2, "group"))
        """,
    "tabular": """
        import keras
        import tensorflow_addons as tfa
        from tensorflow_addons.activations import sparsemax, gelu, lisht
        inputs = keras.layers.Input(shape=(6,))
        x = tfa.layers.WeightNormalization(keras.layers.Dense(4, activation=sparsemax))(inputs)
        x = keras.layers.Dense(4, activation=tfa.activations.tanhshrink)(gelu(x))
        result = keras.Model(inputs, lisht(x))
        """,
    "recurrent": """
        import keras
        import tensorflow_addons.rnn as tfr
        from tensorflow_addons.rnn.layer_norm_lstm_cell import LayerNormLSTMCell
        result = keras.Sequential([
            keras.Input((5, 3)),
            keras.layers.RNN(LayerNormLSTMCell(4), return_sequences=True),
            keras.layers.RNN(tfr.LayerNormSimpleRNNCell(4)),
        ])
        """,
}
# Those that need more: the new code compiles, and these are listed.
PARTLY = {
    "optimizers": (
        """
        import tensorflow as tf
        import tensorflow_addons as tfa
        model = tf.keras.Sequential([tf.keras.layers.Dense(4, input_dim=3),
                                     tfa.layers.GroupNormalization(groups=2)])
        opt = tfa.optimizers.Lookahead(tfa.optimizers.RectifiedAdam(lr=1e-3), sync_period=6)
        model.compile(opt, loss=tfa.losses.SigmoidFocalCrossEntropy())
        model.fit_generator(data, workers=4)
        model.save("out")
        """,
        {
            "tfa.optimizers.Lookahead",
            "tfa.optimizers.RectifiedAdam",
            "tfa.losses.SigmoidFocalCrossEntropy",
            ".fit_generator()",
            "save('out')",
        },
    ),
    "text": (
        """
        import tensorflow as tf
        from tensorflow_addons.text import crf_log_likelihood, crf_decode
        from tensorflow_addons import activations as act, layers
        from keras_contrib.layers import CRF
        ids = tf.keras.layers.Input(shape=(7,), dtype="int32")
        x = tf.keras.layers.Embedding(9, 4, input_length=7)(ids)
        x = tf.keras.layers.CuDNNLSTM(4)(act.gelu(x))
        x = tf.nn.l2_normalize(layers.TLU()(x), axis=-1)
        scores = crf_decode(x), crf_log_likelihood(x)
        """,
        {
            "tfa.text.crf_decode",
            "tfa.text.crf_log_likelihood",
            "keras_contrib.layers.CRF",
            "Embedding(input_length=)",
            "keras.layers.CuDNNLSTM",
            "tf.nn.l2_normalize",
        },
    ),
    "metric learning": (
        """
        import tensorflow_addons as tfa
        from tensorflow.keras.optimizers import Adam
        model.compile(optimizer=Adam(lr=0.001), loss=tfa.losses.TripletSemiHardLoss(margin=0.2),
                      metrics=[tfa.metrics.F1Score(num_classes=3, average="macro")])
        head = tfa.layers.PoincareNormalize()
        """,
        {"tfa.losses.TripletSemiHardLoss", "tfa.metrics.F1Score", "Adam(lr=)"},
    ),
    "pix2pix of keras_contrib": (
        """
        from keras_contrib.layers.normalization.instancenormalization import InstanceNormalization
        from keras.layers.advanced_activations import LeakyReLU
        from keras.layers import Input, Conv2D
        def d_layer(layer_input, filters, f_size=4):
            d = Conv2D(filters, kernel_size=f_size, strides=2, padding="same")(layer_input)
            d = LeakyReLU(alpha=0.2)(d)
            return InstanceNormalization()(d)
        """,
        {
            "keras_contrib InstanceNormalization",
            "keras.layers.advanced_activations",
            "LeakyReLU(alpha=)",
            "keras_contrib.layers.normalization.instancenormalization.InstanceNormalization",
        },
    ),
    "images": (
        """
        import tensorflow as tf, tensorflow_addons as tfa
        @tf.function
        def augment(image, label):
            image = tfa.image.rotate(image, 0.3)
            return tfa.image.random_cutout(image, (4, 4)), label
        callbacks = [tfa.callbacks.TQDMProgressBar(), tf.keras.callbacks.ModelCheckpoint("best")]
        """,
        {
            "tfa.image.rotate",
            "tfa.image.random_cutout",
            "tfa.callbacks.TQDMProgressBar",
            "ModelCheckpoint('best')",
        },
    ),
}


@pytest.mark.parametrize("name", COVERED)
def test_a_covered_script_needs_addons_no_more_and_runs(name):
    result = rewrite(textwrap.dedent(COVERED[name]).encode())
    assert result.uses == []
    assert b"tensorflow_addons" not in result.source
    namespace = {"__name__": "script"}
    exec(compile(result.source, name, "exec"), namespace)
    assert all(size is None or size > 0 for size in namespace["result"].output_shape)


@pytest.mark.parametrize("name", PARTLY)
def test_another_script_compiles_and_what_is_left_is_listed_once(name):
    source, left = PARTLY[name]
    result = rewrite(textwrap.dedent(source).encode())
    compile(result.source, name, "exec")
    assert {use.name for use in result.uses} == left
    assert len(result.uses) == len(left)
