"""`fold`: batch normalization in inference, made part of the convolutions beside it."""

import dataclasses
import importlib
from collections.abc import Iterable
from typing import Any

from truenorm.core.errors import InputError, brief
from truenorm.tools.carry.modules import Normalization
from truenorm.tools.fold.arithmetic import affine
from truenorm.tools.fold.graph import Folded, Graph, Plan
from truenorm.tools.statistics.found import batch_normalizations


@dataclasses.dataclass(frozen=True)
class Report:
    """What `fold` did; printed, a line for each batch normalization.

    Attributes:
        folded: those that are part of a layer now.
        left: the name of each that is as it was, and why.
        graph: how the order of the calls was learned.
    """

    folded: tuple[Folded, ...]
    left: tuple[tuple[str, str], ...]
    graph: str

    def __str__(self) -> str:
        plural = "" if len(self.folded) == 1 else "s"
        lines = [
            f"{len(self.folded)} batch normalization{plural} folded, {len(self.left)} left; "
            f"{self.graph}"
        ]
        lines += [f"  {one}" for one in self.folded]
        lines += [f"  {name}: left: {why}" for name, why in self.left]
        return "\n".join(lines)

    __repr__ = __str__


def fold(model: Any, *, pairs: Iterable[tuple[str, str]] | None = None) -> tuple[Any, Report]:
    """A copy of a model for inference, with its batch normalizations folded into other layers.

    In inference batch normalization is a scale and a shift of each channel. Where it follows a
    convolution (grouped, depthwise, separable or transposed) or a dense layer with nothing between,
    and nothing else takes that layer's result, kernel and bias take both in, and it is removed;
    where it precedes one, too, as long as no zeros of padding stand beside the values it shifts. A
    layer without bias gets one. The arithmetic is in float64, and each parameter is rounded once.
    The outputs are the same up to rounding (Jacob et al., 2018, arXiv:1712.05877, section 3.2).

    - torch: the order of the calls is learned by `torch.fx`; of a model that cannot be traced,
      neighbours in an nn.Sequential are folded. An nn.Identity takes the place. A Linear is taken
      to have inputs (N, C), as its note says: over (N, L, C), BatchNorm1d has other channels.
    - Keras: functional and Sequential models, and such models inside them.
    - flax: neighbours in an nnx.Sequential; other modules by `pairs`.

    Args:
        model: in inference mode: after `eval()` in torch and flax. It is not changed.
        pairs: for torch and flax: names of a layer and of a batch normalization, in the order in
            which they are called, ("conv1", "bn1") or ("bn1", "conv2"). Only these are folded, and
            that nothing is between them, and nothing else takes what is between them, is for the
            caller to know.

    Returns:
        The copy, and a report, which says of each batch normalization where it is, or why it was
        left.

    Raises:
        InputError: a ValueError. The model has no batch normalization, or one is not built; a pair
            is not a batch normalization and another module of the model, or cannot be folded; a
            Keras model is subclassed, so that its graph is not known, or cannot be cloned.
        TypeError: the model is of no known framework.
    """
    framework, found = batch_normalizations(model)
    given = None if pairs is None else _checked(pairs)
    front = importlib.import_module(f"truenorm.tools.fold.{framework.name}")
    if framework.name == "keras":
        if given is not None:
            raise InputError(
                "pairs are of torch and flax; Keras knows the graph of its models: leave them out."
            )
        made, plan, how = front.folded(model, found, in_graph)
        return made, Report(tuple(plan.folded), tuple(plan.left), how)
    made = front.copied(model)
    _, found = batch_normalizations(made)
    plan = Plan(front.linear_in(made), front.fits)
    if given is None:
        graph, how, unknown = front.graph(made)
        in_graph(plan, graph, found, front.reason, unknown)
    else:
        how = "paired as given"
        _in_pairs(plan, given, found, front, made)
    for layer, linear in plan.layers.values():
        front.write(layer, linear)
    front.remove(made, [one.module for one in plan.removed])
    return made, Report(tuple(plan.folded), tuple(plan.left), how)


def _checked(pairs: Any) -> list[tuple[str, str]]:
    expected = 'expected names of neighbours, as [("conv1", "bn1"), ...].'
    if isinstance(pairs, (str, dict)) or not hasattr(pairs, "__iter__"):
        raise InputError(f"pairs={brief(pairs)}; {expected}")
    made = [tuple(one) if isinstance(one, (list, tuple)) else () for one in pairs]
    if not made or any(len(one) != 2 or not all(isinstance(n, str) for n in one) for one in made):
        raise InputError(f"pairs={brief(pairs)}; {expected}")
    return [(one, other) for one, other in made]


def in_graph(
    plan: Plan, graph: Graph, found: list[Normalization], reason: Any, unknown: str
) -> None:
    """Plan for each of the batch normalizations; `reason` says of one why it cannot be folded."""
    for one in found:
        why = _unusable(one) or reason(one)
        if why:
            plan.left.append((one.name, why))
        else:
            plan.in_graph(graph, one, affine(one), unknown)


def _unusable(one: Normalization) -> str:
    if one.parameter("mean") is None:
        return "it keeps no statistics, and takes those of each batch"
    if getattr(one.module, "activation", None) is not None:
        return "it has an activation of its own"
    if not one.framework.owns(type(one.module)):
        return f"it is a {type(one.module).__name__}, which may do more than normalize"
    return ""


def _in_pairs(
    plan: Plan, pairs: list[tuple[str, str]], found: list[Normalization], front: Any, model: Any
) -> None:
    named = {one.name: one for one in found}
    modules = front.modules(model)
    for pair in pairs:
        unknown = [name for name in pair if name not in modules]
        norms = [name for name in pair if name in named]
        if unknown or len(norms) != 1 or named[norms[0]] in plan.removed:
            raise InputError(
                f"pairs has {pair!r}; expected the names of a batch normalization and of a layer "
                f"beside it, each normalization once; the normalizations are {', '.join(named)}."
            )
        one, after = named[norms[0]], pair[1] in named
        name = pair[0] if after else pair[1]
        why = _unusable(one) or front.reason(one)
        why = why or plan.into(one, affine(one), modules[name], name, after=after)
        if why:
            raise InputError(f"{pair!r} of pairs cannot be folded: {one.name}: {why}.")
    plan.left += [
        (one.name, "it is not among the pairs") for one in found if one not in plan.removed
    ]
