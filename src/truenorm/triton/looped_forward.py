"""The forward kernel for groups that are read in tiles; what the backward one has too."""

import triton
import triton.language as tl

from truenorm.triton.common import APPLY, SUM, WHOLE, activate, read


@triton.jit
def group_sums(t, GROUPS: tl.constexpr, WIDTH: tl.constexpr):
    """For each column of a tile, the sum of a row of numbers over its group's columns."""
    total = tl.sum(tl.reshape(t, (GROUPS, WIDTH)), 1)
    spread = tl.broadcast_to(total[:, None], (GROUPS, WIDTH))
    return tl.reshape(spread, (GROUPS * WIDTH,))


@triton.jit
def tile(
    row, column, end, bundled, width, bundle,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr, HEIGHT: tl.constexpr,
    EXACT: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The places of a tile's elements in their sample, what is inside, rows and columns.

    EXACT: tiles have no column beyond their groups, which the compiler could not know: loads are
    of several elements at once then.
    """
    b = row + tl.arange(0, HEIGHT)
    i = tl.arange(0, GROUPS * WIDTH)
    if EXACT:
        across = bundle * (GROUPS * WIDTH) + i
        inside = (b < end)[:, None] & (i >= 0)[None, :]
    else:
        group = bundle * GROUPS + i // WIDTH
        across = group * width + column + i % WIDTH
        inside = (b < end)[:, None] & ((group < bundled) & (column + i % WIDTH < width))[None, :]
    if WIDE:
        place = b.to(tl.int64)[:, None] * (bundled * width) + across[None, :]
    else:
        place = b[:, None] * (bundled * width) + across[None, :]
    return place, inside, b, across


@triton.jit
def parameter(
    pointer, owner, b, across, end, rows, bundled, width, alike,
    ALONG_ROWS: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """gamma or beta for a tile: (rows, 1) or (1, columns)."""
    if ALONG_ROWS:
        found = tl.load(pointer + owner * rows + b, mask=b < end, other=0.0)
        found = found.to(COMPUTE)[:, None]
    else:
        size = bundled * width
        places = owner * (size // alike) + across // alike
        found = tl.load(pointer + places, mask=across < size, other=0.0)
        found = found.to(COMPUTE)[None, :]
    return found


@triton.jit
def _looped_sums(
    x, residual, pivot, root, start, end, bundled, width, bundle,
    CENTERED: tl.constexpr,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr, HEIGHT: tl.constexpr,
    EXACT: tl.constexpr, WIDE: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Of the deviations from the pivot in a chunk: their sum, and that of root**2 their squares."""
    first = tl.zeros([HEIGHT, GROUPS * WIDTH], COMPUTE)
    second = tl.zeros([HEIGHT, GROUPS * WIDTH], COMPUTE)
    for row in range(start, end, 2 * HEIGHT):
        for column in range(0, width, WIDTH):
            # Two tiles in flight, one in the sums: more of either and registers spill.
            place, inside, _, _ = tile(
                row, column, end, bundled, width, bundle, GROUPS, WIDTH, HEIGHT, EXACT, WIDE
            )
            z = read(x, residual, place, inside, COMPUTE)
            below = row + HEIGHT
            place, within, _, _ = tile(
                below, column, end, bundled, width, bundle, GROUPS, WIDTH, HEIGHT, EXACT, WIDE
            )
            more = read(x, residual, place, within, COMPUTE)
            if CENTERED:
                z = tl.where(inside, z - pivot[None, :], 0.0)
                more = tl.where(within, more - pivot[None, :], 0.0)
                first += z + more
            z = z * root
            more = more * root
            second += z * z + more * more
    return (
        group_sums(tl.sum(first, 0), GROUPS, WIDTH),
        group_sums(tl.sum(second, 0), GROUPS, WIDTH),
    )


@triton.jit
def looped_forward(
    x, gamma, beta, parts, y, statistics, residual, total,
    rows, bundled, width, chunk, alike, every, sets,
    EPSILON: tl.constexpr, CENTERED: tl.constexpr, ACTIVATION: tl.constexpr,
    ALONG_ROWS: tl.constexpr, STEP: tl.constexpr, CHUNKS: tl.constexpr, PADDED: tl.constexpr,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr, HEIGHT: tl.constexpr,
    EXACT: tl.constexpr, WIDE: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """A program has a chunk of GROUPS neighbouring groups; `parts` is (outer, CHUNKS, groups, 3):
    pivot, rest and variance of each chunk.
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
    leader = exists & (tl.arange(0, GROUPS * WIDTH) % WIDTH == 0)  # one column of each group
    begin = outer.to(tl.int64) * rows * bundled * width
    x += begin
    if residual is not None:
        residual += begin

    pivot = tl.zeros([GROUPS * WIDTH], COMPUTE)
    rest = tl.zeros([GROUPS * WIDTH], COMPUTE)
    if STEP != APPLY:
        share = tl.full([], 1.0, COMPUTE) / (end - start) / width
        if CENTERED:
            place, inside, _, _ = tile(
                start, 0, end, bundled, width, bundle, GROUPS, WIDTH, HEIGHT, EXACT, WIDE
            )
            z = read(x, residual, place, inside, COMPUTE)
            seen = tl.minimum(end - start, HEIGHT) * tl.minimum(width, WIDTH)
            pivot = group_sums(tl.sum(z, 0), GROUPS, WIDTH) / seen.to(COMPUTE)
        variance = tl.zeros([GROUPS * WIDTH], COMPUTE)
        passes = 2 if CENTERED else 1
        while passes > 0:
            first, variance = _looped_sums(
                x, residual, pivot, tl.sqrt(share), start, end, bundled, width, bundle,
                CENTERED, GROUPS, WIDTH, HEIGHT, EXACT, WIDE, COMPUTE,
            )  # fmt: skip
            passes -= 1
            if CENTERED:
                rest = first * share
                variance -= rest * rest
                far = tl.max(tl.where(rest * rest > 4.0 * variance, 1, 0))
                passes = tl.minimum(passes, far)
                if passes > 0:
                    pivot += rest
    if STEP == SUM:
        at = ((outer.to(tl.int64) * CHUNKS + part) * bundled + group) * 3
        tl.store(parts + at, pivot, mask=leader)
        tl.store(parts + at + 1, rest, mask=leader)
        tl.store(parts + at + 2, variance, mask=leader)
    else:
        if STEP == APPLY:
            # Combine the chunks: the first one's pivot stands for all.
            index = tl.arange(0, PADDED)
            of = ((outer.to(tl.int64) * CHUNKS + index[:, None]) * bundled + group[None, :]) * 3
            there = (index < CHUNKS)[:, None] & exists[None, :]
            size = tl.minimum(index * chunk + chunk, rows) - index * chunk
            weight = tl.where(index < CHUNKS, size.to(COMPUTE), 0.0) / rows
            variance = tl.load(parts + of + 2, mask=there, other=0.0)
            if CENTERED:
                lead = outer.to(tl.int64) * CHUNKS * bundled + group
                pivot = tl.load(parts + lead * 3, mask=exists, other=0.0)
                off = tl.load(parts + of, mask=there, other=0.0) - pivot[None, :]
                off += tl.load(parts + of + 1, mask=there, other=0.0)
                rest = tl.sum(weight[:, None] * off, 0)
                off = (off - rest[None, :]) * tl.sqrt(weight)[:, None]
                variance = tl.sum(weight[:, None] * variance + off * off, 0)
            else:
                variance = tl.sum(weight[:, None] * variance, 0)
        power = variance + EPSILON
        if CENTERED:
            # Rounding can take it below zero where a constant group is huge.
            added = tl.full([GROUPS * WIDTH], EPSILON, COMPUTE)
            power = tl.where(power < 0.5 * EPSILON, added, power)
        rstd = 1.0 / tl.sqrt(power)
        if statistics is not None and (STEP == WHOLE or part == 0):
            at = (outer.to(tl.int64) * bundled + group) * 3
            tl.store(statistics + at, pivot, mask=leader)
            tl.store(statistics + at + 1, rest, mask=leader)
            tl.store(statistics + at + 2, rstd, mask=leader)

        y += begin
        if total is not None:
            total += begin
        owner = (outer // every) % sets
        for row in range(start, end, HEIGHT):
            for column in range(0, width, WIDTH):
                place, inside, b, across = tile(
                    row, column, end, bundled, width, bundle, GROUPS, WIDTH, HEIGHT, EXACT, WIDE
                )
                u = read(x, residual, place, inside, COMPUTE)
                if total is not None:
                    tl.store(total + place, u.to(total.dtype.element_ty), mask=inside)
                if CENTERED:
                    u = (u - pivot[None, :]) - rest[None, :]
                u = u * rstd[None, :]
                if gamma is not None:
                    u = u * parameter(
                        gamma, owner, b, across, end, rows, bundled, width, alike,
                        ALONG_ROWS, COMPUTE,
                    )  # fmt: skip
                if beta is not None:
                    u = u + parameter(
                        beta, owner, b, across, end, rows, bundled, width, alike,
                        ALONG_ROWS, COMPUTE,
                    )  # fmt: skip
                u = activate(u, ACTIVATION)
                tl.store(y + place, u.to(y.dtype.element_ty), mask=inside)
