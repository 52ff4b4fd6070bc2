"""What `import truenorm` and the command say where Keras could not be imported."""

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import warnings
from importlib.machinery import ModuleSpec

import keras
import pytest

import truenorm
from truenorm import backends
from truenorm.cli import main


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """Pretend that these packages are installed, that the file names this backend, and so on."""

    def pretend(installed, variable=None, file=None):
        specs = {name: ModuleSpec(name, None, origin=f"{name}.py") for name in installed}
        specs["torch"] = specs.get("torch", ModuleSpec("torch", None))  # a folder of that name
        monkeypatch.setattr(importlib.util, "find_spec", specs.get)
        monkeypatch.delitem(sys.modules, "keras", raising=False)
        monkeypatch.setenv("KERAS_HOME", str(tmp_path))
        monkeypatch.setenv("KERAS_BACKEND", variable or "")
        if file is not None:
            (tmp_path / "keras.json").write_text(json.dumps({"backend": file}))

    return pretend


@pytest.mark.parametrize(
    ("installed", "chosen"),
    [
        (["keras", "tensorflow"], {}),
        (["keras", "jax"], {"variable": "jax"}),
        (["keras", "jax", "torch"], {"file": "torch"}),
        (["keras", "jax"], {"variable": "jax", "file": "torch"}),
        (["keras", "numpy"], {"variable": "numpy"}),
    ],
)
def test_what_is_installed_is_left_alone(environment, installed, chosen):
    environment(installed, **chosen)
    before = dict(os.environ)
    backends.prepare_keras()
    assert dict(os.environ) == before


@pytest.mark.parametrize("file", [None, "tensorflow"])  # Keras writes it there unasked
def test_the_only_backend_is_taken_and_that_is_said(environment, file):
    environment(["keras", "numpy", "torch"], file=file)
    with pytest.warns(UserWarning, match="takes 'torch', the only one.*KERAS_BACKEND=torch"):
        backends.prepare_keras()
    assert os.environ["KERAS_BACKEND"] == "torch"
    with warnings.catch_warnings(action="error"):
        backends.prepare_keras()


@pytest.mark.parametrize(
    ("installed", "chosen", "sentence"),
    [
        ([], {}, r"^Keras, which this part of truenorm needs, is not installed: pip install "),
        (["keras", "numpy"], {}, r"^no backend was chosen.*nor is another: pip install one of jax"),
        (["keras", "jax", "torch"], {}, r"default is 'tensorflow'.*KERAS_BACKEND=jax or torch, or"),
        (["keras", "jax"], {"file": "torch"}, r"keras\.json names.*'torch', which is not instal"),
        (["keras", "jax"], {"variable": "torch"}, r"variable KERAS_BACKEND names .*'torch', which"),
        (["keras", "jax"], {"variable": "tensorflow"}, r"KERAS_BACKEND=jax, or pip install tensor"),
        (["keras", "jax"], {"variable": "mxnet"}, r"'mxnet', which Keras does not have: set .*jax"),
    ],
)
def test_one_sentence_with_the_fix(environment, installed, chosen, sentence):
    environment(installed, **chosen)
    with pytest.raises(ImportError, match=sentence) as raised:
        backends.prepare_keras()
    assert "\n" not in str(raised.value)


def test_an_old_keras(environment, monkeypatch, capsys):
    environment(["keras", "jax"], variable="jax")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.15.0")
    with pytest.raises(
        ImportError, match=r"^Keras 2\.15\.0 is installed, and truenorm needs 3\.10"
    ):
        backends.prepare_keras()
    assert main(["config"]) == 2
    assert capsys.readouterr().err.startswith("truenorm: Keras 2.15.0 is installed")


def run(program, **options):
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, **options
    )


def test_importing_truenorm_imports_no_framework():
    done = run(
        "import sys, truenorm, truenorm.core.kinds, truenorm.core.plain, truenorm.core.engine\n"
        "found = {'keras', 'jax', 'torch', 'tensorflow', 'flax'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    assert done.returncode == 0, done.stderr


def test_importing_truenorm_reads_no_metadata():
    done = run(
        "import sys; before = set(sys.modules); import truenorm\n"
        "found = {'importlib.metadata', 'json'} & (set(sys.modules) - before)\n"
        "assert not found, found\n"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("program", ["import truenorm, keras", "import keras, truenorm"])
def test_keras_opens_files_with_the_layers_that_nobody_named(program, tmp_path):
    path = str(tmp_path / "model.keras")
    keras.Sequential([keras.Input((4,)), truenorm.RMSNormalization()]).save(path)
    done = run(
        f"{program}\nmodel = keras.saving.load_model({path!r})\n"
        "print(type(model.layers[0]).__module__, keras.__spec__.loader.__class__.__name__)"
    )
    assert done.stdout.split() == ["truenorm.layers.rms_normalization", "SourceFileLoader"]


@pytest.mark.parametrize(
    "name", ["GroupNormalization", "layers", "ops", "rnn", "load_model", "compare", "explain"]
)
def test_public_names_are_imported_where_they_are_used(name):
    done = run(f"import truenorm; assert {name!r} in dir(truenorm); truenorm.{name}")
    assert done.returncode == 0, done.stderr
    done = run(f"from truenorm import {name}")
    assert done.returncode == 0, done.stderr


def test_importing_truenorm_asks_before_keras_does(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", "import truenorm, keras"],
        env=os.environ | {"KERAS_BACKEND": "mxnet", "KERAS_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ImportError: the environment variable KERAS_BA")
    assert "site-packages" not in done.stderr
