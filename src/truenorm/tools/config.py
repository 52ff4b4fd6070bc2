"""`show_config`: what is installed, and which implementations can be used."""

import importlib.metadata
import platform

from truenorm import backends, native, triton
from truenorm.core import engine
from truenorm.native import library


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _native_text() -> str:
    """The instruction set and the threads of the kernels."""
    count = library.threads()
    return f"usable ({library.isa()}, {count} thread{'s' if count > 1 else ''})"


def _gpu_text(framework: str) -> str:
    """Why the GPU kernels cannot be used with a framework, or with which devices."""
    reason = triton.unavailable(framework)
    if reason is not None:
        return f"{framework}: {reason}"
    if triton.interpreted():
        return f"{framework}: usable (in Triton's interpreter, on CPU tensors)"
    if framework == "torch":
        import torch

        return f"torch: usable (CUDA tensors; {torch.cuda.get_device_name()})"
    import jax

    return f"jax: usable (arrays on GPUs; {jax.devices()[0].device_kind})"


def facts() -> dict[str, str]:
    """Versions, the backend, and for every implementation whether it is usable, by name."""
    tensorflow = [_version(name) for name in ("tensorflow", "tensorflow-cpu")]
    backend, formula = "not there, without Keras", "arrays of each front"
    frameworks = [one for one in ("torch", "jax") if one in backends.installed_backends()]
    if _version("keras") != "not installed":
        import keras

        frameworks = [backend := keras.backend.backend()]
        formula = "keras.ops"
    kernels = {native.unavailable(one) or _native_text(): one for one in frameworks}
    usable = {
        "native": "; ".join(kernels),
        "triton": "; ".join(map(_gpu_text, frameworks)) or "no framework is installed",
        "plain": f"usable ({formula})",
    }
    return {
        "truenorm": _version("truenorm"),
        "python": platform.python_version(),
        "keras": _version("keras"),
        "numpy": _version("numpy"),
        "tensorflow": min(tensorflow, key=lambda found: found == "not installed"),
        "jax": _version("jax"),
        "torch": _version("torch"),
        "backend": backend,
        "machine": platform.machine(),
        **{name: usable[name] for name in engine.NAMES},
    }


def config_text() -> str:
    """The facts, a line each."""
    return "\n".join(f"{name:<12}{fact}" for name, fact in facts().items())


def show_config() -> None:
    """Print versions, the Keras backend, and which implementations are usable and why not."""
    print(config_text())
