"""Which backend Keras takes, and whether it is installed: asked before Keras is imported.

Keras fixes its backend when it is first imported, and where that is not installed it fails from
inside. So nothing here imports Keras; `watch_keras` waits for whoever does.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import os
import pathlib
import sys
import types
import warnings
from collections.abc import Sequence

PACKAGES = {
    "jax": "jax",
    "tensorflow": "tensorflow",
    "torch": "torch",
    "numpy": "numpy",
    "openvino": "openvino",
}
TRAINING = ("jax", "tensorflow", "torch")
DEFAULT = "tensorflow"  # Keras' own; it also writes this into its configuration file, unasked
OLDEST_KERAS = (3, 10)


def installed_backends() -> list[str]:
    """The backends whose package is there."""
    return [name for name, package in PACKAGES.items() if is_package(package)]


def is_package(name: str) -> bool:
    """Whether it can be imported; a mere folder of that name, which Python takes too, is none."""
    found = importlib.util.find_spec(name)
    return found is not None and found.origin is not None


def configuration_file() -> pathlib.Path:
    """Where Keras keeps its configuration."""
    home = os.environ.get("KERAS_HOME")
    return (pathlib.Path(home) if home else pathlib.Path.home() / ".keras") / "keras.json"


def configured_backend() -> str | None:
    """The backend that Keras would take: KERAS_BACKEND, else its configuration file."""
    if name := os.environ.get("KERAS_BACKEND"):
        return name
    import json  # here, as metadata below: `import truenorm` is to be quick

    try:
        name = json.loads(configuration_file().read_text()).get("backend")
    except (OSError, ValueError, AttributeError):
        return None
    return name if isinstance(name, str) else None


def choose_backend(requested: str | None) -> str:
    """Return the requested backend, else the configured one, else the first that is installed.

    Raises:
        LookupError: the backend is unknown or not installed; the message says how to install it.
    """
    installed = installed_backends()
    if requested is not None and requested not in PACKAGES:
        raise LookupError(f"unknown backend {requested!r}; expected one of {', '.join(PACKAGES)}")
    if requested is not None and requested not in installed:
        raise LookupError(
            f"the backend {requested!r} is not installed; install it with "
            f"pip install {PACKAGES[requested]!r}, or choose one that is: {', '.join(installed)}"
        )
    configured = configured_backend()
    if requested is None and configured in installed:
        requested = configured
    return requested or installed[0]


def prepare_keras() -> None:
    """See to it that `import keras` will work, before it is tried; once it is imported, do nothing.

    A backend that somebody chose is never changed. Where nobody did, Keras' default is not
    installed and one other is, that one is taken, with a warning.

    Raises:
        ImportError: Keras, or the backend that it would take, is not there; says what to do.
    """
    if "keras" in sys.modules:
        return
    _check_keras()
    installed = installed_backends()
    name = configured_backend() or DEFAULT
    if name in installed:
        return
    others = [one for one in TRAINING if one in installed]
    if os.environ.get("KERAS_BACKEND"):
        problem = f"the environment variable KERAS_BACKEND names the backend {name!r}"
    elif configured_backend():
        problem = f"{configuration_file()} names the backend {name!r}"
    else:
        problem = f"no backend was chosen, and Keras' default is {name!r}"
    problem += ", which is not installed" if name in PACKAGES else ", which Keras does not have"
    if not others:
        raise ImportError(f"{problem}, nor is another: pip install one of {', '.join(TRAINING)}.")
    fix = f"set the environment variable KERAS_BACKEND={' or '.join(others)}"
    if name == DEFAULT and len(others) == 1 and not os.environ.get("KERAS_BACKEND"):
        os.environ["KERAS_BACKEND"] = others[0]
        taken = f"truenorm takes {others[0]!r}, the only one that is; {fix} to choose it."
        warnings.warn(f"{problem}: {taken}", UserWarning, stacklevel=3)
        return
    if name in PACKAGES:
        fix += f", or pip install {PACKAGES[name]}"
    raise ImportError(f"{problem}: {fix}.")


def watch_keras() -> None:
    """Once Keras is imported, import its front too, before which `prepare_keras` is called.

    Keras opens a file with truenorm's layers only where they are registered, and a program that
    opens one need not name them: `import truenorm` has always been enough.
    """
    if "keras" in sys.modules:
        _register_layers()
    elif not any(isinstance(one, _KerasFinder) for one in sys.meta_path):
        sys.meta_path.insert(0, _KerasFinder())


def _register_layers() -> None:
    importlib.import_module("truenorm.layers")
    importlib.import_module("truenorm.rnn")


class _KerasFinder(importlib.abc.MetaPathFinder):
    """Finds Keras where the other finders do, with a loader that does more."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "keras":
            return None
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(fullname, path, target)):
                if spec.loader is not None:
                    spec.loader = _KerasLoader(spec.loader)
                return spec
        return None


class _KerasLoader(importlib.abc.Loader):
    """Loads Keras between the question about its backend and the registration of the layers."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self.loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        prepare_keras()
        return self.loader.create_module(spec)

    def exec_module(self, module: types.ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader  # what Keras, and who inspects it, sees
        module.__loader__ = self.loader
        self.loader.exec_module(module)
        _register_layers()


def _check_keras() -> None:
    if not is_package("keras"):
        raise ImportError(
            "Keras, which this part of truenorm needs, is not installed: pip install keras. "
            "truenorm.torch and truenorm.jax do without."
        )
    import importlib.metadata

    try:
        version = importlib.metadata.version("keras")
    except importlib.metadata.PackageNotFoundError:  # a nightly build, or a path of sources
        return
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_KERAS:
        oldest = ".".join(map(str, OLDEST_KERAS))
        raise ImportError(
            f"Keras {version} is installed, and truenorm needs {oldest} or newer: "
            "pip install --upgrade keras."
        )
