"""`show_config`: what is installed, and which implementations can be used."""

import importlib.metadata
import platform

import keras

from evenkeel import implementation, native
from evenkeel.kernels import library


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _native_text() -> str:
    """The instruction set and the threads of the kernels."""
    count = library.threads()
    return f"usable ({library.isa()}, {count} thread{'s' if count > 1 else ''})"


def config_text() -> str:
    """Versions, the backend, and for every implementation whether it is usable, as lines."""
    versions = {
        "evenkeel": _version("evenkeel"),
        "python": platform.python_version(),
        "keras": keras.__version__,
        "numpy": _version("numpy"),
        "tensorflow": next(
            (
                found
                for name in ("tensorflow", "tensorflow-cpu")
                if (found := _version(name)) != "not installed"
            ),
            "not installed",
        ),
        "jax": _version("jax"),
        "torch": _version("torch"),
    }
    usable = {"native": native.UNAVAILABLE or _native_text(), "plain": "usable (keras.ops)"}
    lines = [f"{name:<12}{version}" for name, version in versions.items()]
    lines += [f"{'backend':<12}{keras.backend.backend()}", f"{'machine':<12}{platform.machine()}"]
    lines += [f"{name:<12}{usable[name]}" for name in implementation.NAMES]
    return "\n".join(lines)


def show_config() -> None:
    """Print versions, the Keras backend, and which implementations are usable and why not."""
    print(config_text())
