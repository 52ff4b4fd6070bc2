"""The launches of a call: for every kernel its grid, its numbers and its constants.

A `Launch` says all but the tensors, in the names of the kernel's parameters, so that each binding
needs only to fill these in.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import triton.language as tl

from truenorm.core.call import Call
from truenorm.triton import held, looped_backward, looped_forward, plan
from truenorm.triton.plan import Held, Looped, Plan


class Launch(NamedTuple):
    """One kernel's launch.

    Attributes:
        kernel: a function of `held.py`, `looped_forward.py` or `looped_backward.py`.
        grid: the number of programs.
        numbers: its integers, by name.
        constants: what it is compiled for, by name.
        warps: of a program.
    """

    kernel: Any
    grid: int
    numbers: Mapping[str, int]
    constants: Mapping[str, Any]
    warps: int


class Split(NamedTuple):
    """The launches of one pass over samples that are cut into chunks.

    Attributes:
        sums: leaves some numbers of each chunk, or of each group where there is one chunk.
        combine: makes those of each group of them; None where there is one chunk.
        apply: a launch that writes the result; None where `sums` has, of statistics that are given.
        parts: groups times chunks.
    """

    sums: Launch
    combine: Launch | None
    apply: Any
    parts: int


class Launches(NamedTuple):
    """The launches of one call.

    Attributes:
        plan: how the kernels read it.
        forward, backward: one kernel, or three in turn.
        shares: the shape in which the backward pass leaves what is added to the gradients of gamma
            and beta: (before, sets, after, extent, alike), to be summed over all but the second and
            the fourth.
        columns: one more launch, which leaves them where the others do not.
    """

    plan: Plan
    forward: Launch | Split
    backward: Launch | Split
    shares: tuple[int, int, int, int, int]
    columns: Launch | None = None

    @property
    def sums_are_shares(self) -> bool:
        """Whether what a split backward pass sums are the gradients of beta and gamma."""
        split, how = isinstance(self.backward, Split), self.plan
        return split and isinstance(how, Looped) and how.uniform


@functools.lru_cache(maxsize=4096)
def make(
    call: Call, shape: tuple[int, ...], double: bool, parameters: bool, halves: bool = False
) -> Launches:
    """The launches for a contiguous x of this shape, for which there is a plan.

    Args:
        call: its view in the order of x's axes in memory.
        shape: the sizes; none is zero.
        double: compute in float64.
        parameters: gamma or beta is there.
        halves: the statistics and their application are asked for by themselves; backward is the
            gradient of the latter.
    """
    how = plan.make(call, shape, halves)
    assert not isinstance(how, str)
    if isinstance(how, Held):
        return _held(call, how, double, parameters)
    return _looped(call, how, double, halves)


def _shared(call: Call, how: Plan, double: bool) -> tuple[dict[str, int], dict[str, Any]]:
    """The numbers and constants that every kernel takes."""
    numbers = {"every": how.owner.every, "sets": how.owner.sets}
    constants = {
        "EPSILON": call.epsilon,
        "CENTERED": call.centered,
        "ACTIVATION": call.activation,
        "COMPUTE": tl.float64 if double else tl.float32,
    }
    return numbers, constants


def _held(call: Call, how: Held, double: bool, parameters: bool) -> Launches:
    numbers, constants = _shared(call, how, double)
    varying, alike = plan.power(how.varying), plan.power(how.alike)
    sample = how.items * how.count if not how.rows else varying * alike
    numbers |= {"items": how.items, "varying": how.varying, "alike": how.alike}
    constants |= {
        "ROWS": how.rows, "SETS": how.owner.sets > 1,
        "VARYING": varying, "ALIKE": alike, "WIDE": sample > plan.LARGEST,
    }  # fmt: skip
    width = varying * alike

    # The best of sketches on an H200: tiles of 2048 elements on 2 warps forward, and of 4096 on 8
    # with the gradient, for rows; pixels in runs of 16 to 64.
    if how.rows:
        forward, backward = 2048, 4096
    else:
        forward, backward = min(max(32 * width, 4096), 16384), min(max(16 * width, 4096), 8192)
    items = max(min(forward // width, plan.power(how.items)), 1)
    grid = how.outer * -(-how.items // items)
    warps = _warps(items * width, 1024 if how.rows else 512)
    first = Launch(
        held.held_forward, grid, numbers, constants | {"ITEMS": items}, warps,
    )  # fmt: skip

    walk = parameters and how.owner.sets == 1
    items = max(min(backward // width, plan.power(how.items)), 1)
    tiles = how.outer * -(-how.items // items)
    grid = min(tiles, plan.WALKERS)
    second = Launch(
        held.held_backward, grid, numbers | {"tiles": tiles},
        constants | {"ITEMS": items, "WALK": walk}, _warps(items * width, 512),
    )  # fmt: skip
    if walk:
        shares = (grid, 1, 1, how.varying, 1)
    elif how.rows:
        shares = _shares(how, how.items)
    else:
        shares = _shares(how, how.outer, how.items)
    return Launches(how, first, second, shares)


def _looped(call: Call, how: Looped, double: bool, halves: bool) -> Launches:
    numbers, constants = _shared(call, how, double)
    width, groups = how.padded_width, how.bundle
    sample = how.rows * how.bundled * how.width
    numbers |= {
        "rows": how.rows, "bundled": how.bundled, "width": how.width, "chunk": how.chunk,
        "stretch": how.stretch, "alike": how.alike,
    }  # fmt: skip
    constants |= {
        "ALONG_ROWS": how.along_rows, "GROUPS": groups, "WIDTH": width,
        "EXACT": how.width % width == 0 and how.bundled % groups == 0,
        "WIDE": sample > plan.LARGEST,
    }  # fmt: skip
    grid = how.outer * how.chunks * how.bundles

    def launch(kernel: Any, heavy: bool) -> Launch:
        # Fewer elements where each takes more registers, on as many warps: else they spill.
        most = plan.TILE // (2 if heavy or double else 1)
        height = max(min(most // (groups * width), plan.power(how.chunk)), 1)
        warps = _warps(height * groups * width, most // 16)
        given = constants | {"HEIGHT": height, "UNIFORM": how.uniform}
        return _only(Launch(kernel, grid, numbers, given, warps))

    def launches(heavy: bool, whole: Any, sums: Any, combine: Any, apply: Any) -> Launch | Split:
        if how.chunks == 1 and not halves:
            return launch(whole, heavy)
        combined = None if how.chunks == 1 else _combine(combine, how, numbers, constants)
        last = None if apply is None else launch(apply, heavy)
        parts = how.outer * how.chunks * how.bundled
        return Split(launch(sums, heavy), combined, last, parts)

    ragged = not constants["EXACT"]
    forward = launches(
        ragged, looped_forward.looped_forward, looped_forward.chunk_statistics,
        looped_forward.combine_statistics, looped_forward.looped_apply,
    )  # fmt: skip
    backward = launches(
        ragged or halves or call.activation is not None, looped_backward.looped_backward,
        looped_backward.given_backward if halves else looped_backward.chunk_sums,
        looped_backward.combine_sums, None if halves else looped_backward.looped_gradient,
    )  # fmt: skip
    columns = None
    if how.along_rows:
        shares = _shares(how, how.outer, how.bundles)
        if how.count == how.rows and how.bundled == 1 and how.owner.sets == 1:
            # A row adds as much as it has elements: add rows before they are written.
            columns = _columns(call, how, double)
            shares = (columns.grid // -(-how.rows // 128), 1, 1, how.rows, 1)
    else:
        shares = _shares(how, how.outer, 1 if how.uniform else how.chunks)
    return Launches(how, forward, backward, shares, columns)


def _combine(
    kernel: Any, how: Looped, numbers: dict[str, int], constants: dict[str, Any]
) -> Launch:
    padded = plan.power(how.chunks)
    groups = max(min(plan.power(how.bundled), 4096 // padded), 1)
    grid = how.outer * -(-how.bundled // groups)
    given = constants | {"GROUPS": groups, "PADDED": padded}
    return _only(Launch(kernel, grid, numbers, given, _warps(groups * padded, 1024)))


def _only(one: Launch) -> Launch:
    """The launch with those numbers and constants that its kernel takes."""
    names = one.kernel.arg_names
    numbers, constants = (
        {name: value for name, value in values.items() if name in names}
        for values in (one.numbers, one.constants)
    )
    return one._replace(numbers=numbers, constants=constants)


def _columns(call: Call, how: Looped, double: bool) -> Launch:
    _, constants = _shared(call, how, double)
    blocks = -(-how.rows // 128)
    chunk = max(-(-how.outer // max(plan.WALKERS * 4 // blocks, 1)), 32)
    numbers = {"groups": how.outer, "width": how.rows, "chunk": chunk}
    constants |= {"HEIGHT": 16 if double else 32, "WIDTH": 128}
    return Launch(
        looped_backward.column_sums, blocks * -(-how.outer // chunk), numbers, constants, 8
    )


def _shares(how: Plan, count: int, each: int = 1) -> tuple[int, int, int, int, int]:
    """Of `count` owners that leave `each` sets: which belong together."""
    every, sets = how.owner
    alike = how.alike if isinstance(how, Looped) else 1
    if isinstance(how, Looped) and how.uniform:
        alike //= how.width  # what is left is of groups
    return count // (every * sets), sets, every * each, how.extent, alike


def _warps(elements: int, each: int) -> int:
    """Warps for a tile, of which each has so many elements; at most 16."""
    return min(max(plan.power(elements) // each, 1), 16)
