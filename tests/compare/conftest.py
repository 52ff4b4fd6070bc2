"""A tiny data file, and the command in its own process."""

import os
import pathlib
import subprocess
import sys
from collections.abc import Callable

import keras
import numpy as np
import pytest
from tiny import arrays

ROOT = pathlib.Path(__file__).parents[2]
COMMAND = [sys.executable, "-c", "import sys; from truenorm.cli import main; sys.exit(main())"]


@pytest.fixture
def npz(tmp_path) -> pathlib.Path:
    """An npz file with 48 images to train on and 48 to test on."""
    path = tmp_path / "images.npz"
    np.savez(path, **arrays())
    return path


@pytest.fixture
def start() -> Callable[..., "subprocess.Popen[str]"]:
    """Start `truenorm compare` with these arguments on the backend of this test process."""
    started = []

    def run(*arguments: object) -> "subprocess.Popen[str]":
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT / "src"),
            "KERAS_BACKEND": keras.backend.backend(),
        }
        process = subprocess.Popen(
            [*COMMAND, "compare", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()
