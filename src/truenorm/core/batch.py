"""Batch normalization: moments of a batch, a combination of them, and their application.

    y = gamma * (x - mean) / sqrt(variance + epsilon) + beta

Training takes the statistics of the batch, and inference the moving ones that training keeps.
Between the two halves stands what makes the variants: the statistics of several devices, or of
several virtual batches, combined (`combined`, `averaged`); the correction towards the moving
statistics (`Renorm`). `moved` is what training does to the moving ones.

Every function takes the arrays of a front, and statistics of one number for each group, flat.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from truenorm.core import engine
from truenorm.core.activation import add
from truenorm.core.call import Call, Statistics

Tensor = Any
Gather = Callable[[Tensor], Tensor]


class Renorm(NamedTuple):
    """The correction of batch renormalization (Ioffe, 2017, arXiv:1702.03275).

    xhat becomes xhat * r + d, with r and d constant to every derivative:

        r = clip(batch deviation / deviation, rmin, rmax)
        d = clip((batch mean - mean) / deviation, -dmax, dmax)

    Attributes:
        mean, deviation: the moving ones, one number for each group.
        rmin, rmax, dmax: the clips, numbers or tensors of one; None: no clip.
    """

    mean: Tensor
    deviation: Tensor
    rmin: Any = None
    rmax: Any = None
    dmax: Any = None


def train(
    front: engine.Front,
    implementation: str | None,
    call: Call,
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    mask: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    gather: Gather | None = None,
    virtual: int | None = None,
    renorm: Renorm | None = None,
) -> tuple[Any, Statistics]:
    """Normalize x with the statistics of its batch.

    Args:
        front, implementation, call, x, gamma, beta, mask, residual: as `engine.normalize` takes
            them; the call reduces axis 0.
        gather: turns a tensor into the stack of every device's, along a new first axis, and has the
            derivative of that; None: the statistics are those of x alone.
        virtual: the samples of a virtual batch, each with statistics of its own, and what is left
            in one of its own (ghost batch normalization, Hoffer et al., 2017, arXiv:1705.08741).
        renorm: the correction of batch renormalization.

    Returns:
        y, with a residual the pair of y and the sum; and the statistics that move the moving ones,
        constant to every derivative.
    """
    total = None
    if residual is not None:
        x = total = add(front.arrays, x, residual)
        call = dataclasses.replace(call, residual=False)
    if virtual is not None:
        pieces = _virtual_batches(front.arrays, call, x, mask, virtual)
        found = [
            _train(front, implementation, inside, one, gamma, beta, hidden, gather, renorm)
            for inside, one, hidden in pieces
        ]
        y, statistics = _joined(front.arrays, call, x, found)
    else:
        y, statistics = _train(front, implementation, call, x, gamma, beta, mask, gather, renorm)
    stop = front.arrays.stop_gradient
    statistics = Statistics(*(stop(one) for one in statistics))
    return (y if total is None else (y, total)), statistics


def _train(
    front: engine.Front,
    implementation: str | None,
    call: Call,
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    mask: Tensor | None,
    gather: Gather | None,
    renorm: Renorm | None,
) -> tuple[Tensor, Statistics]:
    arrays = front.arrays
    if gather is None and renorm is None:
        y, statistics = engine.measure(front, implementation, call, x, gamma, beta, mask)
        return y, statistics
    # Where they are of x alone the fused pair has their derivative.
    operand = arrays.stop_gradient(x) if gather is None else x
    statistics = engine.compute(front, implementation, "moments", call.alone or call, operand, mask)
    if gather is not None:
        parts = gather(arrays.stack(list(statistics)))
        statistics = combined(arrays, Statistics(*(parts[:, i] for i in range(4))))
    if renorm is not None:
        call, gamma, beta = _corrected(arrays, call, x, statistics, gamma, beta, renorm)
    if gather is None:
        y = engine.normalize(front, implementation, call, x, gamma, beta, mask)
    else:
        y = engine.apply(front, implementation, call, x, statistics, gamma, beta, mask)
    return y, statistics


def infer(
    front: engine.Front,
    implementation: str | None,
    call: Call,
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
) -> Any:
    """Normalize x with moving statistics: y, or with a residual the pair of y and the sum.

    A mask changes no value, but keeps NaN that it hides out of the derivatives of gamma and beta.
    """
    arrays = front.arrays
    mean, variance = (arrays.reshape(one, (-1,)) for one in (mean, variance))
    statistics = Statistics(mean, arrays.zeros_like(mean), variance, arrays.zeros_like(mean) + 1.0)
    return engine.apply(front, implementation, call, x, statistics, gamma, beta, mask, residual)


def combined(arrays: Any, parts: Statistics) -> Statistics:
    """The statistics of all parts together, of arrays (parts, groups).

    Means and centered second moments are combined as in Chan, Golub and LeVeque (1983, "Algorithms
    for computing the sample variance"). Parts may have any counts, zero among them.
    """
    count, share = _shares(arrays, parts.count)
    pivot = arrays.stop_gradient(arrays.sum(share * parts.mean, axis=0))
    # Of numbers that are close the difference is exact: no digit of the rests is lost.
    offsets = (parts.mean - pivot) + parts.rest
    rest = arrays.sum(share * offsets, axis=0)
    spread = parts.variance + arrays.square(offsets - rest)
    # A part without an element counts for nothing, whatever its numbers.
    variance = arrays.sum(share * spread, axis=0)
    return Statistics(pivot, rest, variance, count)


def averaged(arrays: Any, parts: Statistics) -> Statistics:
    """Mean and variance averaged over parts by their counts, of arrays (parts, groups).

    So the variance is that within the parts, as virtual batches are normalized with.
    """
    count, share = _shares(arrays, parts.count)
    pivot = arrays.sum(share * parts.mean, axis=0)
    rest = arrays.sum(share * ((parts.mean - pivot) + parts.rest), axis=0)
    return Statistics(pivot, rest, arrays.sum(share * parts.variance, axis=0), count)


def moved(
    arrays: Any,
    mean: Tensor,
    variance: Tensor,
    statistics: Statistics,
    new: Any,
    unbiased: bool,
) -> tuple[Tensor, Tensor]:
    """The moving mean and variance, of any shape, after one batch; as they were if it is empty.

    Args:
        arrays, statistics: as above.
        mean, variance: before.
        new: the share of the batch in them, a number from 0 to 1 or a tensor of one.
        unbiased: take the variance with n - 1 in the denominator, where n is more than one.
    """
    shape, dtype = arrays.shape(mean), arrays.dtype(mean)
    count, found = statistics.count, statistics.variance
    if unbiased:
        found = found * (count / arrays.where(count > 1.0, count - 1.0, 1.0))
    results = []
    for before, after in ((mean, statistics.mean + statistics.rest), (variance, found)):
        flat = arrays.reshape(before, (-1,))
        step = arrays.where(count > 0.0, arrays.cast(after, dtype) - flat, 0.0)
        results.append(arrays.reshape(flat + step * new, shape))
    return results[0], results[1]


def _shares(arrays: Any, counts: Tensor) -> tuple[Tensor, Tensor]:
    """The count of all parts, and each part's share in it."""
    count = arrays.sum(counts, axis=0)
    return count, counts / arrays.where(count > 0.0, count, 1.0)


def _corrected(
    arrays: Any,
    call: Call,
    x: Tensor,
    statistics: Statistics,
    gamma: Tensor | None,
    beta: Tensor | None,
    renorm: Renorm,
) -> tuple[Call, Tensor, Tensor]:
    """The call with gamma and beta that have r and d in them, in the dtype of the statistics."""
    dtype = arrays.dtype(statistics.variance)
    mean, deviation = (
        arrays.cast(arrays.reshape(one, (-1,)), dtype) for one in (renorm.mean, renorm.deviation)
    )
    # Of several virtual batches there are several statistics for each group.
    shape = arrays.shape(x)[0] if call.view.has_samples else 1, arrays.shape(mean)[0]
    mean_of_batch, rest, variance = (arrays.reshape(one, shape) for one in statistics[:3])
    r = arrays.sqrt(variance + call.epsilon) / deviation
    d = ((mean_of_batch - mean) + rest) / deviation
    r = _clipped(arrays, r, renorm.rmin, renorm.rmax)
    if renorm.dmax is not None:
        d = _clipped(arrays, d, -renorm.dmax, renorm.dmax)
    shape = call.view.parameter_shape(arrays.shape(x))
    if call.view.has_samples:
        call = dataclasses.replace(call, view=call.view.vary_over(0))
        shape = call.view.parameter_shape(arrays.shape(x))
    r, d = (arrays.stop_gradient(arrays.reshape(one, shape)) for one in (r, d))
    gamma = arrays.zeros_like(r) + 1.0 if gamma is None else arrays.cast(gamma, dtype)
    scaled = gamma * d
    return call, gamma * r, scaled if beta is None else arrays.cast(beta, dtype) + scaled


def _clipped(arrays: Any, t: Tensor, least: Any, most: Any) -> Tensor:
    if least is not None:
        t = arrays.where(t < least, least, t)
    if most is not None:
        t = arrays.where(t > most, most, t)
    return t


def _virtual_batches(
    arrays: Any, call: Call, x: Tensor, mask: Tensor | None, size: int
) -> list[tuple[Call, Tensor, Tensor | None]]:
    """The whole virtual batches, stacked, and what is left: calls, their x and their masks."""
    rows = arrays.shape(x)[0]
    whole = rows // size
    stacked = dataclasses.replace(call, view=call.view.with_leading_axis())

    def folded(t: Tensor) -> Tensor:
        return arrays.reshape(t[: whole * size], (whole, size, *arrays.shape(t)[1:]))

    pieces: list[tuple[Call, Tensor, Tensor | None]] = []
    if whole:
        pieces.append((stacked, folded(x), None if mask is None else folded(mask)))
    if rows % size or not whole:
        left = slice(whole * size, None)
        pieces.append((call, x[left], None if mask is None else mask[left]))
    return pieces


def _joined(
    arrays: Any, call: Call, x: Tensor, found: list[tuple[Tensor, Statistics]]
) -> tuple[Tensor, Statistics]:
    """y of all virtual batches, and the average of their statistics."""
    shape = arrays.shape(x)
    k0, _, k1, _ = call.view.sizes(shape)
    ys, rows = [], []
    for y, statistics in found:
        sizes = arrays.shape(y)
        # Whole virtual batches are stacked; what is left is one. No -1: an axis may be empty.
        parts, samples = (
            (1, sizes[0]) if len(sizes) == len(shape) else (sizes[0], sizes[0] * sizes[1])
        )
        ys.append(arrays.reshape(y, (samples, *shape[1:])))
        rows.append([arrays.reshape(one, (parts, k0 * k1)) for one in statistics])
    if len(found) == 1:
        return ys[0], averaged(arrays, Statistics(*rows[0]))
    parts = Statistics(*(arrays.concatenate(list(pair)) for pair in zip(*rows, strict=True)))
    return arrays.concatenate(ys), averaged(arrays, parts)
