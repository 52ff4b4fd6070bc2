"""The examples of docs/coming-from-jax.md run where there is no Keras."""

import pathlib
import re

import pytest

PAGE = pathlib.Path(__file__).parents[3] / "docs" / "coming-from-jax.md"


def test_the_examples():
    equinox = pytest.importorskip("equinox")
    pytest.importorskip("flax")
    names: dict = {}
    for example in re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.S | re.M):
        exec(compile(example, PAGE.name, "exec"), names)
    assert issubclass(names["GroupNorm"], equinox.Module)
