"""Train a small network on data of mean 1000 with Keras' batch normalization, and with truenorm's.

KERAS_BACKEND=torch python benchmarks/far_from_zero.py [--mean 1000] [--deviation 0.1]

prints the loss of some steps, from the same weights and batches.
"""

import argparse

import keras
import numpy as np

import truenorm


def losses(cls: type, x: np.ndarray, y: np.ndarray, epochs: int) -> list[float]:
    """The loss after each epoch."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input(x.shape[1:]), cls(), keras.layers.Dense(16, "relu"), keras.layers.Dense(1)]
    )
    model.compile(keras.optimizers.SGD(0.05), "mse", jit_compile=False)
    history = model.fit(x, y, batch_size=32, epochs=epochs, shuffle=False, verbose=0)
    return [float(one) for one in history.history["loss"]]


def main() -> None:
    """Print a row for each layer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mean", type=float, default=1000.0)
    parser.add_argument("--deviation", type=float, default=0.1)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    standard = rng.normal(0, 1, (256, 8))
    x = (given.mean + given.deviation * standard).astype("float32")
    y = (standard[:, :1] * standard[:, 1:2] > 0).astype("float32")
    print(f"Keras {keras.__version__} on {keras.backend.backend()}, loss after epoch 1, 5 and 25")
    for name, cls in (
        ("keras.layers", keras.layers.BatchNormalization),
        ("truenorm", truenorm.BatchNormalization),
    ):
        found = losses(cls, x, y, 25)
        print(f"{name + '.BatchNormalization':34}", *(f"{found[i]:8.4f}" for i in (0, 4, 24)))


if __name__ == "__main__":
    main()
