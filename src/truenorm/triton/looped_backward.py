"""The backward kernels for groups that are read in tiles.

As forward: one kernel for whole groups, and three where these are cut into chunks. What the chunks
leave are the sums of w and of w * xhat, where w is gamma * dy; or dy alone where gamma is
one number for each group (UNIFORM), so that these are the gradients of beta and gamma too. Of given
statistics the chunks write dx at once, as it does not depend on the sums: these give the gradients
in the statistics.
"""

import triton
import triton.language as tl

from truenorm.triton.common import inverse_deviation, slope
from truenorm.triton.looped_forward import (
    chunk_of,
    group_sums,
    leading,
    of_groups,
    parameter,
    tile,
)


@triton.jit
def _given(statistics, outer, bundled, group, exists, EPSILON: tl.constexpr):
    """The mean, the rest and 1 / deviation of each column's group."""
    at = (outer.to(tl.int64) * bundled + group) * 3
    mean = tl.load(statistics + at, mask=exists, other=0.0)
    rest = tl.load(statistics + at + 1, mask=exists, other=0.0)
    variance = tl.load(statistics + at + 2, mask=exists, other=1.0)
    return mean, rest, inverse_deviation(variance, EPSILON)


@triton.jit
def _chunk_sums(
    x, gamma, beta, dy, dx, dgamma, dbeta, mean, rest, rstd, owner, start, end, left, right,
    bundle, piece, outer, group, exists, rows, bundled, width, alike,
    CENTERED: tl.constexpr, ACTIVATION: tl.constexpr,
    ALONG_ROWS: tl.constexpr, UNIFORM: tl.constexpr,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr, HEIGHT: tl.constexpr,
    EXACT: tl.constexpr, WIDE: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """The two sums of a chunk, for each column those of its group; dx of given statistics.

    Unless UNIFORM, what is added to the gradients of gamma and beta is left (outer, bundles, rows)
    where they vary along the rows, and (outer, chunks, bundled * width) otherwise.
    """
    scale, shift = of_groups(
        gamma, beta, owner, group, rows, bundled, width, alike, UNIFORM, COMPUTE
    )
    first = tl.zeros([HEIGHT, GROUPS * WIDTH], COMPUTE)
    second = tl.zeros([HEIGHT, GROUPS * WIDTH], COMPUTE)
    for row in range(start, end, HEIGHT):
        if ALONG_ROWS:
            row_first = tl.zeros([HEIGHT, GROUPS * WIDTH], COMPUTE)
            row_second = tl.zeros([HEIGHT, GROUPS * WIDTH], COMPUTE)
        for column in range(left, right, WIDTH):
            g, xhat, place, inside, factor = _looped_pair(
                x, gamma, beta, scale, shift, dy, mean, rest, rstd, owner, row, column, end,
                rows, bundled, width, alike, bundle, CENTERED, ACTIVATION, ALONG_ROWS, UNIFORM,
                GROUPS, WIDTH, HEIGHT, EXACT, WIDE, COMPUTE,
            )  # fmt: skip
            if dx is not None:
                found = g * factor * rstd[None, :]
                tl.store(dx + place, found.to(dx.dtype.element_ty), mask=inside)
            if ALONG_ROWS:
                row_first += g
                row_second += g * xhat
            else:
                first += g
                second += g * xhat
        if ALONG_ROWS:
            b = row + tl.arange(0, HEIGHT)
            if dgamma is not None:
                bundles = tl.cdiv(bundled, GROUPS)
                places = (outer.to(tl.int64) * bundles + bundle) * rows + b
                tl.store(dgamma + places, tl.sum(row_second, 1), mask=b < end)
                tl.store(dbeta + places, tl.sum(row_first, 1), mask=b < end)
            if gamma is not None:
                row_scale = parameter(
                    gamma, owner, b, b, end, rows, bundled, width, alike,
                    True, COMPUTE,
                )  # fmt: skip
                row_first = row_first * row_scale
                row_second = row_second * row_scale
            first += row_first
            second += row_second
    sum_first = tl.sum(first, 0)
    sum_second = tl.sum(second, 0)
    if not ALONG_ROWS and not UNIFORM:
        # Here one tile spans the width.
        across = group * width + tl.arange(0, GROUPS * WIDTH) % WIDTH
        real = exists & (tl.arange(0, GROUPS * WIDTH) % WIDTH < width)
        if dgamma is not None:
            places = piece.to(tl.int64) * bundled * width + across
            tl.store(dgamma + places, sum_second, mask=real)
            tl.store(dbeta + places, sum_first, mask=real)
        if gamma is not None:
            places = owner * (bundled * width // alike) + across // alike
            column_scale = tl.load(gamma + places, mask=real, other=0.0).to(COMPUTE)
            sum_first = sum_first * column_scale
            sum_second = sum_second * column_scale
    return group_sums(sum_first, GROUPS, WIDTH), group_sums(sum_second, GROUPS, WIDTH)


@triton.jit
def _write(
    x, gamma, beta, dy, dx, dtotal, mean, rest, rstd, first, second, owner, start, end, left, right,
    bundle, group, rows, bundled, width, alike,
    CENTERED: tl.constexpr, ACTIVATION: tl.constexpr,
    ALONG_ROWS: tl.constexpr, UNIFORM: tl.constexpr,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr, HEIGHT: tl.constexpr,
    EXACT: tl.constexpr, WIDE: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """dx of a chunk, from the sums of its groups."""
    scale, shift = of_groups(
        gamma, beta, owner, group, rows, bundled, width, alike, UNIFORM, COMPUTE
    )
    share = tl.full([], 1.0, COMPUTE) / rows / width
    first *= share
    second *= share
    for row in range(start, end, HEIGHT):
        for column in range(left, right, WIDTH):
            g, xhat, place, inside, factor = _looped_pair(
                x, gamma, beta, scale, shift, dy, mean, rest, rstd, owner, row, column, end,
                rows, bundled, width, alike, bundle, CENTERED, ACTIVATION, ALONG_ROWS, UNIFORM,
                GROUPS, WIDTH, HEIGHT, EXACT, WIDE, COMPUTE,
            )  # fmt: skip
            found = g if UNIFORM else g * factor
            found = found - xhat * second[None, :]
            if CENTERED:
                found = found - first[None, :]
            if UNIFORM:
                found = found * factor
            found = found * rstd[None, :]
            if dtotal is not None:
                found += tl.load(dtotal + place, mask=inside, other=0.0).to(COMPUTE)
            tl.store(dx + place, found.to(dx.dtype.element_ty), mask=inside)


@triton.jit
def looped_backward(
    x, gamma, beta, dy, statistics, dx, dgamma, dbeta, dtotal,
    rows, bundled, width, chunk, stretch, alike, every, sets,
    EPSILON: tl.constexpr, CENTERED: tl.constexpr, ACTIVATION: tl.constexpr,
    ALONG_ROWS: tl.constexpr, UNIFORM: tl.constexpr,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr, HEIGHT: tl.constexpr,
    EXACT: tl.constexpr, WIDE: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """A program has GROUPS neighbouring groups, whole. What is added to the gradients of gamma and
    beta is left as in `_chunk_sums`, and if UNIFORM (outer, groups).
    """
    bundle, piece, outer, start, end, left, right, group, exists = chunk_of(
        rows, bundled, width, chunk, stretch, GROUPS, WIDTH
    )
    begin = outer.to(tl.int64) * rows * bundled * width
    x += begin
    dy += begin
    dx += begin
    if dtotal is not None:
        dtotal += begin
    mean, rest, rstd = _given(statistics, outer, bundled, group, exists, EPSILON)
    owner = (outer // every) % sets
    first, second = _chunk_sums(
        x, gamma, beta, dy, None, dgamma, dbeta, mean, rest, rstd, owner, start, end, left, right,
        bundle, piece, outer, group, exists, rows, bundled, width, alike, CENTERED, ACTIVATION,
        ALONG_ROWS, UNIFORM, GROUPS, WIDTH, HEIGHT, EXACT, WIDE, COMPUTE,
    )  # fmt: skip
    if UNIFORM and dgamma is not None:
        lead = leading(exists, GROUPS, WIDTH)
        at = outer.to(tl.int64) * bundled + group
        tl.store(dgamma + at, second, mask=lead)
        tl.store(dbeta + at, first, mask=lead)
    _write(
        x, gamma, beta, dy, dx, dtotal, mean, rest, rstd, first, second, owner, start, end, left,
        right, bundle, group, rows, bundled, width, alike, CENTERED, ACTIVATION,
        ALONG_ROWS, UNIFORM, GROUPS, WIDTH, HEIGHT, EXACT, WIDE, COMPUTE,
    )  # fmt: skip


@triton.jit
def chunk_sums(
    x, gamma, beta, dy, statistics, parts, dgamma, dbeta,
    rows, bundled, width, chunk, stretch, alike, every, sets,
    EPSILON: tl.constexpr, CENTERED: tl.constexpr, ACTIVATION: tl.constexpr,
    ALONG_ROWS: tl.constexpr, UNIFORM: tl.constexpr,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr, HEIGHT: tl.constexpr,
    EXACT: tl.constexpr, WIDE: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """A program has a chunk of GROUPS groups, and leaves its two sums: `parts` is
    (outer, chunks, groups, 2).
    """
    given_backward(
        x, gamma, beta, dy, statistics, parts, None, dgamma, dbeta,
        rows, bundled, width, chunk, stretch, alike, every, sets,
        EPSILON, CENTERED, ACTIVATION,
        ALONG_ROWS, UNIFORM, GROUPS, WIDTH, HEIGHT, EXACT, WIDE, COMPUTE,
    )  # fmt: skip


@triton.jit
def given_backward(
    x, gamma, beta, dy, statistics, parts, dx, dgamma, dbeta,
    rows, bundled, width, chunk, stretch, alike, every, sets,
    EPSILON: tl.constexpr, CENTERED: tl.constexpr, ACTIVATION: tl.constexpr,
    ALONG_ROWS: tl.constexpr, UNIFORM: tl.constexpr,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr, HEIGHT: tl.constexpr,
    EXACT: tl.constexpr, WIDE: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """The same, and dx where the statistics are given."""
    bundle, piece, outer, start, end, left, right, group, exists = chunk_of(
        rows, bundled, width, chunk, stretch, GROUPS, WIDTH
    )
    begin = outer.to(tl.int64) * rows * bundled * width
    if dx is not None:
        dx += begin
    mean, rest, rstd = _given(statistics, outer, bundled, group, exists, EPSILON)
    first, second = _chunk_sums(
        x + begin, gamma, beta, dy + begin, dx, dgamma, dbeta, mean, rest, rstd,
        (outer // every) % sets, start, end, left, right, bundle, piece, outer,
        group, exists, rows, bundled, width, alike, CENTERED, ACTIVATION,
        ALONG_ROWS, UNIFORM, GROUPS, WIDTH, HEIGHT, EXACT, WIDE, COMPUTE,
    )  # fmt: skip
    lead = leading(exists, GROUPS, WIDTH)
    at = (piece.to(tl.int64) * bundled + group) * 2
    tl.store(parts + at, first, mask=lead)
    tl.store(parts + at + 1, second, mask=lead)


@triton.jit
def combine_sums(
    parts, sums,
    rows, bundled, width, chunk, stretch,
    GROUPS: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """A program adds up the chunks of GROUPS groups: `sums` is (outer, groups, 2)."""
    bundles = tl.cdiv(bundled, GROUPS)
    chunks = tl.cdiv(rows, chunk) * tl.cdiv(width, stretch)
    bundle, outer = tl.program_id(0) % bundles, tl.program_id(0) // bundles
    group = bundle * GROUPS + tl.arange(0, GROUPS)
    exists = group < bundled
    index = tl.arange(0, PADDED)
    of = ((outer.to(tl.int64) * chunks + index[:, None]) * bundled + group[None, :]) * 2
    there = (index < chunks)[:, None] & exists[None, :]
    at = (outer.to(tl.int64) * bundled + group) * 2
    found = tl.sum(tl.load(parts + of, mask=there, other=0.0), 0)
    tl.store(sums + at, found, mask=exists)
    found = tl.sum(tl.load(parts + of + 1, mask=there, other=0.0), 0)
    tl.store(sums + at + 1, found, mask=exists)


@triton.jit
def looped_gradient(
    x, gamma, beta, dy, statistics, sums, dx, dtotal,
    rows, bundled, width, chunk, stretch, alike, every, sets,
    EPSILON: tl.constexpr, CENTERED: tl.constexpr, ACTIVATION: tl.constexpr,
    ALONG_ROWS: tl.constexpr, UNIFORM: tl.constexpr,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr, HEIGHT: tl.constexpr,
    EXACT: tl.constexpr, WIDE: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """A program has a chunk of GROUPS groups, whose sums are given."""
    bundle, _, outer, start, end, left, right, group, exists = chunk_of(
        rows, bundled, width, chunk, stretch, GROUPS, WIDTH
    )
    begin = outer.to(tl.int64) * rows * bundled * width
    if dtotal is not None:
        dtotal += begin
    mean, rest, rstd = _given(statistics, outer, bundled, group, exists, EPSILON)
    at = (outer.to(tl.int64) * bundled + group) * 2
    first = tl.load(sums + at, mask=exists, other=0.0)
    second = tl.load(sums + at + 1, mask=exists, other=0.0)
    _write(
        x + begin, gamma, beta, dy + begin, dx + begin, dtotal, mean, rest, rstd, first, second,
        (outer // every) % sets, start, end, left, right, bundle, group,
        rows, bundled, width, alike,
        CENTERED, ACTIVATION,
        ALONG_ROWS, UNIFORM, GROUPS, WIDTH, HEIGHT, EXACT, WIDE, COMPUTE,
    )  # fmt: skip


@triton.jit
def _looped_pair(
    x, gamma, beta, scale, shift, dy, mean, rest, rstd, owner, row, column, end,
    rows, bundled, width, alike, bundle,
    CENTERED: tl.constexpr, ACTIVATION: tl.constexpr,
    ALONG_ROWS: tl.constexpr, UNIFORM: tl.constexpr,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr, HEIGHT: tl.constexpr,
    EXACT: tl.constexpr, WIDE: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """The gradient before the activation, and xhat, of a tile; zero outside; where it is; gamma."""
    place, inside, b, across = tile(
        row, column, end, bundled, width, bundle, GROUPS, WIDTH, HEIGHT, EXACT, WIDE
    )
    xhat = tl.load(x + place, mask=inside, other=0.0).to(COMPUTE)
    g = tl.load(dy + place, mask=inside, other=0.0).to(COMPUTE)
    if CENTERED:
        xhat = (xhat - mean[None, :]) - rest[None, :]
    xhat = tl.where(inside, xhat * rstd[None, :], 0.0)
    if not UNIFORM and gamma is not None:
        scale = parameter(
            gamma, owner, b, across, end, rows, bundled, width, alike, ALONG_ROWS, COMPUTE
        )
    if ACTIVATION is not None:
        if not UNIFORM and beta is not None:
            shift = parameter(
                beta, owner, b, across, end, rows, bundled, width, alike, ALONG_ROWS, COMPUTE
            )
        g = tl.where(inside, g * slope(xhat * scale + shift, ACTIVATION), 0.0)
    return g, xhat, place, inside, scale


@triton.jit
def column_sums(
    x, gamma, beta, dy, statistics, dgamma, dbeta,
    groups, width, chunk,
    EPSILON: tl.constexpr, CENTERED: tl.constexpr, ACTIVATION: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """The gradients of gamma and beta of rows that share them and are too wide to be held:
    a program adds WIDTH columns of a chunk of rows, and leaves (chunks, width).
    """
    blocks = tl.cdiv(width, WIDTH)
    block, part = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    column = block * WIDTH + tl.arange(0, WIDTH)
    within = column < width
    start = part * chunk
    end = tl.minimum(start + chunk, groups)
    scale = 1.0
    if ACTIVATION is not None and gamma is not None:
        scale = tl.load(gamma + column, mask=within, other=0.0).to(COMPUTE)[None, :]
    sum_gamma = tl.zeros([HEIGHT, WIDTH], COMPUTE)
    sum_beta = tl.zeros([HEIGHT, WIDTH], COMPUTE)
    for first in range(start, end, HEIGHT):
        row = first + tl.arange(0, HEIGHT)
        exists = row < end
        inside = exists[:, None] & within[None, :]
        place = row.to(tl.int64)[:, None] * width + column[None, :]
        variance = tl.load(statistics + row.to(tl.int64) * 3 + 2, mask=exists, other=1.0)
        rstd = inverse_deviation(variance, EPSILON)
        xhat = tl.load(x + place, mask=inside, other=0.0).to(COMPUTE)
        g = tl.load(dy + place, mask=inside, other=0.0).to(COMPUTE)
        if CENTERED:
            mean = tl.load(statistics + row.to(tl.int64) * 3, mask=exists, other=0.0)
            rest = tl.load(statistics + row.to(tl.int64) * 3 + 1, mask=exists, other=0.0)
            xhat = (xhat - mean[:, None]) - rest[:, None]
        xhat = tl.where(inside, xhat * rstd[:, None], 0.0)
        if ACTIVATION is not None:
            u = xhat * scale
            if beta is not None:
                u = u + tl.load(beta + column, mask=within, other=0.0).to(COMPUTE)[None, :]
            g = tl.where(inside, g * slope(u, ACTIVATION), 0.0)
        sum_gamma += g * xhat
        sum_beta += g
    places = part.to(tl.int64) * width + column
    tl.store(dgamma + places, tl.sum(sum_gamma, 0), mask=within)
    tl.store(dbeta + places, tl.sum(sum_beta, 0), mask=within)
