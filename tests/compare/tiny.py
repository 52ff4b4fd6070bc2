"""Tiny data to train on."""

import numpy as np


def arrays(count: int = 48, height: int = 6, width: int = 5) -> dict[str, np.ndarray]:
    """Images whose brightness tells their label, so that a model learns something."""
    rng = np.random.default_rng(7)
    labels = rng.integers(0, 10, 2 * count)
    images = rng.random((2 * count, height, width)) * 50 + labels[:, None, None] * 20
    images = images.astype("uint8")
    return {
        "x_train": images[:count],
        "y_train": labels[:count],
        "x_test": images[count:],
        "y_test": labels[count:],
    }
