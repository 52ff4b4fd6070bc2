"""Three normalizations in the small convolutional network of the classic tutorial, on MNIST.

    KERAS_BACKEND=jax python examples/tutorial.py
    KERAS_BACKEND=torch python examples/tutorial.py --data FILE.npz

Each model is trained for one epoch on 10,000 images and evaluated on the test images. FILE.npz
holds x_train, y_train, x_test, y_test in MNIST's layout; without it Keras downloads MNIST.
"""

import argparse

import keras
import numpy as np

import evenkeel

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--data", metavar="FILE.npz", help="images and labels, instead of a download")
options = parser.parse_args()
if options.data is None:
    (x_train, y_train), (x_test, y_test) = keras.datasets.mnist.load_data()
else:
    with np.load(options.data) as data:
        x_train, y_train, x_test, y_test = (
            data[name] for name in ("x_train", "y_train", "x_test", "y_test")
        )
x_train, x_test = (x.astype("float32") / 255 for x in (x_train[:10_000], x_test))

normalizations = [
    evenkeel.GroupNormalization(groups=5, axis=3),
    evenkeel.InstanceNormalization(
        axis=3,
        center=True,
        scale=True,
        beta_initializer="random_uniform",
        gamma_initializer="random_uniform",
    ),
    evenkeel.LayerNormalization(axis=3, center=True, scale=True),  # each pixel over its channels
]
for normalization in normalizations:
    print(type(normalization).__name__)
    model = keras.Sequential(
        [
            keras.layers.Reshape((28, 28, 1)),
            keras.layers.Conv2D(10, (3, 3)),
            normalization,
            keras.layers.Flatten(),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(x_train, y_train[: len(x_train)])
    model.evaluate(x_test, y_test)
