"""The kernels for GPUs, in Triton: one source for PyTorch and JAX.

    y = gamma * (x - mean) / sqrt(variance + epsilon) + beta

Two families, of a pass forward and one backward each: `held_*` have whole groups in registers and
read x once; `looped_*` read it in tiles and twice, the second time mostly from the cache. A sample
that would have few programs is split: then the first launch leaves sums of each chunk, the second
adds them up in every program and applies them. No program waits for another, and nothing is added
by atomic operations: results have the same bits from run to run. `plan.py` chooses, `launch.py`
gives the arguments; `Held` and `Looped` say what they mean.

The mean is in two parts, a pivot and the rest, and the variance is of deviations from a pivot that
is near the mean: what a chunk's first tile says of it, and where that is off by more than two
standard deviations, the better one of a second pass. Squares are divided by their number before
they are added, so that they do not overflow.

With a residual, x + residual, rounded to the dtype of x, is normalized and written to `total`.
Parameters that are not there are passed as None, and so are results that nobody wants.
"""

import triton
import triton.language as tl

_WHOLE = tl.constexpr(0)  # a program has all of its groups
_SUM = tl.constexpr(1)  # it has a chunk of them, and leaves its sums
_APPLY = tl.constexpr(2)  # it has a chunk, and takes the sums of all


@triton.jit
def _read(pointer, residual, place, inside, COMPUTE: tl.constexpr):
    """x, or x + residual as it is in the dtype of x, and zero outside."""
    x = tl.load(pointer + place, mask=inside, other=0.0)
    if residual is not None:
        more = tl.load(residual + place, mask=inside, other=0.0)
        x = (x.to(COMPUTE) + more.to(COMPUTE)).to(x.dtype)
    return x.to(COMPUTE)


@triton.jit
def _sigmoid(u):
    return 1.0 / (1.0 + tl.exp(-u))


@triton.jit
def _tanh_argument(u):
    """Twice the argument of gelu's tanh, and its derivative; (1 + tanh(v)) / 2 is sigmoid(2 v).

    Beyond 20 the sigmoid is zero or one anyway, and the cube could overflow.
    """
    u = tl.where(u > 20.0, 20.0, tl.where(u < -20.0, -20.0, u))
    v = 1.5957691216057308 * (u + 0.044715 * u * u * u)
    return v, 1.5957691216057308 * (1.0 + 0.134145 * u * u)


@triton.jit
def _activate(u, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        u = tl.where(u < 0.0, 0.0, u)  # NaN stays
    elif ACTIVATION == "silu":
        u = u * _sigmoid(u)
    elif ACTIVATION == "gelu":
        u = 0.5 * u * (1.0 + tl.erf(u * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        v, _ = _tanh_argument(u)
        u = u * _sigmoid(v)
    return u


@triton.jit
def _slope(u, ACTIVATION: tl.constexpr):
    """The derivative of the activation."""
    if ACTIVATION == "relu":
        d = tl.where(u <= 0.0, 0.0, 1.0)
    elif ACTIVATION == "silu":
        s = _sigmoid(u)
        d = s * (1.0 + u * (1.0 - s))
    elif ACTIVATION == "gelu":
        d = 0.5 * (1.0 + tl.erf(u * 0.7071067811865476))
        d = d + u * 0.3989422804014327 * tl.exp(-0.5 * u * u)
    else:
        v, dv = _tanh_argument(u)
        s = _sigmoid(v)
        d = s + u * s * (1.0 - s) * dv
    return d


# --- groups that one program holds


@triton.jit
def _held_places(
    tile, items, varying, alike,
    ROWS: tl.constexpr, ITEMS: tl.constexpr, VARYING: tl.constexpr, ALIKE: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Where a tile begins and its elements are; the items, the outer index; what is inside."""
    tiles = tl.cdiv(items, ITEMS)
    outer, first = tile // tiles, (tile % tiles) * ITEMS
    item = tl.arange(0, ITEMS)
    r = tl.arange(0, VARYING * ALIKE)
    p, q = r // ALIKE, r % ALIKE
    exists = first + item < items
    inside = exists[:, None] & ((p < varying) & (q < alike))[None, :]
    element = p * alike + q
    if WIDE:
        item, element = item.to(tl.int64), element.to(tl.int64)
    size = varying * alike
    if ROWS:
        begin = first.to(tl.int64) * size
        place = item[:, None] * size + element[None, :]
    else:
        begin = outer.to(tl.int64) * size * items + first
        place = element[None, :] * items + item[:, None]
    return begin, place, first + tl.arange(0, ITEMS), outer, exists, inside, p


@triton.jit
def _held_parameter(pointer, owner, p, varying, inside, SETS: tl.constexpr, COMPUTE: tl.constexpr):
    """gamma or beta for a tile: (items, elements), or (1, elements) where all items share one."""
    if SETS:
        places = owner[:, None] * varying + p[None, :]
        found = tl.load(pointer + places, mask=inside, other=0.0).to(COMPUTE)
    else:
        found = tl.load(pointer + p, mask=p < varying, other=0.0).to(COMPUTE)[None, :]
    return found


@triton.jit
def held_forward(
    x, residual, gamma, beta, y, total, statistics,
    items, varying, alike, every, sets,
    EPSILON: tl.constexpr, CENTERED: tl.constexpr, ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr, SETS: tl.constexpr,
    ITEMS: tl.constexpr, VARYING: tl.constexpr, ALIKE: tl.constexpr,
    WIDE: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """A program has ITEMS neighbouring groups."""
    begin, place, item, outer, exists, inside, p = _held_places(
        tl.program_id(0), items, varying, alike, ROWS, ITEMS, VARYING, ALIKE, WIDE
    )
    z = _read(x + begin, None if residual is None else residual + begin, place, inside, COMPUTE)
    if residual is not None:
        tl.store(total + begin + place, z.to(total.dtype.element_ty), mask=inside)
    share = tl.full([], 1.0, COMPUTE) / (varying * alike)
    mean = tl.zeros([ITEMS], COMPUTE)
    rest = tl.zeros([ITEMS], COMPUTE)
    if CENTERED:
        mean = tl.sum(z, 1) * share
        z = tl.where(inside, z - mean[:, None], 0.0)
        rest = tl.sum(z, 1) * share
        z = tl.where(inside, z - rest[:, None], 0.0)
    scaled = z * tl.sqrt(share)
    rstd = 1.0 / tl.sqrt(tl.sum(scaled * scaled, 1) + EPSILON)
    if statistics is not None:
        group = outer.to(tl.int64) * items + item
        tl.store(statistics + group * 3, mean, mask=exists)
        tl.store(statistics + group * 3 + 1, rest, mask=exists)
        tl.store(statistics + group * 3 + 2, rstd, mask=exists)
    u = z * rstd[:, None]
    owner = ((item if ROWS else outer + item * 0) // every) % sets
    if gamma is not None:
        u = u * _held_parameter(gamma, owner, p, varying, inside, SETS, COMPUTE)
    if beta is not None:
        u = u + _held_parameter(beta, owner, p, varying, inside, SETS, COMPUTE)
    tl.store(y + begin + place, _activate(u, ACTIVATION).to(y.dtype.element_ty), mask=inside)


@triton.jit
def held_backward(
    x, gamma, beta, dy, dtotal, statistics, dx, dgamma, dbeta,
    tiles, items, varying, alike, every, sets,
    CENTERED: tl.constexpr, ACTIVATION: tl.constexpr, ROWS: tl.constexpr, SETS: tl.constexpr,
    WALK: tl.constexpr, ITEMS: tl.constexpr, VARYING: tl.constexpr, ALIKE: tl.constexpr,
    WIDE: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """A program walks over tiles. What it adds to the gradients of gamma and beta it keeps (WALK),
    and leaves (programs, varying); or it leaves what each group adds, (groups, varying).
    """
    share = tl.full([], 1.0, COMPUTE) / (varying * alike)
    if WALK:
        sum_gamma = tl.zeros([ITEMS, VARYING * ALIKE], COMPUTE)
        sum_beta = tl.zeros([ITEMS, VARYING * ALIKE], COMPUTE)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        begin, place, item, outer, exists, inside, p = _held_places(
            tile, items, varying, alike, ROWS, ITEMS, VARYING, ALIKE, WIDE
        )
        group = outer.to(tl.int64) * items + item
        rstd = tl.load(statistics + group * 3 + 2, mask=exists, other=0.0)
        xhat = tl.load(x + begin + place, mask=inside, other=0.0).to(COMPUTE)
        g = tl.load(dy + begin + place, mask=inside, other=0.0).to(COMPUTE)
        if CENTERED:
            mean = tl.load(statistics + group * 3, mask=exists, other=0.0)
            rest = tl.load(statistics + group * 3 + 1, mask=exists, other=0.0)
            xhat = (xhat - mean[:, None]) - rest[:, None]
        xhat = tl.where(inside, xhat * rstd[:, None], 0.0)
        owner = ((item if ROWS else outer + item * 0) // every) % sets
        scale = 1.0
        if gamma is not None:
            scale = _held_parameter(gamma, owner, p, varying, inside, SETS, COMPUTE)
        if ACTIVATION is not None:
            u = xhat * scale
            if beta is not None:
                u = u + _held_parameter(beta, owner, p, varying, inside, SETS, COMPUTE)
            g = tl.where(inside, g * _slope(u, ACTIVATION), 0.0)
        if WALK:
            sum_gamma += g * xhat
            sum_beta += g
        elif dgamma is not None:
            shape: tl.constexpr = (ITEMS, VARYING, ALIKE)
            one = tl.arange(0, VARYING)
            places = group[:, None] * varying + one[None, :]
            wanted = exists[:, None] & (one < varying)[None, :]
            tl.store(dgamma + places, tl.sum(tl.reshape(g * xhat, shape), 2), mask=wanted)
            tl.store(dbeta + places, tl.sum(tl.reshape(g, shape), 2), mask=wanted)
        w = g * scale
        found = w - xhat * (tl.sum(w * xhat, 1) * share)[:, None]
        if CENTERED:
            found = found - (tl.sum(w, 1) * share)[:, None]
        found = found * rstd[:, None]
        if dtotal is not None:
            found += tl.load(dtotal + begin + place, mask=inside, other=0.0).to(COMPUTE)
        tl.store(dx + begin + place, found.to(dx.dtype.element_ty), mask=inside)
    if WALK:
        one = tl.arange(0, VARYING)
        places = tl.program_id(0) * varying + one
        shape: tl.constexpr = (VARYING, ALIKE)
        found = tl.sum(tl.reshape(tl.sum(sum_gamma, 0), shape), 1)
        tl.store(dgamma + places, found, mask=one < varying)
        found = tl.sum(tl.reshape(tl.sum(sum_beta, 0), shape), 1)
        tl.store(dbeta + places, found, mask=one < varying)


# --- groups that are read in tiles


@triton.jit
def _across(t, GROUPS: tl.constexpr, WIDTH: tl.constexpr):
    """For each column of a tile, the sum of a row of numbers over its group's columns."""
    total = tl.sum(tl.reshape(t, (GROUPS, WIDTH)), 1)
    spread = tl.broadcast_to(total[:, None], (GROUPS, WIDTH))
    return tl.reshape(spread, (GROUPS * WIDTH,))


@triton.jit
def _tile(
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
            place, inside, _, _ = _tile(
                row, column, end, bundled, width, bundle, GROUPS, WIDTH, HEIGHT, EXACT, WIDE
            )
            z = _read(x, residual, place, inside, COMPUTE)
            place, within, _, _ = _tile(
                row + HEIGHT, column, end, bundled, width, bundle, GROUPS, WIDTH, HEIGHT, EXACT, WIDE
            )
            more = _read(x, residual, place, within, COMPUTE)
            if CENTERED:
                z = tl.where(inside, z - pivot[None, :], 0.0)
                more = tl.where(within, more - pivot[None, :], 0.0)
                first += z + more
            z = z * root
            more = more * root
            second += z * z + more * more
    return (
        _across(tl.sum(first, 0), GROUPS, WIDTH),
        _across(tl.sum(second, 0), GROUPS, WIDTH),
    )


@triton.jit
def looped_forward(
    x, residual, gamma, beta, y, total, statistics, parts,
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
    bundle, part, outer = program % bundles, program // bundles % CHUNKS, program // bundles // CHUNKS
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
    if STEP != _APPLY:
        share = tl.full([], 1.0, COMPUTE) / (end - start) / width
        if CENTERED:
            place, inside, _, _ = _tile(
                start, 0, end, bundled, width, bundle, GROUPS, WIDTH, HEIGHT, EXACT, WIDE
            )
            z = _read(x, residual, place, inside, COMPUTE)
            seen = tl.minimum(end - start, HEIGHT) * tl.minimum(width, WIDTH)
            pivot = _across(tl.sum(z, 0), GROUPS, WIDTH) / seen.to(COMPUTE)
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
    if STEP == _SUM:
        at = ((outer.to(tl.int64) * CHUNKS + part) * bundled + group) * 3
        tl.store(parts + at, pivot, mask=leader)
        tl.store(parts + at + 1, rest, mask=leader)
        tl.store(parts + at + 2, variance, mask=leader)
    else:
        if STEP == _APPLY:
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
        if statistics is not None and (STEP == _WHOLE or part == 0):
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
                place, inside, b, across = _tile(
                    row, column, end, bundled, width, bundle, GROUPS, WIDTH, HEIGHT, EXACT, WIDE
                )
                u = _read(x, residual, place, inside, COMPUTE)
                if total is not None:
                    tl.store(total + place, u.to(total.dtype.element_ty), mask=inside)
                if CENTERED:
                    u = (u - pivot[None, :]) - rest[None, :]
                u = u * rstd[None, :]
                if gamma is not None:
                    u = u * _looped_parameter(
                        gamma, owner, b, across, end, rows, bundled, width, alike,
                        ALONG_ROWS, COMPUTE,
                    )  # fmt: skip
                if beta is not None:
                    u = u + _looped_parameter(
                        beta, owner, b, across, end, rows, bundled, width, alike,
                        ALONG_ROWS, COMPUTE,
                    )  # fmt: skip
                u = _activate(u, ACTIVATION)
                tl.store(y + place, u.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _looped_parameter(
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
def looped_backward(
    x, gamma, beta, dy, dtotal, statistics, dx, dgamma, dbeta, parts,
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
    bundle, part, outer = program % bundles, program // bundles % CHUNKS, program // bundles // CHUNKS
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

    if STEP != _APPLY:
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
                    row_scale = _looped_parameter(
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
        sum_first = _across(sum_first, GROUPS, WIDTH)
        sum_second = _across(sum_second, GROUPS, WIDTH)
    if STEP == _SUM:
        at = ((outer.to(tl.int64) * CHUNKS + part) * bundled + group) * 2
        tl.store(parts + at, sum_first, mask=leader)
        tl.store(parts + at + 1, sum_second, mask=leader)
    else:
        if STEP == _APPLY:
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
    place, inside, b, across = _tile(
        row, column, end, bundled, width, bundle, GROUPS, WIDTH, HEIGHT, EXACT, WIDE
    )
    xhat = tl.load(x + place, mask=inside, other=0.0).to(COMPUTE)
    g = tl.load(dy + place, mask=inside, other=0.0).to(COMPUTE)
    if CENTERED:
        xhat = (xhat - mean[None, :]) - rest[None, :]
    xhat = tl.where(inside, xhat * rstd[None, :], 0.0)
    scale = 1.0
    if gamma is not None:
        scale = _looped_parameter(
            gamma, owner, b, across, end, rows, bundled, width, alike,
            ALONG_ROWS, COMPUTE,
        )
    if ACTIVATION is not None:
        u = xhat * scale
        if beta is not None:
            u = u + _looped_parameter(
                beta, owner, b, across, end, rows, bundled, width, alike,
            ALONG_ROWS, COMPUTE,
            )
        g = tl.where(inside, g * _slope(u, ACTIVATION), 0.0)
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
            g = tl.where(inside, g * _slope(u, ACTIVATION), 0.0)
        sum_gamma += g * xhat
        sum_beta += g
    places = part.to(tl.int64) * width + column
    tl.store(dgamma + places, tl.sum(sum_gamma, 0), mask=within)
    tl.store(dbeta + places, tl.sum(sum_beta, 0), mask=within)
