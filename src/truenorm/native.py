"""The fused native kernels of the active Keras backend, for CPU tensors.

`kernels/` has a module for each framework with the functions that `implementation.py` asks of an
implementation; here is what they share, and the one place that picks one of them.
"""

import importlib
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

from keras import backend

from truenorm.kernels import library
from truenorm.view import View


def _find() -> tuple[ModuleType | None, str | None]:
    """The kernels of the active backend, or why there are none; a failure is told."""
    name = backend.backend()
    if name not in ("jax", "tensorflow", "torch"):
        return None, f"there are no native kernels for the {name} backend"
    _, reason = library.load()
    if reason is None:
        try:
            kernels = importlib.import_module(f"truenorm.kernels.{name}")
        except (ImportError, AttributeError) as error:
            reason = f"this version of {name} does not fit the native kernels: {error}"
        else:
            reason = kernels.unavailable()
            if reason is None:
                return kernels, None
    if library.path("libtruenorm") is not None:
        # What was built does not work: worth a word, while a build without it is not.
        warnings.warn(f"truenorm uses its plain path: {reason}.", RuntimeWarning, stacklevel=2)
    return None, reason


# Found once, when truenorm is imported: a compiler that traces a call must not look for it.
KERNELS, UNAVAILABLE = _find()


def remembered(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with a cache on PyTorch, whose eager calls come often; others are compiled."""
    return getattr(KERNELS, "remembered", lambda same: same)(function)  # type: ignore[no-any-return]


def with_whole_groups(x: Any, view: View) -> Any:
    """X, whose number of channels is known when it runs: an error then where groups do not fit."""
    check = getattr(KERNELS, "with_whole_groups", None)
    return x if check is None else check(x, view)


def unsupported(
    x: Any, gamma: Any, beta: Any, view: View, *, epsilon: Any, centered: bool, mask: Any
) -> str | None:
    """Why the kernels cannot compute this call, or None if they can."""
    if KERNELS is None:
        return UNAVAILABLE
    if mask is not None:
        return "mask: the native kernels take none"
    if not isinstance(epsilon, (int, float)):
        return "epsilon is learned: the native kernels take a number"
    return KERNELS.unsupported(x, gamma, beta, view)  # type: ignore[no-any-return]


def normalize(
    x: Any, gamma: Any, beta: Any, view: View, *, epsilon: float, centered: bool, mask: Any
) -> Any:
    """As `plain.normalize`, for a call that `unsupported` has no reason against."""
    if KERNELS is None:
        raise NotImplementedError(UNAVAILABLE)
    return KERNELS.normalize(x, gamma, beta, view, epsilon=epsilon, centered=centered)
