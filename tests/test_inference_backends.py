"""Keras' backends that cannot train compute the same."""

from pathlib import Path

import pytest

from processes import installed, run_python


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["numpy", "openvino"])
def test_every_layer_and_function(backend):
    if not installed(backend):
        pytest.skip(f"{backend} is not installed")
    printed = run_python(backend, Path(__file__).with_name("infer.py")).splitlines()
    assert len(printed) == 14 * 3 * 4
    assert all(line.startswith("right") for line in printed)
