"""`carry`: what normalizations have learned, from the modules of one framework to another's."""

import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from truenorm.core.errors import InputError, brief
from truenorm.tools.carry.modules import ABSENT, KERAS, Normalization, Shape, found_in, framework_of

# How the axes of parameters over several axes are reordered, by the name of the layout.
LAYOUTS: Mapping[str, Callable[[Shape], Shape]] = {
    "same": lambda axes: axes,
    "first to last": lambda axes: axes[1:] + axes[:1],
    "last to first": lambda axes: axes[-1:] + axes[:-1],
}


@dataclasses.dataclass(frozen=True)
class Carried:
    """One normalization that was carried.

    Attributes:
        source, target: its names in the two models.
        kind: the short name of the source's kind.
        shapes: of the parameters in the source and in the target; None where there are none.
        epsilons: the target's before, None for the dtype's own, and now.
        notes: what else was done: axes moved, parameters filled in, dtypes and momentum changed.
    """

    source: str
    target: str
    kind: str
    shapes: tuple[Shape | None, Shape | None]
    epsilons: tuple[float | None, float]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        shapes = [str(one) for one in dict.fromkeys(self.shapes) if one is not None]
        before, now = ("the dtype's" if one is None else str(one) for one in self.epsilons)
        epsilon = f"epsilon {now}" if before == now else f"epsilon {before} -> {now}"
        what = " ".join([self.kind, " -> ".join(shapes)] if shapes else [self.kind])
        return ", ".join([f"{self.source} -> {self.target}: {what}", epsilon, *self.notes])


@dataclasses.dataclass(frozen=True)
class Report:
    """What `carry` did; printed, a line for each normalization.

    Attributes:
        carried: the normalizations, in the source's order.
        paired: "by name", "by order" or "as given".
        left: names in the target that `names` left out, and which are as they were.
    """

    carried: tuple[Carried, ...]
    paired: str
    left: tuple[str, ...] = ()

    def __str__(self) -> str:
        plural = "" if len(self.carried) == 1 else "s"
        lines = [f"{len(self.carried)} normalization{plural} carried, paired {self.paired}"]
        lines += [f"  {one}" for one in self.carried]
        if self.left:
            lines.append(f"  left as they were: {', '.join(self.left)}")
        return "\n".join(lines)


def carry(
    source: Any, target: Any, *, names: Mapping[str, str] | None = None, layout: str | None = None
) -> Report:
    """Give the target's normalizations what the source's have learned, and their epsilon.

    Each is a normalization, or a model with any number of them: modules of torch.nn or
    truenorm.torch, of flax.nnx or truenorm.flax, or layers of Keras or truenorm. gamma, beta,
    epsilon and, of batch normalization, the moving mean, variance and momentum are carried, and
    `unbiased` to a target of truenorm's; all other parameters of a model stay. A gamma that the
    source has not is one, and a beta is zero.

    Args:
        source: is not changed.
        target: is changed in place, in its own dtypes.
        names: the name in the target for each name in the source that is to be carried; others are
            left. None pairs by name where both sides have the same names, else by order where
            both have the same kinds in the same order.
        layout: where the channels are in parameters over several axes, (C, H, W) or (H, W, C):
            "same" keeps the axes in order, "first to last" and "last to first" move the channels.
            None takes the one that fits the shapes.

    Returns:
        A report; printed, it shows a line for each normalization.

    Raises:
        InputError: a ValueError. The normalizations cannot be paired, one is not built, or the
            target has no place for what the source has. Nothing was changed.
        TypeError: an argument is no module or layer of these frameworks.
    """
    if layout is not None and layout not in LAYOUTS:
        raise InputError(
            f"layout={layout!r}; expected None or one of {', '.join(map(repr, LAYOUTS))}."
        )
    from_there, to_here = found_in(source, "source"), found_in(target, "target")
    pairs, paired = _pairs(from_there, to_here, names)
    lines, steps, problems = [], [], []
    for one, other in pairs:
        try:
            line, more = _compared(one, other, layout)
        except InputError as error:
            problems.append(f"{one.name} -> {other.name}: {error}")
        else:
            lines.append(line)
            steps += more
    if problems:
        raise InputError("Nothing was carried.\n" + "\n".join(problems))
    for step in steps:
        step()
    _forget_compiled(target)
    there = {id(other.module) for _, other in pairs}
    left = tuple(one.name for one in to_here if id(one.module) not in there)
    return Report(tuple(lines), paired, left)


def _pairs(
    sources: list[Normalization], targets: list[Normalization], names: Mapping[str, str] | None
) -> tuple[list[tuple[Normalization, Normalization]], str]:
    by_name = [{one.name: one for one in side} for side in (sources, targets)]
    there, here = by_name
    both = f"\nsource: {'; '.join(map(str, sources))}\ntarget: {'; '.join(map(str, targets))}"
    if names is not None:
        pairs = {one.replace("/", "."): other.replace("/", ".") for one, other in names.items()}
        unknown = [*(pairs.keys() - there.keys()), *(pairs.values() - here.keys())]
        if unknown or len(set(pairs.values())) < len(pairs) or not pairs:
            raise InputError(
                f"names={brief(dict(names))}; expected names of the source's normalizations, each "
                f"with another one's of the target.{both}"
            )
        return [
            (one, here[pairs[name]]) for name, one in there.items() if name in pairs
        ], "as given"
    unique = len(there) == len(sources) and len(here) == len(targets)
    if unique and there.keys() == here.keys():
        return [(one, here[one.name]) for one in sources], "by name"
    if len(sources) == len(targets) and all(map(_alike, sources, targets)):
        return list(zip(sources, targets, strict=True)), "by order"
    raise InputError(
        "The normalizations have neither the same names nor the same kinds in the same order; "
        f"pass names={{name in the source: name in the target}}.{both}"
    )


def _alike(one: Normalization, other: Normalization) -> bool:
    """Whether they are of one kind; groups of one channel are instances."""
    channels = one.sizes() or other.sizes()
    return one.kind is other.kind or one.groups(channels) == other.groups(channels) == -1


def _compared(
    source: Normalization, target: Normalization, layout: str | None
) -> tuple[Carried, list[Callable[[], None]]]:
    """What will be reported of a pair, and the steps that carry it.

    Raises:
        InputError: it cannot be carried.
    """
    _check_counterparts(source, target)
    order, before = _order(source, target, layout)
    notes = [] if order == "same" else [f"channels moved from {order}"]
    epsilon = _epsilon(source)
    attributes: dict[str, Any] = {}
    steps: list[Callable[[], None]] = []
    for name, absent in ABSENT.items():
        value, there = source.value(name), target.value(name)
        if value is not None and there is None:
            if name == "learned epsilon":
                epsilon += float(abs(value[0]))
                notes.append("with the learned epsilon")
            elif absent is None or (value != absent).any():
                raise InputError(
                    f"the source has {_a(name)}, for which the target has no place; make the "
                    f"target with {target.framework.parameters.get(name, name)}."
                )
        elif there is not None:
            if value is None:
                if absent is None:
                    raise InputError(f"the target has {_a(name)}, and the source has none.")
                value = np.full(there.shape, absent, np.float32)
                notes.append(f"{name} set to {absent:g}")
            elif name != "learned epsilon" and before is not None:
                axes = LAYOUTS[order](tuple(range(len(before))))
                value = value.reshape(before).transpose(axes)
            parameter = target.parameter(name)
            write = target.framework.write
            steps.append(functools.partial(write, parameter, value.reshape(there.shape)))
            if source.parameter(name) is not None:
                notes += _rounded(source.parameter(name), parameter)
    if target.parameter("mean") is not None:
        momentum, now = target.module.momentum, _momentum(source, target.framework.keeps)
        attributes["momentum"] = now
        if momentum != now:
            notes.append(f"momentum {momentum} -> {now}")
        unbiased = source.unbiased()
        if hasattr(target.module, "unbiased") and target.unbiased() != unbiased:
            attributes["unbiased"] = unbiased
            notes.append(f"unbiased={unbiased}")
    attributes[target.framework.epsilon] = epsilon
    steps += [
        functools.partial(setattr, target.module, name, one) for name, one in attributes.items()
    ]
    line = Carried(
        source.name,
        target.name,
        source.kind.name,
        (source.sizes(), target.sizes()),
        (target.epsilon(), epsilon),
        tuple(dict.fromkeys(notes)),
    )
    return line, steps


def _a(name: str) -> str:
    return f"a moving {name}" if ABSENT[name] is None else f"a learned {name}"


def _check_counterparts(source: Normalization, target: Normalization) -> None:
    """Raise InputError unless both compute the same for the same parameters and epsilon."""
    for one in (source, target):
        for option in ("rms_scaling", "renorm"):
            if getattr(one.module, option, False) is True:
                raise InputError(f"{one.name} has {option}=True, which has no counterpart.")
    if not _alike(source, target):
        raise InputError(
            f"a {source.kind.title.lower()} is not a {target.kind.title.lower()}; pass names= that "
            "pair those of one kind."
        )
    channels = source.sizes() or target.sizes()
    facts: tuple[tuple[str, Any, Any], ...] = (
        ("groups", source.groups(channels), target.groups(channels)),
        ("the number of axes with parameters", source.axes(), target.axes()),
        ("flax's reduction_axes and feature_axes", source.own_axes(), target.own_axes()),
    )
    for what, there, here in facts:
        if there != here:
            raise InputError(f"{what}: {there} in the source, {here} in the target; make it equal.")


def _order(
    source: Normalization, target: Normalization, layout: str | None
) -> tuple[str, Shape | None]:
    """The layout that carries the source's parameters over, and the shape to read them in.

    Raises:
        InputError: none fits, or several do.
    """
    sizes, wanted, count = source.sizes(), target.sizes(), source.axes()
    if sizes is None or wanted is None:
        return "same", None
    fitting: dict[str, Shape] = {}
    if len(sizes) == len(wanted):
        known = LAYOUTS if len(sizes) == count else ("same",)
        fitting = {name: sizes for name in known if LAYOUTS[name](sizes) == wanted}
    elif math.prod(sizes) == math.prod(wanted):  # flax has them in one axis, on one side
        for name, reorder in LAYOUTS.items():
            axes = reorder(tuple(range(count)))
            whole = len(sizes) == count
            fitting[name] = sizes if whole else tuple(wanted[axes.index(n)] for n in range(count))
    if layout is None:
        layout = _only_layout(source, target, tuple(fitting), count)
    if layout not in fitting:
        given = "" if layout is None else f" with layout={layout!r}"
        raise InputError(f"parameters of shape {sizes} do not fit the target's, {wanted}{given}.")
    return layout if count > 1 else "same", fitting[layout]


def _only_layout(
    source: Normalization, target: Normalization, fitting: tuple[str, ...], count: int
) -> str | None:
    """The one of the layouts that is meant; None where there is none."""
    different = {LAYOUTS[name](tuple(range(count))): name for name in reversed(fitting)}
    alike = source.framework.channels == target.framework.channels
    carried = any(
        source.parameter(one) is not None and target.parameter(one) is not None
        for one in ("gamma", "beta", "mean")
    )
    if len(different) < 2 or (fitting[0] == "same" and alike) or not carried:
        return fitting[0] if fitting else None
    raise InputError(
        f"parameters of shape {source.sizes()} fit the target's, {target.sizes()}, in more than "
        f"one way; pass layout={' or '.join(map(repr, fitting))}: whether the channels stay where "
        "they are among the axes, or move."
    )


def _epsilon(source: Normalization) -> float:
    """The source's, also where it is the dtype's own, which for half precision is float32's."""
    epsilon = source.epsilon()
    if epsilon is not None:
        return epsilon
    double = str(getattr(source.parameter("gamma"), "dtype", "")).endswith("float64")
    return float(np.finfo(np.float64 if double else np.float32).eps)


def _momentum(source: Normalization, keeps: bool) -> float:
    """The share of the old average that stays, or of the new one."""
    momentum = source.module.momentum
    if momentum is None:
        raise InputError(
            "momentum=None averages over all batches, each with its own share, and is no constant "
            "that could be carried; set momentum of the source to a number first."
        )
    # Rounded: 1 - 0.9 is 0.1 to whoever reads it.
    return float(momentum) if source.framework.keeps == keeps else round(1 - float(momentum), 12)


def _rounded(one: Any, other: Any) -> list[str]:
    """What to say of the dtypes of two parameters."""
    before, now = (str(parameter.dtype).removeprefix("torch.") for parameter in (one, other))
    return [] if before == now else [f"{before} -> {now}"]


def _forget_compiled(target: Any) -> None:
    """Let a Keras model compile its steps again, which have the old epsilon in them."""
    if framework_of(target) is KERAS and isinstance(target, sys.modules["keras"].Model):
        target.train_function = target.test_function = target.predict_function = None
