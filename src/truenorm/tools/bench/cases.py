"""What `truenorm bench` times: a normalization, where the channels are, how large, which dtype."""

import dataclasses
import itertools
from collections.abc import Iterable
from typing import Any

from truenorm.core.errors import InputError
from truenorm.core.kinds import KINDS, Kind

LAYOUTS = ("last", "first")
SIZES = ("large", "medium", "small")
DTYPES = ("float32", "bfloat16")
PASSES = ("forward", "forward+backward")

# (N, H, W, C). Large goes beyond the caches, medium stays in the last one, small is the tutorial's.
IMAGES = {"large": (32, 56, 56, 64), "medium": (32, 28, 28, 64), "small": (32, 26, 26, 10)}
# Of about as many elements as the others that are large.
LARGE_INSTANCE = (8, 112, 112, 64)
TOKENS = {"large": (8192, 768), "medium": (2048, 768)}  # (rows, D), for layer and RMS
GROUPS = {"large": 32, "medium": 32, "small": 5}


@dataclasses.dataclass(frozen=True)
class Case:
    """One normalization of one tensor.

    Attributes:
        kind: of `known_norms()`.
        layout: "last" or "first": where the channels are, which layer and RMS normalize.
        size: of `SIZES`.
        dtype: of `DTYPES`: what x and y are stored in; gamma and beta are float32 beside bfloat16.
    """

    kind: str
    layout: str
    size: str
    dtype: str

    @property
    def row(self) -> Kind:
        """The kind's row."""
        return KINDS[self.kind]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of x."""
        if self.row.axis_is == "statistics" and self.layout == "last" and self.size in TOKENS:
            return TOKENS[self.size]
        large_instance = self.kind == "instance" and self.size == "large"
        n, h, w, c = LARGE_INSTANCE if large_instance else IMAGES[self.size]
        return (n, h, w, c) if self.layout == "last" else (n, c, h, w)

    @property
    def axis(self) -> int:
        """The channel axis."""
        return len(self.shape) - 1 if self.layout == "last" else 1

    @property
    def groups(self) -> int | None:
        """How many groups the channels are in; None where they are not."""
        if self.kind == "instance":
            return self.shape[self.axis]
        return GROUPS[self.size] if self.row.groups else None

    @property
    def options(self) -> dict[str, bool]:
        """What a call gets besides x and what is learned: batch normalization is timed training."""
        return {"training": True} if self.kind == "batch" else {}

    @property
    def bytes(self) -> int:
        """The bytes of x."""
        elements = 1
        for size in self.shape:
            elements *= size
        return elements * (4 if self.dtype == "float32" else 2)

    def __str__(self) -> str:
        shape = "×".join(map(str, self.shape))
        return f"{self.kind}, channels {self.layout}, {shape}, {self.dtype}"


def known_norms() -> tuple[str, ...]:
    """The kinds that truenorm computes over channels, or over the axis of the channels."""
    return tuple(name for name, kind in KINDS.items() if kind.axis is not None)


# The defaults of both the function and the command.
DEFAULTS: dict[str, Any] = {
    "norms": ",".join(known_norms()),
    "layouts": ",".join(LAYOUTS),
    "sizes": ",".join(SIZES),
    "dtypes": ",".join(DTYPES),
    "rounds": 15,
}


def choose_cases(
    kinds: str | Iterable[str] | None = None,
    layouts: str | Iterable[str] = LAYOUTS,
    sizes: str | Iterable[str] = SIZES,
    dtypes: str | Iterable[str] = DTYPES,
) -> list[Case]:
    """Every combination of the given ones, each a list or a text with commas.

    Raises:
        InputError: a name is unknown, or none is given.
    """
    chosen = [
        _names(option, given, known)
        for option, given, known in (
            ("norms", known_norms() if kinds is None else kinds, known_norms()),
            ("layouts", layouts, LAYOUTS),
            ("sizes", sizes, SIZES),
            ("dtypes", dtypes, DTYPES),
        )
    ]
    return [Case(*combination) for combination in itertools.product(*chosen)]


def check_rounds(rounds: Any) -> int:
    """Return rounds as an integer of at least 3, or raise InputError."""
    try:
        count = int(rounds)
    except (TypeError, ValueError):
        count = 0
    if count < 3:
        raise InputError(f"rounds={rounds!r} is too few; expected an integer of 3 or more.")
    return count


def _names(option: str, given: str | Iterable[str], known: tuple[str, ...]) -> list[str]:
    names = [name.strip() for name in given.split(",")] if isinstance(given, str) else list(given)
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        what = ", ".join(map(repr, unknown)) if unknown else "nothing"
        raise InputError(f"{option}: got {what}; expected a comma list of {', '.join(known)}.")
    return [name for name in known if name in names]  # each once
