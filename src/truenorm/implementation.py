"""Which implementation computes a call: the plain math, or fused native kernels.

An implementation is a module with two functions of the same arguments:

    normalize(x, gamma, beta, view, *, epsilon, centered, mask)    the result
    unsupported(x, gamma, beta, view, *, epsilon, centered, mask)  why it cannot, or None

`implementation=None` takes the fastest one that supports the call; a name takes exactly that one
or raises with its reason.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from truenorm import native, plain
from truenorm.errors import brief

NAMES = ("native", "plain")  # fastest first


class _Default(threading.local):
    """The implementation that this thread's `with` blocks ask for.

    Not a context variable, nor a class attribute: torch.compile cannot trace the one, and does not
    see when an instance hides the other.
    """

    def __init__(self) -> None:
        self.name: str | None = None


_default = _Default()


def check(name: str | None) -> str | None:
    """Return an implementation's name as given, or raise ValueError with those there are."""
    if name is not None and name not in NAMES:
        raise ValueError(
            f"implementation={brief(name)} is unknown; expected None (the fastest that supports "
            f"the call) or one of {', '.join(map(repr, NAMES))}."
        )
    return name


@contextlib.contextmanager
def use_implementation(name: str | None) -> Iterator[None]:
    """Make `name` the implementation of every call inside the `with` block that names none.

    An explicit `implementation=` argument wins. A function that TensorFlow or JAX compiles keeps
    what was chosen when it was traced; torch.compile traces it again.

    Args:
        name: "plain", "native", or None for the fastest that supports each call.

    Raises:
        ValueError: the name is unknown.
    """
    outer, _default.name = _default.name, check(name)
    try:
        yield
    finally:
        _default.name = outer


def choose(requested: str | None, *call: Any, **options: Any) -> Callable[..., Any]:
    """Return the `normalize` that is to compute this call.

    Raises:
        ValueError: the name is unknown.
        NotImplementedError: a named implementation does not support the call; says why.
    """
    name = _default.name if requested is None else check(requested)
    if name == "plain":
        return plain.normalize
    reason = native.unsupported(*call, **options)
    if reason is None:
        return native.normalize
    if name == "native":
        raise NotImplementedError(
            f"implementation='native' cannot compute this call: {reason}. "
            "Pass implementation='plain', or None to let truenorm choose."
        )
    return plain.normalize
