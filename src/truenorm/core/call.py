"""A call: what every engine gets of a normalization, and the statistics between its halves."""

import dataclasses
import functools
from typing import Any, NamedTuple

from truenorm.core.view import View


@dataclasses.dataclass(frozen=True)
class Call:
    """One normalization of tensors of one rank, without the tensors.

    Engines and compilers take it for a constant: it is hashable, and its fields are those of
    `truenorm_call` in src/native/truenorm.h, which adds the sizes and the dtype.

    Attributes:
        view: which elements share statistics, and along which axes gamma and beta vary; the batch
            axis is among these where there is one gamma, and one beta, for each sample.
        centered: subtract the mean; else the statistic is the root mean square.
        epsilon: added to the variance, in units of x squared.
        activation: the name of a function of `core/activation.py` of what is normalized, or None.
        residual: another tensor is added to x before; the result is then the pair (y, the sum).
        alone: the call without these two, where it has one of them.

    The struct has not the last two: an engine that does not say that it fuses them never sees them.
    """

    view: View
    centered: bool
    epsilon: float
    activation: str | None = None
    residual: bool = False
    alone: "Call | None" = dataclasses.field(init=False, default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Not when it is first asked for: torch.compile cannot trace a cached property.
        if self.activation is not None or self.residual:
            object.__setattr__(self, "alone", Call(self.view, self.centered, self.epsilon))

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.view, self.centered, self.epsilon, self.activation, self.residual))

    def __hash__(self) -> int:
        # Kept: every cache of eager PyTorch asks, and the view is deep.
        return self._hash

    def __reduce__(self) -> Any:
        # Without the hash, which another process makes otherwise.
        return type(self), tuple(
            getattr(self, one.name) for one in dataclasses.fields(self) if one.init
        )


class Statistics(NamedTuple):
    """What `moments` takes from x and `apply` uses: arrays of one number for each group, flat.

    The groups come in the order of x's kept axes, the outermost first.

    Attributes:
        mean: rounded, and constant to every derivative; zero where the call is not centered.
        rest: what the rounding left of the mean: mean + rest is the mean, and has its derivative.
        variance: about the mean; the mean square where the call is not centered.
        count: how many elements the mask leaves; where there are none, the others are zero.
    """

    mean: Any
    rest: Any
    variance: Any
    count: Any
