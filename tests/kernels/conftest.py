"""test_<backend>_binding.py is for one backend, and is collected where that one is active."""

import keras

collect_ignore = [
    f"test_{name}_binding.py"
    for name in ("jax", "tensorflow", "torch")
    if name != keras.backend.backend()
]
