"""The models that TensorFlow Addons saved (tests/data/addons), unpacked once."""

import pathlib
import zipfile

import numpy as np
import pytest

DATA = pathlib.Path(__file__).parents[1] / "data" / "addons"


@pytest.fixture(scope="session")
def addons(tmp_path_factory):
    """A function from a model's name to the folder with its files."""
    root = tmp_path_factory.mktemp("addons")

    def folder(name: str) -> pathlib.Path:
        if not (root / name).exists():
            with zipfile.ZipFile(DATA / f"{name}.zip") as archive:
                archive.extractall(root / name)
        return root / name

    return folder


@pytest.fixture(scope="session")
def stored(addons):
    """A function from a model's name to its io.npz."""
    return lambda name: dict(np.load(addons(name) / "io.npz"))
