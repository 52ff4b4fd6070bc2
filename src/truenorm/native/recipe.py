"""What the kernels are told of a view: in which order to read the axes, and numbers for factors."""

import dataclasses
from collections.abc import Sequence

from truenorm.core.call import Call
from truenorm.core.view import Factor, Part, View

_PARTS: tuple[Part, ...] = ("whole", "group", "within")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A view as the C interface takes it (`truenorm_call` in src/native/truenorm.h).

    Attributes:
        order: the input's axes in the order in which the kernels read them.
        permutes: whether that is another order than their own.
        parameter_order: the axes of gamma and beta (the leading one of per-sample parameters
            among them) in the order in which the kernels read them.
        factors: four integers for each factor of the permuted input, outermost first: its axis,
            its part, its run, and whether gamma and beta vary along it.
        groups: along the axis that is cut; -1 is one per channel, and where none is cut.
        code: the factors in one integer, five bits each, the outermost lowest:
            1 + part + 3 * run + 12 * varies. Their axes follow from the parts.
    """

    order: tuple[int, ...]
    permutes: bool
    parameter_order: tuple[int, ...]
    factors: tuple[int, ...]
    groups: int
    code: int

    @property
    def inverse(self) -> tuple[int, ...]:
        """The permutation that takes the kernels' result back to the input's axes."""
        return tuple(self.order.index(axis) for axis in range(len(self.order)))

    @property
    def parameter_inverse(self) -> tuple[int, ...]:
        """The permutation that takes the gradients of gamma and beta back to their axes."""
        return tuple(self.parameter_order.index(i) for i in range(len(self.parameter_order)))


def recipe(view: View, memory: Sequence[int] | None = None) -> Recipe:
    """The recipe for an input whose axes lie in memory in the order `memory`, by default its own.

    The kernels read four runs of axes, kept and reduced in turn. Axes that alternate more often
    are read in another order, kept ones first, and the caller transposes.
    """
    order = tuple(range(view.rank)) if memory is None else tuple(memory)
    if view.groups is not None and view.permuted(order).transposed:
        order = tuple(range(view.rank))  # sorting would tear the halves of the cut axis apart
    order = tuple(order[i] for i in view.permuted(order).order)
    permuted = view.permuted(order)
    axes = view.parameter_axes
    factors: list[int] = []
    code = 0
    for run, members in enumerate(permuted.runs):
        for factor in members:
            # Not `in`: of symbols, which torch.compile may make of both, it is taken for false.
            varies = int(any(axis == order[factor.axis] for axis in axes))
            part = _PARTS.index(factor.part)
            code |= (1 + part + 3 * run + 12 * varies) << (5 * (len(factors) // 4))
            factors += [factor.axis, part, run, varies]
    places = sorted(range(len(axes)), key=lambda i: order.index(axes[i]))
    groups = -1 if view.groups is None else view.groups
    permutes = order != tuple(range(view.rank))
    return Recipe(order, permutes, tuple(places), tuple(factors), groups, code)


def factors_of(code: int) -> tuple[int, ...]:
    """The factors of a recipe, from its code."""
    factors: list[int] = []
    axis = 0
    while code:
        varies, (run, part) = (code & 31) - 1 >= 12, divmod(((code & 31) - 1) % 12, 3)
        axis += int(bool(factors) and _PARTS[part] != "within")
        factors += [axis, part, run, int(varies)]
        code >>= 5
    return tuple(factors)


# Of an input that is reshaped to its four runs, with one gamma and one beta for each group.
MERGED = recipe(View(4, tuple((Factor(run, run % 2 == 1),) for run in range(4)), (0, 2)))


def call_of(factors: Sequence[int], groups: int, epsilon: float, centered: bool) -> Call:
    """The call that has this recipe for a tensor in the order of its axes, and the rest."""
    runs: list[list[Factor]] = [[], [], [], []]
    axes = set()
    for axis, part, run, varies in zip(*[iter(factors)] * 4, strict=True):
        runs[run].append(Factor(axis, run % 2 == 1, _PARTS[part]))
        if varies:
            axes.add(axis)
    cut = any(factor.part != "whole" for run in runs for factor in run)
    rank = 1 + max(factors[::4])
    view = View(rank, tuple(map(tuple, runs)), tuple(sorted(axes)), groups if cut else None)
    return Call(view, bool(centered), epsilon)
