"""The formula in the functions of a front: it runs everywhere, and is what exports contain.

    y = gamma * (x - mean) / sqrt(variance + epsilon) + beta

It is written for numbers first:

- The mean is carried in two parts. The mean of a quarter of the group, rounded to the compute
  dtype, is only a *pivot*; the mean of x - pivot is the rest. The result does not depend on the
  pivot, so the pivot is a constant to every derivative.
- The variance is the mean of squares about the pivot less the square of the rest, which is at most
  three variances: never a difference of large numbers.
- Sums run over one short axis at a time (`layout.py` cuts long ones), and what is broadcast is
  broadcast one axis at a time, so that the sums of the backward pass take the same path back.
"""

from collections.abc import Sequence
from typing import Any, cast

from truenorm.core.call import Call, Statistics
from truenorm.core.layout import Layout

Tensor = Any


class Plain:
    """The engine that computes every call, in the functions of a front's arrays."""

    name = "plain"

    def __init__(self, arrays: Any) -> None:
        self.arrays = arrays

    def normalize(
        self,
        call: Call,
        x: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        mask: Tensor | None = None,
        epsilon: Tensor | None = None,
    ) -> Tensor:
        """Normalize x over the reduced factors of the call's view.

        Args:
            call: the view, the statistic and epsilon.
            x: float tensor of the view's rank.
            gamma, beta: of the view's parameter shape; None: one and zero.
            mask: boolean tensor, its shape a prefix of x's; what it hides stays out of the
                statistics.
            epsilon: a tensor of one number in the place of the call's, where it is learned.

        Returns:
            A tensor of x's shape and dtype, computed in float64 for float64 and float32 otherwise.
        """
        work = _Work(self.arrays, call, x, mask)
        return work.affine(work.moments(), gamma, beta, epsilon)

    def moments(self, call: Call, x: Tensor, mask: Tensor | None = None) -> Statistics:
        """The statistics of x: flat arrays of one number for each group.

        They are in float64 for float64 and float32 otherwise. The arguments are `normalize`'s.
        """
        work = _Work(self.arrays, call, x, mask)
        return work.statistics(work.moments())

    def measure(
        self,
        call: Call,
        x: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Statistics]:
        """What `normalize` and `moments` give, the statistics constant to every derivative."""
        work = _Work(self.arrays, call, x, mask)
        moments = work.moments()
        found = work.statistics(moments)
        statistics = Statistics(*(self.arrays.stop_gradient(one) for one in found))
        return work.affine(moments, gamma, beta, None), statistics

    def apply(
        self,
        call: Call,
        x: Tensor,
        statistics: Statistics,
        gamma: Tensor | None,
        beta: Tensor | None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Normalize x with these statistics, of x or of something else; y as `normalize` gives it.

        The statistics have gradients too. With a mask, a group whose count is zero yields beta.
        """
        work = _Work(self.arrays, call, x, mask, summed=False)
        groups = [work.cast(work.layout.arrange_groups(one)) for one in statistics]
        pivot, rest, power, count = groups
        if call.centered:
            work.subtract(pivot)
        else:
            rest = 0.0
        return work.affine((pivot, rest, power, count), gamma, beta, None)


class _Work:
    """One call on the working arrays of its layout."""

    def __init__(
        self, arrays: Any, call: Call, x: Tensor, mask: Tensor | None, summed: bool = True
    ) -> None:
        self.ops = arrays
        self.call = call
        self.dtype = arrays.dtype(x)
        self.compute_dtype = "float64" if self.dtype == "float64" else "float32"
        self.layout = Layout(arrays, call.view, arrays.shape(x), summed)
        self.x = self.cast(self.layout.arrange(x))
        self.mask = self.layout.arrange_mask(mask, x)
        axes, self.reduced = self.layout.axes, self.layout.reduced
        # The axes along which gamma is broadcast, and over which its gradient is summed.
        self.reduced_alike = [i for i in self.reduced if not axes[i].varies]
        kept = [i for i, axis in enumerate(axes) if not (axis.reduced or axis.varies)]
        self.kept_alike = kept[::-1]

    def cast(self, t: Tensor, dtype: str | None = None) -> Tensor:
        """T in a dtype; in eager PyTorch a cast takes a while even where there is nothing to do."""
        dtype = dtype or self.compute_dtype
        return t if self.ops.dtype(t) == dtype else self.ops.cast(t, dtype)

    def total(self, t: Tensor, order: Sequence[int]) -> Tensor:
        """The sum over one axis after the other."""
        for i in order:
            t = self.ops.sum(t, axis=i, keepdims=True)
        return t

    def spread(self, t: Tensor, order: Sequence[int]) -> Tensor:
        """Broadcast t along all of `order` but the first, which the next operation broadcasts.

        Where they are the innermost axes, it broadcasts all: frameworks sum those well.
        """
        axes = self.layout.axes
        if set(order) == set(range(len(axes) - len(order), len(axes))):
            return t
        for i in reversed(order[1:]):
            length = axes[i].length
            if not (isinstance(length, int) and length == 1):
                # Zeros are broadcast and t is added: a broadcast t, strided, slows what follows.
                target = [*self.ops.shape(t)]
                target[i] = length
                t = t + self.ops.broadcast_to(self.ops.zeros_like(t), target)
        return t

    def real(self, t: Tensor) -> Tensor:
        """T, and zero where the mask hides it."""
        return t if self.mask is None else self.ops.where(self.mask, t, 0.0)

    def subtract(self, pivot: Tensor) -> None:
        """Let x be about the pivot."""
        self.x = self.x - self.spread(pivot, self.reduced)

    def moments(self) -> tuple[Any, Any, Tensor, Any]:
        """The pivot, the rest, the power about their sum, and the count; x is then about the pivot.

        Where the call is not centered, pivot and rest are zero, and x is as it was.
        """
        ops, reduced, mask = self.ops, self.reduced, self.mask
        count = self.layout.count
        if mask is not None:
            count = self.total(ops.cast(mask, self.compute_dtype), reduced)
        # Not annotated, here and below: AutoGraph cannot convert that.
        if isinstance(count, int):
            share = cast(Any, 1.0 / max(count, 1))
        elif not ops.is_tensor(count):
            share = 1.0 / count  # a symbol stays one: PyTorch would make a constant of its tensor
        else:
            count = ops.cast(count, self.compute_dtype)
            # Not maximum: on PyTorch, Keras' maximum with a number turns float64 into float32.
            share = 1.0 / ops.where(count > 0, count, 1.0)

        pivot = rest = cast(Any, 0.0)
        if self.call.centered:
            part, fraction = self.layout.sample(self.x) if mask is None else (self.x, 1.0)
            pivot = self.total(self.real(part), reduced) * (share / fraction)
            pivot = ops.stop_gradient(pivot)
            # A compiler may compute the pivot again where it is used, fused with the subtraction
            # and so rounded differently; behind a selection it is one and the same number
            # everywhere.
            pivot = ops.where(pivot == pivot, pivot, 0.0)
            self.subtract(pivot)
            rest = self.total(self.real(self.x), reduced) * share
        # A sum of squares can overflow where their mean does not: divide before it is complete.
        if self.layout.first_sum_is_short:
            squares = self.total(ops.square(self.real(self.x)), reduced[:1]) * share
            power = self.total(squares, reduced[1:])
        else:
            root = share**0.5 if mask is None else self.spread(share**0.5, reduced)
            power = self.total(ops.square(self.real(self.x) * root), reduced)
        return pivot, rest, power - rest * rest, count

    def statistics(self, moments: tuple[Any, Any, Tensor, Any]) -> Statistics:
        """The same as flat arrays of one number for each group."""
        pivot, rest, power, count = moments
        zero = self.ops.zeros_like(power)
        if not self.call.centered:
            pivot = rest = zero
        # Rounding can take it below zero where a group is constant.
        power = self.ops.where(power > 0, power, zero * power)
        full = [pivot, rest, power, zero + count]
        return Statistics(*(self.layout.flatten_groups(one) for one in full))

    def affine(
        self,
        moments: tuple[Any, Any, Tensor, Any],
        gamma: Tensor | None,
        beta: Tensor | None,
        epsilon: Tensor | None,
    ) -> Tensor:
        """Y, of an x that is about the pivot."""
        ops, reduced, centered = self.ops, self.reduced, self.call.centered
        _, rest, power, count = moments
        added = self.call.epsilon if epsilon is None else self.cast(epsilon)
        power = power + added
        if centered:
            # Rounding can take it below zero where a constant group is huge (above 1e9 in float32).
            power = ops.where(power < 0.5 * added, added, power)
        # Not rsqrt: its derivative cubes the result, which underflows where x is large.
        rstd = 1.0 / ops.sqrt(power)

        gamma, beta = (
            None if one is None else self.cast(self.layout.arrange_parameter(one))
            for one in (gamma, beta)
        )
        steps = cast(list[tuple[Any, Any]], [])  # of scale, shift: y = y * scale + shift, in turn
        if self.reduced_alike:
            # gamma is constant along some reduced axis: scale and shift are small arrays.
            scale = rstd if gamma is None else rstd * self.spread(gamma, self.kept_alike)
            shift = -rest * scale
            if beta is not None:
                shift = shift + self.spread(beta, self.kept_alike)
            alike = self.reduced_alike
            steps.append((self.spread(scale, alike), self.spread(shift, alike)))
        else:
            offset = self.spread(-rest * rstd, reduced) if centered else None
            steps.append((self.spread(rstd, reduced), offset))
            learned = (
                None if one is None else self.spread(one, self.kept_alike) for one in (gamma, beta)
            )
            steps.append(cast(Any, tuple(learned)))
        if self.mask is None:
            y = self._affine(self.x, steps)
        else:
            y = self._masked_affine(steps, occupied=self.spread(count, reduced) > 0.0)
        return self.cast(self.layout.restore(y), self.dtype)

    def _affine(self, y: Tensor, steps: Sequence[tuple[Any, Any]]) -> Tensor:
        for scale, shift in steps:
            if scale is not None and shift is not None:
                # PyTorch adds in place, which saves a pass of memory; its function transforms allow
                # that only where y is transformed like shift, so scale is made so.
                y = y * (scale + self.ops.zeros_like(shift))
                y += shift
            elif scale is not None:
                y = y * scale
            elif shift is not None:
                y = y + shift
        return y

    def _masked_affine(self, steps: Sequence[tuple[Any, Any]], occupied: Tensor) -> Tensor:
        """The affine step where masked elements may be NaN or Inf and groups may be empty.

        The derivatives of scale and gamma multiply by x, and 0 * NaN is NaN: so a masked element
        that is not finite takes them as constants. An element of an empty group counts as zero.
        """
        ops, x = self.ops, self.x
        usable = ops.logical_or(self.mask, ops.isfinite(x))
        y = self._affine(ops.where(ops.logical_and(usable, occupied), x, 0.0), steps)
        constants = [
            tuple(None if one is None else ops.stop_gradient(one) for one in step) for step in steps
        ]
        return ops.where(
            ops.logical_or(usable, ops.logical_not(occupied)),
            y,
            self._affine(x, cast(Any, constants)),
        )
