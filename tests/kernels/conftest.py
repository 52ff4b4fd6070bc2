"""test_<backend>.py is for one backend, and is collected where that one is active."""

import keras

collect_ignore = [
    f"test_{name}.py" for name in ("jax", "tensorflow", "torch") if name != keras.backend.backend()
]
