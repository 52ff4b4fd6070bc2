"""`show_config`: what is installed, and which implementations can be used."""

import importlib.metadata
import platform

import keras

from truenorm import implementation, native
from truenorm.kernels import library


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _native_text() -> str:
    """The instruction set and the threads of the kernels."""
    count = library.threads()
    return f"usable ({library.isa()}, {count} thread{'s' if count > 1 else ''})"


def facts() -> dict[str, str]:
    """Versions, the backend, and for every implementation whether it is usable, by name."""
    tensorflow = [_version(name) for name in ("tensorflow", "tensorflow-cpu")]
    usable = {"native": native.UNAVAILABLE or _native_text(), "plain": "usable (keras.ops)"}
    return {
        "truenorm": _version("truenorm"),
        "python": platform.python_version(),
        "keras": keras.__version__,
        "numpy": _version("numpy"),
        "tensorflow": min(tensorflow, key=lambda found: found == "not installed"),
        "jax": _version("jax"),
        "torch": _version("torch"),
        "backend": keras.backend.backend(),
        "machine": platform.machine(),
        **{name: usable[name] for name in implementation.NAMES},
    }


def config_text() -> str:
    """The facts, a line each."""
    return "\n".join(f"{name:<12}{fact}" for name, fact in facts().items())


def show_config() -> None:
    """Print versions, the Keras backend, and which implementations are usable and why not."""
    print(config_text())
