"""Python in another process, on a backend of choice."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

TRAINING_BACKENDS = ["jax", "tensorflow", "torch"]


def installed(backend: str) -> bool:
    """Whether a Keras backend can be used here."""
    return backend == "numpy" or importlib.util.find_spec(backend) is not None


def run_python(backend: str, *arguments: str | Path) -> str:
    """Run `python *arguments` on a backend; return what it prints, or fail with what it says."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=os.environ | {"KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"on {backend}:\n{done.stdout}\n{done.stderr}"
    return done.stdout
