"""The kernels for groups that one program holds in registers."""

import triton
import triton.language as tl

from truenorm.triton.common import activate, inverse_deviation, read, slope


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
    x, gamma, beta, y, statistics, residual, total,
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
    z = read(x + begin, None if residual is None else residual + begin, place, inside, COMPUTE)
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
    variance = tl.sum(scaled * scaled, 1)
    rstd = inverse_deviation(variance, EPSILON)
    if statistics is not None:
        group = outer.to(tl.int64) * items + item
        tl.store(statistics + group * 3, mean, mask=exists)
        tl.store(statistics + group * 3 + 1, rest, mask=exists)
        tl.store(statistics + group * 3 + 2, variance, mask=exists)
    u = z * rstd[:, None]
    owner = ((item if ROWS else outer + item * 0) // every) % sets
    if gamma is not None:
        u = u * _held_parameter(gamma, owner, p, varying, inside, SETS, COMPUTE)
    if beta is not None:
        u = u + _held_parameter(beta, owner, p, varying, inside, SETS, COMPUTE)
    tl.store(y + begin + place, activate(u, ACTIVATION).to(y.dtype.element_ty), mask=inside)


@triton.jit
def held_backward(
    x, gamma, beta, dy, statistics, dx, dgamma, dbeta, dtotal,
    tiles, items, varying, alike, every, sets,
    EPSILON: tl.constexpr, CENTERED: tl.constexpr, ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr, SETS: tl.constexpr,
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
        variance = tl.load(statistics + group * 3 + 2, mask=exists, other=1.0)
        rstd = inverse_deviation(variance, EPSILON)
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
            g = tl.where(inside, g * slope(u, ACTIVATION), 0.0)
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
