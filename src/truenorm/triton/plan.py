"""How the kernels for GPUs read one call: which of them, the sizes, and what a program takes.

A plan follows from the call, the sizes and the dtype alone, not from the device or a timing: so the
bits are the same from run to run. Nor does it follow from the number of samples, where these do not
share statistics: a sample has the same bits alone and in a batch.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from truenorm.core.call import Call
from truenorm.core.view import Factor, View, product

# The numbers are of sketches of these kernels, on one H200.

# The widest group that one program holds in registers: what is wider spills (50,257 elements: 3 to
# 16 % of the speed of a copy, and 65 % with a loop over tiles). Half of it where there is an
# activation, whose gradient takes registers too.
HELD_ROW = 8192
# The same where neighbours in a group are far apart, and a program takes several groups at once.
HELD_COLUMN = 512
# Elements in a tile of the loops, on 16 warps: with two tiles in flight these are 16384, which was
# the fastest of 4096 to 65536, and 16 in each thread, which do not spill.
TILE = 8192
# The widest tile for channels of a batch that are long runs of memory: a tile of several rows of it
# takes fewer registers for places than one long row.
STRIP = 1024
# Channels that one program of the loops takes: 32 and 64 were alike where a group has several
# channels, and 16 the best where it has one.
BUNDLE = 32
BUNDLE_OF_SINGLES = 16
# A sample of fewer programs than FEW has its rows cut where a program would have more elements than
# SPLIT_ABOVE: into so many chunks that it has about MOST_CHUNKS programs, of SPLIT_TO elements or
# more. Unsplit, 16 programs were enough for a sample of 8 million elements, and 4 were not for one.
FEW = 16
SPLIT_ABOVE = 1 << 18
SPLIT_TO = 1 << 15
MOST_CHUNKS = 64
# Where samples share statistics there is one batch: bundles of 32 to 64 channels on 264 to 1056
# programs were the best, of BATCH_TO elements or more.
BATCH_PROGRAMS = 528
BATCH_TO = TILE
LARGEST = 2**31 - 1 - 2 * TILE  # what 32 bits count, with the tiles beyond an end
# Programs that walk over the groups and keep what they add to the gradients of gamma and beta: two
# for each multiprocessor of an H100. The same on every device, as the order of the sums is.
WALKERS = 264


class Owner(NamedTuple):
    """Which set of gamma and beta a group has: (index // every) % sets."""

    every: int = 1
    sets: int = 1


@dataclasses.dataclass(frozen=True)
class Held:
    """A group fits in registers: `outer` times `items` groups, of `varying` times `alike` elements.

    gamma and beta vary along the first of these two, and with the owner. `rows`: a group is
    contiguous, and outer is 1; else the items are, and elements of a group are `items` apart.
    """

    outer: int
    items: int
    varying: int
    alike: int
    rows: bool
    owner: Owner

    @property
    def groups(self) -> int:
        """The number of groups."""
        return self.outer * self.items

    @property
    def extent(self) -> int:
        """Elements of gamma in one set."""
        return self.varying

    @property
    def count(self) -> int:
        """Elements in a group."""
        return self.varying * self.alike


@dataclasses.dataclass(frozen=True)
class Looped:
    """A group is read in tiles: x is (outer, rows, bundled, width), reduced over rows and width.

    gamma and beta vary along the rows, or along the last two axes, and with the owner.

    Attributes:
        alike: neighbours along the last two axes that share gamma and beta.
        batch: the samples share statistics, and outer is 1.
        chunks: parts of a sample, each of some rows and columns, that different programs sum.
        chunk, stretch: rows and columns in each but the last ones.
    """

    outer: int
    rows: int
    bundled: int
    width: int
    along_rows: bool
    owner: Owner
    alike: int = 1
    batch: bool = False
    chunks: int = 1
    chunk: int = 0
    stretch: int = 0

    @property
    def groups(self) -> int:
        """The number of groups."""
        return self.outer * self.bundled

    @property
    def extent(self) -> int:
        """Elements of gamma in one set."""
        return self.rows if self.along_rows else self.bundled * self.width // self.alike

    @property
    def count(self) -> int:
        """Elements in a group."""
        return self.rows * self.width

    @property
    def uniform(self) -> bool:
        """Whether gamma and beta are one number for each group."""
        return not self.along_rows and self.alike % self.width == 0

    @property
    def padded_width(self) -> int:
        """The width of a tile for one group."""
        return min(power(self.width), STRIP if self.batch and self.uniform else TILE)

    @property
    def bundle(self) -> int:
        """Groups that a program takes at once."""
        singles = self.width == 1 and not self.along_rows and not self.batch
        most = BUNDLE_OF_SINGLES if singles else BUNDLE
        return min(power(self.bundled), max(most // self.padded_width, 1))

    @property
    def bundles(self) -> int:
        """Programs for one chunk of a sample."""
        return -(-self.bundled // self.bundle)


Plan = Held | Looped


def make(call: Call, shape: Sequence[int], halves: bool = False) -> Plan | str:
    """The plan for a contiguous x of this shape, or why the kernels do not compute the call.

    The view must not be transposed. The halves of a call are read in tiles, whatever its groups.
    """
    found = _read(call, shape, halves)
    if not isinstance(found, str) and max(found.groups, found.count) > LARGEST:
        return (
            f"x has {found.groups} groups of {found.count} elements; the GPU kernels count up to "
            f"{LARGEST} of either"
        )
    return found


def _read(call: Call, shape: Sequence[int], halves: bool) -> Plan | str:
    view = call.view
    k0, r0, k1, r1 = (_blocks(view, run, shape) for run in view.runs)
    if not r0 or not k1:  # no run of kept axes parts the reduced ones: groups are contiguous
        most = HELD_ROW // (2 if call.activation else 1)
        return _rows(_join(k0, k1), _join(r0, r1), 0 if halves else most)
    batch = not view.runs[0]  # axes of size one among the kept ones are there
    return _columns(k0, r0, k1, r1, 0 if halves else HELD_COLUMN, batch)


class _Block(NamedTuple):
    """Neighbouring factors along which gamma and beta behave alike."""

    size: int
    varies: bool


def _blocks(view: View, run: Sequence[Factor], shape: Sequence[int]) -> list[_Block]:
    blocks: list[_Block] = []
    for factor in run:
        one = _Block(view.size(factor, shape), view.varies(factor))
        if one.size != 1:
            blocks = _join(blocks, [one])
    return blocks


def _join(first: list[_Block], second: list[_Block]) -> list[_Block]:
    """Both, merged where they meet."""
    if first and second and first[-1].varies == second[0].varies:
        merged = _Block(first[-1].size * second[0].size, second[0].varies)
        return [*first[:-1], merged, *second[1:]]
    return first + second


def _owner(blocks: list[_Block]) -> Owner | None:
    """Which parameters the kept axes of these blocks choose, or None: too many blocks vary."""
    varying = [i for i, one in enumerate(blocks) if one.varies]
    if not varying:
        return Owner()
    if len(varying) > 1:
        return None
    after = product(one.size for one in blocks[varying[0] + 1 :])
    return Owner(after, blocks[varying[0]].size)


_SCATTERED = "gamma varies along axes that alternate with others, which the GPU kernels cannot read"


def _rows(kept: list[_Block], reduced: list[_Block], most: int) -> Plan | str:
    owner, groups = _owner(kept), product(one.size for one in kept)
    if owner is None or len(reduced) > 2:
        return _SCATTERED
    if len(reduced) == 2 and not reduced[0].varies:
        rows, width = reduced[0].size, reduced[1].size
        if width > TILE:
            return f"gamma repeats every {width} elements; the GPU kernels take {TILE}"
        return _split(Looped(groups, rows, 1, width, False, owner))
    varying = reduced[0].size if reduced and reduced[0].varies else 1
    alike = reduced[-1].size if reduced and not reduced[-1].varies else 1
    if power(varying) * power(alike) <= most:
        return Held(1, groups, varying, alike, True, owner)
    if varying == 1:
        return _split(Looped(groups, alike, 1, 1, False, owner))
    return _split(Looped(groups, varying, 1, alike, True, owner))


def _columns(
    k0: list[_Block],
    r0: list[_Block],
    k1: list[_Block],
    r1: list[_Block],
    most: int,
    batch: bool,
) -> Plan | str:
    owner = _owner(k0)
    inner = _join(k1, r1)
    alike = inner.pop().size if len(inner) > 1 and inner[0].varies else 1
    if owner is None or len(inner) > 1 or len(r0) > 1 or (r0[0].varies and inner[0].varies):
        return _SCATTERED
    outer = product(one.size for one in k0)
    rows, bundled = r0[0].size, product(one.size for one in k1)
    width = product(one.size for one in r1)
    if not r1 and not inner[0].varies and power(rows) <= most:
        varying, alike = (rows, 1) if r0[0].varies else (1, rows)
        return Held(outer, bundled, varying, alike, False, owner)
    if width > TILE and alike % width:
        return f"the last reduced axes have {width} elements; the GPU kernels take {TILE}"
    if not inner[0].varies and not r0[0].varies and owner.sets > 1:
        return _SCATTERED
    return _split(Looped(outer, rows, bundled, width, r0[0].varies, owner, alike, batch))


def _split(plan: Looped) -> Looped:
    """The plan, with its samples in chunks where they are large and would have few programs."""
    if not plan.count * plan.groups:
        return plan
    slab = plan.count * plan.bundle
    wanted = 1
    if plan.batch:
        wanted = min(-(-BATCH_PROGRAMS // plan.bundles), slab // BATCH_TO)
    elif plan.bundles < FEW and slab >= SPLIT_ABOVE:
        wanted = min(-(-MOST_CHUNKS // plan.bundles), slab // SPLIT_TO)
    chunk = -(-plan.rows // max(min(wanted, plan.rows), 1))
    down = -(-plan.rows // chunk)
    stretch = plan.width
    if plan.batch and plan.uniform and wanted > down:
        # No tile is in two chunks.
        stretch = -(-plan.width * down // (wanted * plan.padded_width)) * plan.padded_width
    chunks = down * -(-plan.width // stretch)
    return dataclasses.replace(plan, chunks=chunks, chunk=chunk, stretch=stretch)


def power(size: int) -> int:
    """The smallest power of two that is not below it."""
    return 1 << max(size - 1, 0).bit_length()
