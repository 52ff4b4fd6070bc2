"""The forward kernels for groups that are read in tiles; what the backward ones have too.

One kernel computes whole groups. Where these are cut into chunks there are three: the statistics of
the chunks, their combination, and its application. The last also applies statistics that are given.
"""

import triton
import triton.language as tl

from truenorm.triton.common import activate, inverse_deviation, read


@triton.jit
def group_sums(t, GROUPS: tl.constexpr, WIDTH: tl.constexpr):
    """For each column of a tile, the sum of a row of numbers over its group's columns."""
    total = tl.sum(tl.reshape(t, (GROUPS, WIDTH)), 1)
    spread = tl.broadcast_to(total[:, None], (GROUPS, WIDTH))
    return tl.reshape(spread, (GROUPS * WIDTH,))


@triton.jit
def chunk_of(
    rows, bundled, width, chunk, stretch, GROUPS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """What a program has: its bundle of groups, which of all chunks, and of which sample; the rows
    and the columns of the chunk, the first and the one after the last; the group of each column of
    a tile, and which exist.
    """
    bundles, down, across = tl.cdiv(bundled, GROUPS), tl.cdiv(rows, chunk), tl.cdiv(width, stretch)
    bundle, piece = tl.program_id(0) % bundles, tl.program_id(0) // bundles
    start, left = piece % down * chunk, piece // down % across * stretch
    end, right = tl.minimum(start + chunk, rows), tl.minimum(left + stretch, width)
    group = bundle * GROUPS + tl.arange(0, GROUPS * WIDTH) // WIDTH
    return bundle, piece, piece // (down * across), start, end, left, right, group, group < bundled


@triton.jit
def leading(exists, GROUPS: tl.constexpr, WIDTH: tl.constexpr):
    """One column of each group."""
    return exists & (tl.arange(0, GROUPS * WIDTH) % WIDTH == 0)


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
        # With several groups the tile spans their width, and a constant tells how they are aligned.
        across = bundle * (GROUPS * WIDTH) + i if GROUPS > 1 else bundle * width + column + i
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
def of_groups(
    gamma, beta, owner, group, rows, bundled, width, alike,
    UNIFORM: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """gamma and beta for all tiles of a program where they are one number for each group (UNIFORM),
    (1, columns); one and zero where they are not there, and where each tile reads its own.
    """
    scale = 1.0
    shift = 0.0
    if UNIFORM:
        first = group * width
        if gamma is not None:
            scale = parameter(
                gamma, owner, first, first, rows, rows, bundled, width, alike, False, COMPUTE
            )
        if beta is not None:
            shift = parameter(
                beta, owner, first, first, rows, rows, bundled, width, alike, False, COMPUTE
            )
    return scale, shift


@triton.jit
def _looped_sums(
    x, residual, pivot, root, start, end, left, right, bundled, width, bundle,
    CENTERED: tl.constexpr,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr, HEIGHT: tl.constexpr,
    EXACT: tl.constexpr, WIDE: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Of the deviations from the pivot in a chunk: their sum, and that of root**2 their squares."""
    first = tl.zeros([HEIGHT, GROUPS * WIDTH], COMPUTE)
    second = tl.zeros([HEIGHT, GROUPS * WIDTH], COMPUTE)
    for row in range(start, end, 2 * HEIGHT):
        for column in range(left, right, WIDTH):
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
def _chunk_statistics(
    x, residual, start, end, left, right, bundled, width, bundle,
    CENTERED: tl.constexpr,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr, HEIGHT: tl.constexpr,
    EXACT: tl.constexpr, WIDE: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """The pivot, the rest and the variance of a chunk, for each column that of its group."""
    pivot = tl.zeros([GROUPS * WIDTH], COMPUTE)
    rest = tl.zeros([GROUPS * WIDTH], COMPUTE)
    share = tl.full([], 1.0, COMPUTE) / (end - start) / (right - left)
    if CENTERED:
        place, inside, _, _ = tile(
            start, left, end, bundled, width, bundle, GROUPS, WIDTH, HEIGHT, EXACT, WIDE
        )
        z = read(x, residual, place, inside, COMPUTE)
        seen = tl.minimum(end - start, HEIGHT) * tl.minimum(right - left, WIDTH)
        pivot = group_sums(tl.sum(z, 0), GROUPS, WIDTH) / seen.to(COMPUTE)
    variance = tl.zeros([GROUPS * WIDTH], COMPUTE)
    passes = 2 if CENTERED else 1
    while passes > 0:
        first, variance = _looped_sums(
            x, residual, pivot, tl.sqrt(share), start, end, left, right, bundled, width, bundle,
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
    # Rounding can take it below zero where a group is constant.
    return pivot, rest, tl.where(variance < 0.0, 0.0, variance)


@triton.jit
def store_statistics(pointer, group, mask, mean, rest, variance):
    """Write the three numbers of each group."""
    tl.store(pointer + group * 3, mean, mask=mask)
    tl.store(pointer + group * 3 + 1, rest, mask=mask)
    tl.store(pointer + group * 3 + 2, variance, mask=mask)


@triton.jit
def _write(
    x, gamma, beta, y, residual, total, mean, rest, rstd, owner, start, end, left, right, bundle,
    group, rows, bundled, width, alike,
    CENTERED: tl.constexpr, ACTIVATION: tl.constexpr,
    ALONG_ROWS: tl.constexpr, UNIFORM: tl.constexpr,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr, HEIGHT: tl.constexpr,
    EXACT: tl.constexpr, WIDE: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """y of a chunk, and the sum with the residual."""
    scale, shift = of_groups(
        gamma, beta, owner, group, rows, bundled, width, alike, UNIFORM, COMPUTE
    )
    for row in range(start, end, HEIGHT):
        for column in range(left, right, WIDTH):
            place, inside, b, across = tile(
                row, column, end, bundled, width, bundle, GROUPS, WIDTH, HEIGHT, EXACT, WIDE
            )
            u = read(x, residual, place, inside, COMPUTE)
            if total is not None:
                tl.store(total + place, u.to(total.dtype.element_ty), mask=inside)
            if CENTERED:
                u = (u - mean[None, :]) - rest[None, :]
            u = u * rstd[None, :]
            if UNIFORM:
                u = u * scale + shift
            else:
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


@triton.jit
def looped_forward(
    x, gamma, beta, y, statistics, residual, total,
    rows, bundled, width, chunk, stretch, alike, every, sets,
    EPSILON: tl.constexpr, CENTERED: tl.constexpr, ACTIVATION: tl.constexpr,
    ALONG_ROWS: tl.constexpr, UNIFORM: tl.constexpr,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr, HEIGHT: tl.constexpr,
    EXACT: tl.constexpr, WIDE: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """A program has GROUPS neighbouring groups, whole: there is one chunk."""
    bundle, _, outer, start, end, left, right, group, exists = chunk_of(
        rows, bundled, width, chunk, stretch, GROUPS, WIDTH
    )
    begin = outer.to(tl.int64) * rows * bundled * width
    x += begin
    if residual is not None:
        residual += begin
        total += begin
    mean, rest, variance = _chunk_statistics(
        x, residual, start, end, left, right, bundled, width, bundle,
        CENTERED, GROUPS, WIDTH, HEIGHT, EXACT, WIDE, COMPUTE,
    )  # fmt: skip
    if statistics is not None:
        lead = leading(exists, GROUPS, WIDTH)
        place = outer.to(tl.int64) * bundled + group
        store_statistics(statistics, place, lead, mean, rest, variance)
    _write(
        x, gamma, beta, y + begin, residual, total,
        mean, rest, inverse_deviation(variance, EPSILON),
        (outer // every) % sets, start, end, left, right, bundle, group,
        rows, bundled, width, alike, CENTERED, ACTIVATION, ALONG_ROWS, UNIFORM,
        GROUPS, WIDTH, HEIGHT, EXACT, WIDE, COMPUTE,
    )  # fmt: skip


@triton.jit
def chunk_statistics(
    x, parts,
    rows, bundled, width, chunk, stretch,
    CENTERED: tl.constexpr,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr, HEIGHT: tl.constexpr,
    EXACT: tl.constexpr, WIDE: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """A program has a chunk of GROUPS groups, and leaves its pivot, rest and variance: `parts` is
    (outer, chunks, groups, 3).
    """
    bundle, piece, outer, start, end, left, right, group, exists = chunk_of(
        rows, bundled, width, chunk, stretch, GROUPS, WIDTH
    )
    begin = outer.to(tl.int64) * rows * bundled * width
    mean, rest, variance = _chunk_statistics(
        x + begin, None, start, end, left, right, bundled, width, bundle,
        CENTERED, GROUPS, WIDTH, HEIGHT, EXACT, WIDE, COMPUTE,
    )  # fmt: skip
    lead = leading(exists, GROUPS, WIDTH)
    store_statistics(parts, piece.to(tl.int64) * bundled + group, lead, mean, rest, variance)


@triton.jit
def combine_statistics(
    parts, statistics,
    rows, bundled, width, chunk, stretch,
    CENTERED: tl.constexpr, GROUPS: tl.constexpr, PADDED: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """A program combines the chunks of GROUPS groups: PADDED is at least their number."""
    bundles, down = tl.cdiv(bundled, GROUPS), tl.cdiv(rows, chunk)
    chunks = down * tl.cdiv(width, stretch)
    bundle, outer = tl.program_id(0) % bundles, tl.program_id(0) // bundles
    group = bundle * GROUPS + tl.arange(0, GROUPS)
    exists = group < bundled
    index = tl.arange(0, PADDED)
    of = ((outer.to(tl.int64) * chunks + index[:, None]) * bundled + group[None, :]) * 3
    there = (index < chunks)[:, None] & exists[None, :]
    start, left = index % down * chunk, index // down * stretch
    size = tl.minimum(chunk, rows - start) * tl.minimum(stretch, width - left)
    weight = tl.where(index < chunks, size.to(COMPUTE), 0.0) / rows / width
    mean = tl.zeros([GROUPS], COMPUTE)
    rest = tl.zeros([GROUPS], COMPUTE)
    variance = tl.load(parts + of + 2, mask=there, other=0.0)
    if CENTERED:
        # The first chunk's pivot stands for all.
        lead = outer.to(tl.int64) * chunks * bundled + group
        mean = tl.load(parts + lead * 3, mask=exists, other=0.0)
        off = tl.load(parts + of, mask=there, other=0.0) - mean[None, :]
        off += tl.load(parts + of + 1, mask=there, other=0.0)
        rest = tl.sum(weight[:, None] * off, 0)
        off = (off - rest[None, :]) * tl.sqrt(weight)[:, None]
        variance = tl.sum(weight[:, None] * variance + off * off, 0)
    else:
        variance = tl.sum(weight[:, None] * variance, 0)
    store_statistics(statistics, outer.to(tl.int64) * bundled + group, exists, mean, rest, variance)


@triton.jit
def looped_apply(
    x, gamma, beta, statistics, y,
    rows, bundled, width, chunk, stretch, alike, every, sets,
    EPSILON: tl.constexpr, CENTERED: tl.constexpr, ACTIVATION: tl.constexpr,
    ALONG_ROWS: tl.constexpr, UNIFORM: tl.constexpr,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr, HEIGHT: tl.constexpr,
    EXACT: tl.constexpr, WIDE: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """A program has a chunk of GROUPS groups, whose statistics are given."""
    bundle, _, outer, start, end, left, right, group, exists = chunk_of(
        rows, bundled, width, chunk, stretch, GROUPS, WIDTH
    )
    begin = outer.to(tl.int64) * rows * bundled * width
    at = (outer.to(tl.int64) * bundled + group) * 3
    mean = tl.load(statistics + at, mask=exists, other=0.0)
    rest = tl.load(statistics + at + 1, mask=exists, other=0.0)
    variance = tl.load(statistics + at + 2, mask=exists, other=0.0)
    _write(
        x + begin, gamma, beta, y + begin, None, None,
        mean, rest, inverse_deviation(variance, EPSILON),
        (outer // every) % sets, start, end, left, right, bundle, group,
        rows, bundled, width, alike, CENTERED, ACTIVATION, ALONG_ROWS, UNIFORM,
        GROUPS, WIDTH, HEIGHT, EXACT, WIDE, COMPUTE,
    )  # fmt: skip
