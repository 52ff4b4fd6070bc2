"""What every test shares: the backend in the header, and seeded random numbers."""

import importlib.util
import os
import pathlib
import signal

import numpy as np
import pytest

# The fronts for PyTorch, JAX and flax are tested where Keras is not installed, too.
KERAS = importlib.util.find_spec("keras") is not None

# A shell lets what it runs in the background ignore Ctrl-C, which some tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What compiles hundreds of functions, or trains for long: `make quick` leaves it out.
SLOW = (
    "tests/derivatives/",
    "tests/fronts/",
    "tests/kernels/",
    "tests/layers/test_dtypes.py",
    "tests/layers/test_masks.py",
    "tests/layers/test_shapes.py",
    "tests/layers/test_torch_compile.py",
    "tests/layers/test_training.py",
    "tests/layers/test_weight_normalization.py",
    "tests/layers/test_wrappers.py",
    "tests/layers/test_wrappers_inside.py",
    "tests/migrate/",
    "tests/test_addons_classes.py",
    "tests/test_carry.py",
    "tests/test_exports.py",
    "tests/test_fold.py",
    "tests/test_freeze.py",
    "tests/test_inference_backends.py",
    "tests/test_numbers.py::test_float64",
    "tests/test_numbers.py::test_half_precision",
    "tests/test_numbers.py::test_keras_agrees",
    "tests/test_numbers.py::test_masked_nan",
    "tests/test_numbers.py::test_nan_and_inf",
    "tests/test_recompute_statistics.py",
    "tests/test_rnn.py",
    "tests/test_surrounded.py::test_the_promise",
    "tests/test_saving.py",
    "tests/test_tutorial.py",
    "tests/test_wheel.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.startswith(SLOW):
            item.add_marker(pytest.mark.slow)


def pytest_report_header() -> str:
    if not KERAS:
        return "Keras is not installed"
    import keras

    return f"keras {keras.__version__}, backend: {keras.backend.backend()}"


def pytest_ignore_collect(collection_path: pathlib.Path) -> bool | None:
    """Where Keras is there, a front is tested once, beside the backend of its framework."""
    folder = collection_path.relative_to(pathlib.Path(__file__).parent).parts[:2]
    if KERAS and len(folder) == 2 and folder[0] == "fronts":
        framework = {"flax": "jax"}.get(folder[1], folder[1])
        return True if os.environ.get("KERAS_BACKEND") != framework else None
    return None


@pytest.fixture(autouse=True)
def _seed() -> None:
    if KERAS:
        import keras

        keras.utils.set_random_seed(0)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
