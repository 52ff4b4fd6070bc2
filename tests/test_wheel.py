"""The wheel in an empty environment: with the native kernels, and built without a compiler."""

import os
import pathlib
import re
import shutil
import subprocess
import venv
import zipfile

import keras
import pytest

ROOT = pathlib.Path(__file__).parents[1]
PROGRAM = """
import numpy as np, truenorm
x = np.random.default_rng(0).normal(3, 2, (4, 6, 6, 8)).astype("float32")
y = np.asarray(truenorm.ops.group_normalization(x, groups=4, implementation={implementation!r}))
assert abs(y.mean()) < 1e-6 and abs(y.std() - 1) < 1e-3, (y.mean(), y.std())
print("computed")
"""
TRAINING = """
import keras, numpy as np, truenorm
layers = [keras.Input((6, 8)), truenorm.GroupNormalization(4), keras.layers.Dense(1)]
model = keras.Sequential(layers)
model.compile(keras.optimizers.Adam(0.1), "mse")
x = np.random.default_rng(0).normal(3, 2, (32, 6, 8)).astype("float32")
model.fit(x, x[..., :1], epochs=8, verbose=0)
losses = model.history.history["loss"]
assert losses[-1] < 0.5 * losses[0], losses
print("trained")
"""

pytestmark = pytest.mark.skipif(keras.backend.backend() != "jax", reason="runs once, under JAX")


def run(*command, cwd, path=None):
    """Output of a command that knows nothing of this environment but its package index."""
    other = ("PYTHON", "KERAS", "VIRTUAL_ENV", "CC", "CXX", "CMAKE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(other)}
    environment = kept | {"KERAS_BACKEND": "jax"} | ({} if path is None else {"PATH": path})
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """An environment with JAX and what truenorm depends on."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    pip(python, "install", "jax", "keras", cwd=folder)
    return python


def pip(python, command, *arguments, cwd, path=None):
    quiet = ["--quiet", "--disable-pip-version-check", "-c", ROOT / "constraints.txt"]
    return run(python, "-m", "pip", command, *quiet, *arguments, cwd=cwd, path=path)


def install(python, folder, path=None):
    """Build a wheel from a copy of the sources and install it; return its path."""
    tracked = run("git", "ls-files", "-z", cwd=ROOT).split("\0")
    for name in filter(None, tracked):
        if (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "source" / name)
    pip(python, "wheel", "--no-deps", "-w", folder, folder / "source", cwd=folder, path=path)
    (wheel,) = folder.glob("*.whl")
    pip(python, "install", "--no-deps", "--force-reinstall", wheel, cwd=folder)
    shutil.rmtree(folder / "source")
    return wheel


@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")
def test_with_native_kernels(python, tmp_path):
    wheel = install(python, tmp_path)
    assert re.fullmatch(r"truenorm-[\d.]+-py3-none-\w+\.whl", wheel.name)
    # Nothing lies where another package may have a file.
    folders = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert folders == {"truenorm", "truenorm-0.1.0.dist-info"}
    shown = run(python.parent / "truenorm", "config", cwd=tmp_path)
    assert re.search(r"native +usable \(\w+, \d+ threads?\)", shown)
    assert run(python, "-c", PROGRAM.format(implementation="native"), cwd=tmp_path) == "computed\n"
    assert run(python, "-c", TRAINING, cwd=tmp_path) == "trained\n"


def test_without_a_compiler(python, tmp_path):
    assert shutil.which("c++", path=str(python.parent)) is None
    install(python, tmp_path, path=str(python.parent))
    shown = run(python.parent / "truenorm", "config", cwd=tmp_path)
    assert "native      this build of truenorm has no native kernels" in shown
    assert run(python, "-c", PROGRAM.format(implementation=None), cwd=tmp_path) == "computed\n"
