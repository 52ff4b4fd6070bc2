"""The backward kernels for groups that are read in tiles."""

import triton
import triton.language as tl

from truenorm.triton.common import APPLY, SUM, slope
from truenorm.triton.looped_forward import group_sums, parameter, tile


@triton.jit
def looped_backward(
    x, gamma, beta, dy, statistics, parts, dx, dgamma, dbeta, dtotal,
    rows, bundled, width, chunk, alike, every, sets,
    CENTERED: tl.constexpr, ACTIVATION: tl.constexpr,
    ALONG_ROWS: tl.constexpr, STEP: tl.constexpr, CHUNKS: tl.constexpr, PADDED: tl.constexpr,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr, HEIGHT: tl.constexpr,
    EXACT: tl.constexpr, WIDE: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """As `looped_forward`. `parts` is (outer, CHUNKS, groups, 2): the sums of gamma * dy and of
    gamma * dy * xhat. What is added to the gradients of gamma and beta is left (outer, bundles,
    rows) where they vary along the rows, and (outer, CHUNKS, bundled * width) otherwise.
    """
    bundles = tl.cdiv(bundled, GROUPS)
    program = tl.program_id(0)
    bundle, part, outer = (
        program % bundles,
        program // bundles % CHUNKS,
        program // bundles // CHUNKS,
    )
    start = part * chunk
    end = tl.minimum(start + chunk, rows)
    group = bundle * GROUPS + tl.arange(0, GROUPS * WIDTH) // WIDTH
    exists = group < bundled
    leader = exists & (tl.arange(0, GROUPS * WIDTH) % WIDTH == 0)
    begin = outer.to(tl.int64) * rows * bundled * width
    x += begin
    dy += begin
    at = (outer.to(tl.int64) * bundled + group) * 3
    mean = tl.load(statistics + at, mask=exists, other=0.0)
    rest = tl.load(statistics + at + 1, mask=exists, other=0.0)
    rstd = tl.load(statistics + at + 2, mask=exists, other=0.0)
    owner = (outer // every) % sets

    if STEP != APPLY:
        first = tl.zeros([HEIGHT, GROUPS * WIDTH], COMPUTE)
        second = tl.zeros([HEIGHT, GROUPS * WIDTH], COMPUTE)
        for row in range(start, end, HEIGHT):
            if ALONG_ROWS:
                row_first = tl.zeros([HEIGHT, GROUPS * WIDTH], COMPUTE)
                row_second = tl.zeros([HEIGHT, GROUPS * WIDTH], COMPUTE)
            for column in range(0, width, WIDTH):
                g, xhat, _, _, _ = _looped_pair(
                    x, gamma, beta, dy, mean, rest, rstd, owner, row, column, end,
                    rows, bundled, width, alike, bundle, CENTERED, ACTIVATION, ALONG_ROWS,
                    GROUPS, WIDTH, HEIGHT, EXACT, WIDE, COMPUTE,
                )  # fmt: skip
                if ALONG_ROWS:
                    row_first += g
                    row_second += g * xhat
                else:
                    first += g
                    second += g * xhat
            if ALONG_ROWS:
                b = row + tl.arange(0, HEIGHT)
                if dgamma is not None:
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
        if not ALONG_ROWS:
            # Here one tile spans the width.
            across = group * width + tl.arange(0, GROUPS * WIDTH) % WIDTH
            real = exists & (tl.arange(0, GROUPS * WIDTH) % WIDTH < width)
            if dgamma is not None:
                places = (outer.to(tl.int64) * CHUNKS + part) * bundled * width + across
                tl.store(dgamma + places, sum_second, mask=real)
                tl.store(dbeta + places, sum_first, mask=real)
            if gamma is not None:
                places = owner * (bundled * width // alike) + across // alike
                column_scale = tl.load(gamma + places, mask=real, other=0.0).to(COMPUTE)
                sum_first = sum_first * column_scale
                sum_second = sum_second * column_scale
        sum_first = group_sums(sum_first, GROUPS, WIDTH)
        sum_second = group_sums(sum_second, GROUPS, WIDTH)
    if STEP == SUM:
        at = ((outer.to(tl.int64) * CHUNKS + part) * bundled + group) * 2
        tl.store(parts + at, sum_first, mask=leader)
        tl.store(parts + at + 1, sum_second, mask=leader)
    else:
        if STEP == APPLY:
            index = tl.arange(0, PADDED)
            of = ((outer.to(tl.int64) * CHUNKS + index[:, None]) * bundled + group[None, :]) * 2
            there = (index < CHUNKS)[:, None] & exists[None, :]
            sum_first = tl.sum(tl.load(parts + of, mask=there, other=0.0), 0)
            sum_second = tl.sum(tl.load(parts + of + 1, mask=there, other=0.0), 0)
        share = tl.full([], 1.0, COMPUTE) / rows / width
        sum_first *= share
        sum_second *= share
        dx += begin
        if dtotal is not None:
            dtotal += begin
        for row in range(start, end, HEIGHT):
            for column in range(0, width, WIDTH):
                g, xhat, place, inside, scale = _looped_pair(
                    x, gamma, beta, dy, mean, rest, rstd, owner, row, column, end,
                    rows, bundled, width, alike, bundle, CENTERED, ACTIVATION, ALONG_ROWS,
                    GROUPS, WIDTH, HEIGHT, EXACT, WIDE, COMPUTE,
                )  # fmt: skip
                found = g * scale - xhat * sum_second[None, :]
                if CENTERED:
                    found = found - sum_first[None, :]
                found = found * rstd[None, :]
                if dtotal is not None:
                    found += tl.load(dtotal + place, mask=inside, other=0.0).to(COMPUTE)
                tl.store(dx + place, found.to(dx.dtype.element_ty), mask=inside)


@triton.jit
def _looped_pair(
    x, gamma, beta, dy, mean, rest, rstd, owner, row, column, end,
    rows, bundled, width, alike, bundle,
    CENTERED: tl.constexpr, ACTIVATION: tl.constexpr, ALONG_ROWS: tl.constexpr,
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
    scale = 1.0
    if gamma is not None:
        scale = parameter(
            gamma, owner, b, across, end, rows, bundled, width, alike, ALONG_ROWS, COMPUTE
        )
    if ACTIVATION is not None:
        u = xhat * scale
        if beta is not None:
            u = u + parameter(
                beta, owner, b, across, end, rows, bundled, width, alike, ALONG_ROWS, COMPUTE
            )
        g = tl.where(inside, g * slope(u, ACTIVATION), 0.0)
    return g, xhat, place, inside, scale


@triton.jit
def column_sums(
    x, gamma, beta, dy, statistics, dgamma, dbeta,
    groups, width, chunk,
    CENTERED: tl.constexpr, ACTIVATION: tl.constexpr,
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
        rstd = tl.load(statistics + row.to(tl.int64) * 3 + 2, mask=exists, other=0.0)
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
