"""Fused native kernels: this build has none, and says so.

The module has the functions that `implementation.py` asks of every implementation, so that the
choice between them is in place and tested before the kernels are.
"""

from typing import Any

from evenkeel.view import View

# Why no call at all can be computed, or None.
UNAVAILABLE: str | None = "this build of evenkeel has no native kernels"


def unsupported(
    x: Any, gamma: Any, beta: Any, view: View, *, epsilon: float, centered: bool, mask: Any
) -> str | None:
    """Why the kernels cannot compute this call, or None if they can."""
    return UNAVAILABLE


def normalize(
    x: Any, gamma: Any, beta: Any, view: View, *, epsilon: float, centered: bool, mask: Any
) -> Any:
    """As `plain.normalize`; never chosen while `unsupported` has a reason."""
    raise NotImplementedError(UNAVAILABLE)
