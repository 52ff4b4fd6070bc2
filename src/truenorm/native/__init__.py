"""The fused native kernels, for CPU tensors: one engine for each framework, and what they share.

`engine("torch")` is the module `native/torch.py`, or, where this build or that framework has no
kernels, an engine that says so.
"""

import functools
import importlib
import warnings
from typing import Any

from truenorm.native import library

FRAMEWORKS = ("jax", "tensorflow", "torch")


class Missing:
    """The engine where there are no kernels: it has a reason against every call."""

    def __init__(self, reason: str, name: str = "native") -> None:
        self.reason = reason
        self.name = name

    def normalize(self, *call: Any) -> str:
        """The reason."""
        return self.reason

    moments = apply = measure = normalize


@functools.cache
def engine(framework: str) -> Any:
    """The engine for tensors of this framework; where its kernels fail, that is told once."""
    found, reason = _find(framework)
    return Missing(reason) if reason is not None else found


def unavailable(framework: str) -> str | None:
    """Why no call at all can be computed on this framework, or None."""
    return getattr(engine(framework), "reason", None)


def _find(framework: str) -> tuple[Any, str | None]:
    if framework not in FRAMEWORKS:
        return None, f"there are no native kernels for the {framework} backend"
    _, reason = library.load()
    if reason is None:
        try:
            kernels = importlib.import_module(f"truenorm.native.{framework}")
        except (ImportError, AttributeError) as error:
            reason = f"this version of {framework} does not fit the native kernels: {error}"
        else:
            reason = kernels.unavailable()
            if reason is None:
                return kernels, None
    if library.path("libtruenorm") is not None:
        # What was built does not work: worth a word, while a build without it is not.
        warnings.warn(f"truenorm uses its plain path: {reason}.", RuntimeWarning, stacklevel=3)
    return None, reason
