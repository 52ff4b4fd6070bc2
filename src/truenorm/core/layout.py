"""The working array of the plain path: merged axes, of which the long ones are cut in two.

Some frameworks add a column of numbers one by one, which loses digits where it is long. Cut into
pieces of about equal length and summed one piece after the other, no column is long.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from truenorm.core.view import View, product

Tensor = Any

# The longest column of numbers that may be added one by one: random float32 numbers then lose
# at most about 2e-6 of the L2 norm of the terms (`benchmarks/numerics.py` measures it).
LONGEST_SUM = 1024
# The most squares of differences that may be added before they are divided by their number:
# 64 * (2e18)**2 is still a float32.
SHORT_SUM = 64


@dataclasses.dataclass(frozen=True)
class Axis:
    """Neighbouring factors of a view that are treated alike, or one piece of their length."""

    length: Any  # an integer, or the framework's scalar where the shape is unknown
    run: int  # index into (K0, R0, K1, R1)
    varies: bool  # gamma and beta vary along it

    @property
    def reduced(self) -> bool:
        """Whether the elements along it share statistics."""
        return self.run % 2 == 1


class Layout:
    """How inputs of one shape, their mask and their parameters become working arrays.

    Attributes:
        axes: of the working array, outermost first.
        reduced: indices of the reduced axes in the order in which to sum: R0 before R1, each
            innermost first. The first sum adds whole lanes, or contiguous rows, of the large
            array; the later sums are small.
        count: elements in each group that shares statistics.

    Where nothing is `summed`, but in the derivative, a length that is known only at run time is not
    cut: padding it costs much, and some programs that models are exported to fail at it.
    """

    def __init__(self, arrays: Any, view: View, shape: Sequence[Any], summed: bool = True) -> None:
        self.ops = arrays
        self.view = view
        self.shape = shape
        self.summed = summed
        self.merged = _merge(view, shape)
        self.cuts = [self._cut(axis) for axis in self.merged]
        self.axes = [
            dataclasses.replace(axis, length=length)
            for axis, cut in zip(self.merged, self.cuts, strict=True)
            for length in cut
        ]
        # What the pieces of a merged axis hold beyond its length.
        self.padding = [
            product(cut) - axis.length if len(cut) > 1 else 0
            for axis, cut in zip(self.merged, self.cuts, strict=True)
        ]
        self.count = product(axis.length for axis in self.merged if axis.reduced)
        self.reduced = sorted(
            (i for i, axis in enumerate(self.axes) if axis.reduced),
            key=lambda i: (self.axes[i].run, -i),
        )

    def _cut(self, axis: Axis) -> tuple[Any, ...]:
        """The lengths of the pieces of one merged axis; what they hold beyond it is padding.

        Nothing is summed down a kept axis along which gamma varies, and frameworks sum the
        innermost axis well. A run-time length is cut only where it is all that is reduced in its
        run, as in a sequence; the sides of an image are short. One that is a symbol, in a program
        that is exported, stays whole: the pieces would be true of some lengths only.
        """
        length, innermost = axis.length, axis is self.merged[-1]
        if not isinstance(length, int):
            if innermost or not axis.reduced or not self.summed:
                return (length,)
            if sum(one.run == axis.run for one in self.merged) > 1:
                return (length,)
            ops = self.ops
            # A trace of PyTorch would make a constant of the padding.
            if not ops.is_tensor(length) or type(length).__module__ == "torch":
                return (length,)
            block = ops.maximum(ops.ceil(ops.sqrt(ops.cast(length, "float32"))), 1)
            block = ops.cast(block, ops.dtype(length))
            return (-(-length // block), block)
        if axis.reduced and length > SHORT_SUM:
            block = next(n for n in range(SHORT_SUM, 0, -1) if length % n == 0)
            if block >= SHORT_SUM // 4 and (innermost or length // block <= LONGEST_SUM):
                return (length // block, block)
        if innermost or length <= LONGEST_SUM or (axis.varies and not axis.reduced):
            return (length,)
        block = next(n for n in range(math.isqrt(length), 0, -1) if length % n == 0)
        if length // block > LONGEST_SUM:  # no even cut: pad up to one
            block = math.isqrt(length - 1) + 1
        return (-(-length // block), block)

    @property
    def first_sum_is_short(self) -> bool:
        """Whether the first of the sums adds so few squares that it cannot overflow."""
        lengths = [self.axes[i].length for i in self.reduced[:1]]
        return all(isinstance(length, int) and length <= SHORT_SUM for length in lengths)

    def sample(self, t: Tensor) -> tuple[Tensor, float]:
        """A part of a working array, and which fraction of each group it is: a quarter or more.

        It is cut from the outermost reduced axis that is long enough, so that little is read.
        """
        for i, axis in enumerate(self.axes):
            if axis.reduced and isinstance(axis.length, int) and axis.length >= 4:
                some = -(-axis.length // 4)
                whole = [slice(None)] * i
                return t[(*whole, slice(some))], some / axis.length
        return t, 1.0

    def arrange(self, t: Tensor) -> Tensor:
        """Turn a tensor of the input's shape into the working array; padding is 0 or False."""
        if self.view.transposed:
            t = self.ops.transpose(t, self.view.order)
        return self._reshape(t, [True for _ in self.merged])

    def arrange_parameter(self, t: Tensor) -> Tensor:
        """The same for gamma or beta, with length 1 where they do not vary."""
        return self._reshape(t, [axis.varies for axis in self.merged])

    def arrange_groups(self, t: Tensor) -> Tensor:
        """The same for one number for each group, flat, with length 1 where axes are reduced."""
        return self._reshape(t, [not axis.reduced for axis in self.merged])

    def flatten_groups(self, t: Tensor) -> Tensor:
        """Turn an array of one number for each group back into a flat one."""
        kept = [not axis.reduced for axis in self.merged]
        return self.ops.reshape(self._cut_off(t, kept), [-1])

    def arrange_mask(self, mask: Tensor | None, x: Tensor) -> Tensor | None:
        """The same for a mask over leading axes of x; it hides the padding of reduced axes too."""
        ops = self.ops
        if mask is not None:
            rest = [1] * (self.view.rank - len(mask.shape))
            mask = ops.reshape(mask, [*ops.shape(mask), *rest])
            mask = self.arrange(ops.broadcast_to(mask, self.shape))
        for i, axis in enumerate(self.merged):
            if axis.reduced and not _is_zero(self.padding[i]):
                only = [n == i for n in range(len(self.merged))]
                true = ops.isfinite(ops.sum(x[:0]))  # on the device of x
                real = self._reshape(ops.broadcast_to(true, [axis.length]), only)
                real = ops.broadcast_to(real, [one.length for one in self.axes])
                mask = real if mask is None else ops.logical_and(mask, real)
        return mask

    def restore(self, t: Tensor) -> Tensor:
        """Turn a working array back into a tensor of the input's shape."""
        t = self._cut_off(t, [True for _ in self.merged])
        if not self.view.transposed:
            return self.ops.reshape(t, self.shape)
        t = self.ops.reshape(t, [self.shape[axis] for axis in self.view.order])
        return self.ops.transpose(
            t, [self.view.order.index(axis) for axis in range(self.view.rank)]
        )

    def _cut_off(self, t: Tensor, present: Sequence[bool]) -> Tensor:
        """Join the pieces of the merged axes that are present, without their padding."""
        merged = list(zip(self.merged, self.cuts, self.padding, present, strict=True))
        if all(_is_zero(beyond) or not here for _, _, beyond, here in merged):
            return t
        t = self.ops.reshape(t, [product(cut) if here else 1 for _, cut, _, here in merged])
        return t[tuple(slice(axis.length if here else 1) for axis, _, _, here in merged)]

    def _reshape(self, t: Tensor, present: Sequence[bool]) -> Tensor:
        """Reshape to the merged axes that are present (the others have length 1), pad, and cut."""
        lengths: list[Any] = []
        padding: list[tuple[int, Any]] = []
        pieces: list[Any] = []
        merged = zip(self.merged, self.cuts, self.padding, present, strict=True)
        for axis, cut, beyond, here in merged:
            lengths.append(axis.length if here else 1)
            padding.append((0, beyond if here else 0))
            pieces.extend(cut if here else [1] * len(cut))
        if not all(_is_zero(beyond) for _, beyond in padding):
            t = self.ops.pad(self.ops.reshape(t, lengths), padding)
        return self.ops.reshape(t, pieces)


def _merge(view: View, shape: Sequence[Any]) -> list[Axis]:
    """Merge the neighbouring factors of each run along which gamma and beta behave alike.

    Factors whose length is known only at run time stay apart: they are natural pieces.
    """
    axes: list[Axis] = []
    for run, factors in enumerate(view.runs):
        known = False
        for factor in factors:
            length, varies = view.size(factor, shape), view.varies(factor)
            if known and isinstance(length, int) and axes[-1].varies == varies:
                axes[-1] = dataclasses.replace(axes[-1], length=axes[-1].length * length)
            else:
                axes.append(Axis(length, run, varies))
            known = isinstance(length, int)
    # Without the axes of length one there is less to do, but one that is reduced must stay.
    long = [axis for axis in axes if not (isinstance(axis.length, int) and axis.length == 1)]
    return long if any(axis.reduced for axis in long) else axes


def _is_zero(length: Any) -> bool:
    return isinstance(length, int) and length == 0
