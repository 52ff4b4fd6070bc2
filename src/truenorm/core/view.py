"""Which elements share statistics, as integers: the kept/reduced/kept/reduced view.

A normalization takes statistics over some axes of its input. Name each axis *reduced* (the
elements along it share statistics) or *kept*, cut the channel axis of a grouped normalization
into a kept half (the group) and a reduced half (the channels within it), and merge neighbours
that are treated alike. Nearly every normalization is then the same four-axis array

    (K0, R0, K1, R1)        kept, reduced, kept, reduced

with missing runs of size one. For group normalization of (N, H, W, C) it is
(N, H * W, G, C / G); for layer normalization of (N, T, D) over D it is (1, 1, N * T, D).
Axes that alternate more often are transposed once, kept ones first.

This module knows no framework. It deals in axis numbers; sizes are filled in later, from
shapes whose entries may be integers or a framework's run-time scalars.
"""

import bisect
import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from truenorm.core.errors import brief

Part = Literal["whole", "group", "within"]


class Factor(NamedTuple):
    """One input axis, or one half of a channel axis that is cut into groups."""

    axis: int
    reduced: bool
    part: Part = "whole"


@dataclasses.dataclass(frozen=True)
class View:
    """The recipe that turns an input into (K0, R0, K1, R1).

    Attributes:
        rank: number of axes of the input.
        runs: the factors merged into K0, R0, K1 and R1, each outermost first.
        parameter_axes: the input axes, ascending, over which gamma and beta vary.
        groups: groups along the channel axis; -1 is one per channel; None: no axis is cut.
    """

    rank: int
    runs: tuple[tuple[Factor, ...], ...]
    parameter_axes: tuple[int, ...]
    groups: int | None = None

    @property
    def factors(self) -> tuple[Factor, ...]:
        """All factors, outermost first."""
        return tuple(itertools.chain.from_iterable(self.runs))

    @property
    def order(self) -> tuple[int, ...]:
        """The input axes in the order of the factors."""
        return tuple(dict.fromkeys(factor.axis for factor in self.factors))

    @property
    def transposed(self) -> bool:
        """Whether the input must be transposed to `order` before it is reshaped."""
        return self.order != tuple(range(self.rank))

    def size(self, factor: Factor, shape: Sequence[Any]) -> Any:
        """The length of one factor for an input of this shape."""
        length = shape[factor.axis]
        if factor.part == "whole":
            return length
        if self.groups == -1:
            return length if factor.part == "group" else 1
        return self.groups if factor.part == "group" else length // self.groups

    def sizes(self, shape: Sequence[Any]) -> tuple[Any, ...]:
        """(K0, R0, K1, R1) for an input of this shape."""
        return tuple(product(self.size(factor, shape) for factor in run) for run in self.runs)

    def parameter_shape(self, shape: Sequence[Any]) -> tuple[Any, ...]:
        """The shape of gamma and beta for an input of this shape."""
        return tuple(shape[axis] for axis in self.parameter_axes)

    @property
    def has_samples(self) -> bool:
        """Whether axis 0 is kept, so that each of its entries may have a gamma and beta."""
        return any(one == Factor(0, False) for one in self.factors)

    def varies(self, factor: Factor) -> bool:
        """Whether gamma and beta vary along this factor."""
        return factor.axis in self.parameter_axes

    def permuted(self, order: Sequence[int]) -> "View":
        """The view of the input after its axes were permuted to `order`."""
        factors = [
            factor._replace(axis=position)
            for position, axis in enumerate(order)
            for factor in self.factors
            if factor.axis == axis
        ]
        axes = tuple(sorted(order.index(axis) for axis in self.parameter_axes))
        return View(self.rank, _runs(factors), axes, self.groups)

    def vary_over(self, axis: int) -> "View":
        """The view with gamma and beta varying over one more axis."""
        axes = tuple(sorted({axis, *self.parameter_axes}))
        return dataclasses.replace(self, parameter_axes=axes)

    def with_leading_axis(self) -> "View":
        """The view of a stack of inputs: one more kept axis in front."""
        factors = [Factor(0, False)]
        factors += [one._replace(axis=one.axis + 1) for one in self.factors]
        axes = tuple(axis + 1 for axis in self.parameter_axes)
        return View(self.rank + 1, _runs(factors), axes, self.groups)


def product(sizes: Iterable[Any]) -> Any:
    """The product of integers or of a framework's run-time scalars."""
    return functools.reduce(operator.mul, sizes, 1)


def integer_axes(axis: int | Sequence[int]) -> tuple[int, ...]:
    """Return axis or axes as a tuple of plain integers, in the given order.

    Raises:
        TypeError: an axis is not an integer.
    """
    axes = []
    for one in axis if isinstance(axis, (list, tuple)) else (axis,):
        try:
            axes.append(operator.index(one))
        except TypeError:
            raise TypeError(
                f"axis={brief(axis)} must be an integer or a list of integers; got "
                f"{type(one).__name__}."
            ) from None
    return tuple(axes)


def canonical_axes(axis: int | Sequence[int], rank: int, first: int = 0) -> tuple[int, ...]:
    """Return axis or axes as ascending non-negative numbers, for an input of this rank.

    With `first=1` axis 0 is refused: it holds the samples, which no layer may mix.

    Raises:
        ValueError: an axis is out of range, given twice, the refused one, or there is none.
        TypeError: an axis is not an integer.
    """
    given = integer_axes(axis)
    axes = tuple(sorted(index % rank for index in given)) if rank else ()
    in_range = all(-rank <= index < rank for index in given)
    if axes and in_range and axes[0] >= first and len(set(axes)) == len(axes):
        return axes
    if not given:
        fault = "names no axis"
    elif not in_range:
        fault = f"is out of range for an input of rank {rank}"
    elif axes[0] < first:
        fault = f"names the batch axis of an input of rank {rank}, whose samples must not be mixed"
    else:
        fault = f"names an axis twice for an input of rank {rank}"
    allowed = f"{first} to {rank - 1}, or -{rank - first} to -1" if rank > first else "none"
    raise ValueError(f"axis={brief(axis)} {fault}; allowed axes are {allowed}, each once.")


def check_groups(groups: int, channels: int | None, axis: int, name: str = "groups") -> None:
    """Raise ValueError unless `groups` is -1 or divides the channels of this axis."""
    if groups == -1 or channels is None:
        return
    try:
        fit = groups <= channels and channels % groups == 0
    except Exception:  # a symbol of jax.export, which compares with nothing
        raise ValueError(
            f"{name}={brief(groups)} divide the channels of axis {axis} or not, depending on their "
            f"number {channels}; give it as a multiple, such as {brief(groups)}*c, or pass "
            f"{name}=-1 for one group per channel."
        ) from None
    if not fit:
        divisors = ", ".join(map(brief, _divisors(channels, near=groups)))
        channels, groups = brief(channels), brief(groups)  # type: ignore[assignment]
        raise ValueError(
            f"{name}={groups} does not divide the {channels} channels of axis {axis}; "
            f"choose a divisor of {channels} ({divisors}), or {name}=-1 for one group per channel."
        )


def _divisors(number: int, near: int, most: int = 12) -> list[int]:
    """The divisors of a number, ascending: `most` of those nearest to `near`, found quickly."""
    small = [n for n in range(1, min(math.isqrt(number), 10_000) + 1) if number % n == 0]
    found = sorted({*small, *(number // n for n in small)})
    place = bisect.bisect(found, near)
    begin = max(0, min(place - most // 2, len(found) - most))
    return found[begin : begin + most]


def group_view(rank: int, axis: int, groups: int, reduced: Sequence[int] | None = None) -> View:
    """View of group normalization: each sample's channels in groups, all other axes reduced.

    `axis` is a canonical channel axis; `groups=-1` is instance normalization. Where the channels
    are axis 0, the input is one sample. `reduced` are other axes than all but axis 0.
    """
    factors = []
    for current in range(rank):
        if current == axis:
            factors.append(Factor(current, False, "group"))
            factors.append(Factor(current, True, "within"))
        else:
            factors.append(Factor(current, current != 0 if reduced is None else current in reduced))
    return View(rank, _runs(factors), (axis,), groups)


def axes_view(
    rank: int, reduced: Sequence[int], parameter_axes: Sequence[int] | None = None
) -> View:
    """View of a normalization that reduces whole axes, as layer, RMS and batch normalization do.

    `reduced` are canonical; gamma and beta vary over `parameter_axes`, by default the reduced.
    """
    factors = [Factor(axis, axis in reduced) for axis in range(rank)]
    return View(rank, _runs(factors), tuple(reduced if parameter_axes is None else parameter_axes))


def channel_view(rank: int, axis: int | Sequence[int], first: int = 0) -> View:
    """View of filter response normalization: each sample's channels, over the axes `axis` names.

    These are all axes but the batch axis and one, the channel axis, along which gamma and beta
    vary. For an input (N, C), which has no others, `axis` is an empty list. The batch axis may be
    among them unless `first=1`.

    Raises:
        ValueError: not exactly one axis is left, or an axis is refused by `canonical_axes`.
        TypeError: an axis is not an integer.
    """
    reduced = canonical_axes(axis, rank, first) if integer_axes(axis) else ()
    channels = [one for one in range(1, rank) if one not in reduced]
    if len(channels) != 1:
        left = f"the axes {channels}" if channels else "no axis"
        last, second = list(range(1, rank - 1)), list(range(2, rank))
        raise ValueError(
            f"axis={brief(axis)} leaves {left} of an input of "
            f"rank {rank} for the channels; it must name every axis but the batch axis 0 and "
            f"the one channel axis: {last} where the channels are last, {second} where they are "
            "first."
        )
    return axes_view(rank, reduced, channels)


def _runs(factors: list[Factor]) -> tuple[tuple[Factor, ...], ...]:
    """Merge neighbouring factors into the four runs, transposing those that alternate too often."""

    def aligned(ordered: list[Factor]) -> list[tuple[Factor, ...]]:
        # Not itertools.groupby, which torch.compile cannot trace.
        runs: list[tuple[Factor, ...]] = []
        begin = 0
        for end in range(1, len(ordered) + 1):
            if end == len(ordered) or ordered[end].reduced != ordered[begin].reduced:
                runs.append(tuple(ordered[begin:end]))
                begin = end
        # The last run is R1 where it is reduced and K1 where it is kept; the others precede it.
        if runs and not runs[-1][0].reduced:
            runs.append(())
        return [()] * (4 - len(runs)) + runs

    runs = aligned(factors)
    if len(runs) > 4:
        runs = aligned(sorted(factors, key=lambda one: one.reduced))
    return tuple(runs)
