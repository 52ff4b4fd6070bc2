"""What every test shares: the backend in the header, and seeded random numbers."""

import keras
import numpy as np
import pytest


def pytest_report_header() -> str:
    return f"keras {keras.__version__}, backend: {keras.backend.backend()}"


@pytest.fixture(autouse=True)
def _seed() -> None:
    keras.utils.set_random_seed(0)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
