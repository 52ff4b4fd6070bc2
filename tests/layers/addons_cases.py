"""What TensorFlow Addons computed with its two wrappers: see tests/data/make_addons_wrappers.py."""

import json
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).parent.parent / "data"


def cases(file: str) -> dict[str, dict[str, Any]]:
    """The arrays of each case by name, `case` being the list that the script has."""
    grouped: dict[str, dict[str, Any]] = {}
    with np.load(DATA / file) as arrays:
        for path, value in arrays.items():
            name, key = path.split("/", 1)
            grouped.setdefault(name, {})[key] = json.loads(str(value)) if key == "case" else value
    return grouped


def split(vector: np.ndarray, shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    """The arrays of these shapes that one vector holds."""
    ends = np.cumsum([np.prod(shape, dtype=int) for shape in shapes])
    assert ends[-1] == vector.size
    return [
        part.reshape(shape) for part, shape in zip(np.split(vector, ends[:-1]), shapes, strict=True)
    ]
