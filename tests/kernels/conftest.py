"""test_<backend>_*.py is for one backend, and is collected where that one is active."""

import keras

collect_ignore_glob = [
    f"test_{name}_*.py"
    for name in ("jax", "tensorflow", "torch")
    if name != keras.backend.backend()
]
