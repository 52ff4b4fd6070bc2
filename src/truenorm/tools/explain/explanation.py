"""`explain`: which elements of a tensor share statistics, in words and as a picture.

The facts come from the view that the layers compute with; this module only words them. They are
counted in `parts.py`; what to watch for is in `cautions.py`, the drawing in `drawing.py`.
"""

import dataclasses
import difflib
import math
import operator
import textwrap
from collections.abc import Sequence
from typing import Any, Literal, overload

from truenorm.core.arguments import check_group_count, check_single_axis
from truenorm.core.errors import InputError
from truenorm.core.kinds import KINDS, Kind
from truenorm.core.view import View, axes_view
from truenorm.tools.explain.cautions import cautions
from truenorm.tools.explain.drawing import Drawable
from truenorm.tools.explain.parts import SPATIAL, Part, Shape, Split, split

WEIGHT = "weight"  # normalizes a kernel, and is no kind of normalization of an input
BATCH = ("virtual_batch_size", "synchronized")  # arguments of batch normalization alone
CUTS = (*BATCH, "devices")  # what cuts its batch


@dataclasses.dataclass(frozen=True, repr=False)
class Explanation(Drawable):
    """Which elements of a tensor share statistics, and what is learned.

    Printing it gives the words; a notebook shows the picture as well.

    Attributes:
        name: batch, layer, instance, group, rms, frn or weight.
        settings: the arguments that decide, as in a call: "groups=5, axis=3".
        shape: the shape of the input, or of the kernel of weight normalization; None where a size
            is unknown.
        axis_names: one letter for each axis, such as ("N", "H", "W", "C"), or of a kernel
            ("H", "W", "I", "O").
        view: the kept and reduced axes that the layers compute with.
        learned: ("gamma", "beta"), or those of the two that there are; of a kernel ("g",).
        split: how a batch is cut over devices and into virtual batches; None: not at all.
        notes: what to watch for, a sentence or two each.
    """

    name: str
    settings: str
    shape: Shape
    axis_names: tuple[str, ...]
    view: View
    learned: tuple[str, ...]
    split: Split | None = None
    notes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The layer as it is written in code."""
        return f"{_class_name(self.name)}({self.settings})"

    @property
    def statistics(self) -> str:
        """What the elements share: "mean and variance", "root mean square" or "length g"."""
        if self.name == WEIGHT:
            return "length g"
        return "mean and variance" if KINDS[self.name].centered else "root mean square"

    @property
    def channel_axis(self) -> int:
        """The axis of the channels, or of a kernel's output units."""
        return self.axis_names.index("O" if self.name == "weight" else "C")

    @property
    def parts(self) -> tuple[Part, ...]:
        """What is normalized each by itself: the input, or the stacks into which it is cut."""
        whole = Part(self.view, self.shape, self.axis_names)
        return (whole,) if self.split is None else tuple(self.split.parts(whole))

    @property
    def groups_of_elements(self) -> int | None:
        """How many sets of elements share statistics; None where a size in it is unknown."""
        counts = [part.count(reduced=False)[0] for part in self.parts]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    @property
    def elements_per_group(self) -> int | None:
        """How many elements each of them has, or each but those of the last virtual batch.

        None where a size in it is unknown.
        """
        return self.parts[0].count(reduced=True)[0]

    @property
    def parameter_axes(self) -> tuple[int, ...]:
        """The axes, ascending, over which gamma and beta vary."""
        return self.view.parameter_axes

    @property
    def parameter_shape(self) -> tuple[int, ...]:
        """The shape of gamma and of beta."""
        return self.view.parameter_shape(self.shape)

    @property
    def parameters(self) -> int:
        """How many numbers are trained."""
        return len(self.learned) * math.prod(self.parameter_shape)

    @property
    def constant(self) -> str:
        """What the output is where the normalized value is zero."""
        return "beta" if "beta" in self.learned else "0"

    @property
    def heading(self) -> str:
        """The title of the picture."""
        return "Weight normalization" if self.name == WEIGHT else KINDS[self.name].title

    @property
    def subtitle(self) -> str:
        """The line below it."""
        devices = 1 if self.split is None else self.split.devices
        return f"{self.settings}, {devices} devices" if devices > 1 else self.settings

    def caption(self) -> tuple[str, str, str]:
        """The caption of the picture, line by line."""
        (_, elements, words), *less = (part.count(reduced=True) for part in self.parts)
        counts = [part.count(reduced=False)[1] for part in self.parts]
        more = "".join(
            f", and {n} of {size}" for n, (_, size, _) in zip(counts[1:], less, strict=True)
        )
        return (
            f"Groups of {elements} element{'s' * (elements != '1')}:",
            words,
            f"{counts[0]} such group{'s' * (counts[0] != '1')}{more}",
        )

    def __str__(self) -> str:
        names = ", ".join(self.axis_names)
        sizes = ", ".join("?" if size is None else str(size) for size in self.shape)
        facts = [] if self.split is None else [str(self.split)]
        for part in self.parts:
            _, groups, kept = part.count(reduced=False)
            _, elements, reduced = part.count(reduced=True)
            own = f"{'each ' * (groups != '1')}with its own {self.statistics}"
            facts += [
                f"{groups} group{'s' * (groups != '1')} of elements ({kept}), {own}.",
                f"{elements} element{'s' * (elements != '1')} in each ({reduced}).",
            ]
        facts.append(self._learned_in_words())
        what = "a kernel" if self.name == "weight" else "x"
        lines = [f"{self.title} of {what} with shape ({names}) = ({sizes})"]
        lines += [_wrap("  ", fact) for fact in facts]
        if self.notes:
            lines += ["Watch for:", *(_wrap("  - ", note) for note in self.notes)]
        return "\n".join(lines)

    __repr__ = __str__

    def panels(self) -> tuple["Explanation", ...]:
        """Itself."""
        return (self,)

    def _learned_in_words(self) -> str:
        if self.name == "weight":
            return (
                f"g varies over axis {self.channel_axis} (O): {self.parameters:,} parameters more."
            )
        missing = " and ".join(
            f"no {name}" for name in ("gamma", "beta") if name not in self.learned
        )
        if not self.learned:
            return f"There is {missing}: nothing is learned."
        axes = [str(axis) for axis in self.parameter_axes]
        listed = axes[0] if len(axes) == 1 else f"{', '.join(axes[:-1])} and {axes[-1]}"
        letters = ", ".join(self.axis_names[axis] for axis in self.parameter_axes)
        many = len(self.learned) > 1
        return (
            f"{' and '.join(self.learned)} var{'y' if many else 'ies'} over "
            f"ax{'is' if len(axes) == 1 else 'es'} {listed} ({letters}), "
            f"shape {self.parameter_shape}{' each' * many}: {self.parameters:,} parameters"
            f"{f'; there is {missing}' * bool(missing)}."
        )


def _wrap(indent: str, text: str) -> str:
    """Fill lines of 92 characters, the first one indented by this, the others by spaces."""
    return textwrap.fill(text, 92, initial_indent=indent, subsequent_indent=" " * len(indent))


@dataclasses.dataclass(frozen=True, repr=False)
class Explanations(Drawable):
    """Several explanations of one shape, printed in turn and drawn side by side."""

    items: tuple[Explanation, ...]
    preface: str

    def __str__(self) -> str:
        return "\n\n".join([_wrap("", self.preface), *(str(item) for item in self.items)])

    __repr__ = __str__

    def panels(self) -> tuple[Explanation, ...]:
        """The items."""
        return self.items


@overload
def explain(  # type: ignore[overload-overlap]  # "all" is an object too
    layer: Literal["all"],
    shape: Sequence[int | None],
    *,
    groups: int | None = None,
    axis: int | Sequence[int] | None = None,
    center: bool | None = None,
    scale: bool | None = None,
    virtual_batch_size: int | None = None,
    devices: int | None = None,
    synchronized: bool | None = None,
) -> Explanations: ...


@overload
def explain(
    layer: object,
    shape: Sequence[int | None],
    *,
    groups: int | None = None,
    axis: int | Sequence[int] | None = None,
    center: bool | None = None,
    scale: bool | None = None,
    virtual_batch_size: int | None = None,
    devices: int | None = None,
    synchronized: bool | None = None,
) -> Explanation: ...


def explain(
    layer: object,
    shape: Sequence[int | None],
    *,
    groups: int | None = None,
    axis: int | Sequence[int] | None = None,
    center: bool | None = None,
    scale: bool | None = None,
    virtual_batch_size: int | None = None,
    devices: int | None = None,
    synchronized: bool | None = None,
) -> Explanation | Explanations:
    """Explain which elements of an input of this shape share statistics.

    Args:
        layer: "batch", "layer", "instance", "group", "rms", "frn" (filter response) or "weight";
            "all" for the first four as in figure 2 of "Group Normalization"
            (https://arxiv.org/abs/1803.08494); or a layer of truenorm or Keras, built or not,
            which brings the options below with it.
        shape: the shape of the input, batch axis first, of rank 2 or more; None where unknown. Of
            "weight" the shape of the kernel, output units last.
        groups: for "group" (default 32) and "all" (default: one that fits); -1 is one per channel.
        axis: as the layers take it: the channel axis, by default the last; for "layer" and "rms"
            the axis or axes over which the statistics run, for "frn" all of them. "all" takes one
            axis, which is the channel axis in all panels but that of layer normalization: there
            the statistics run over it. "weight" takes none.
        center: whether there is a beta (default True; "rms" never has one, "frn" always).
        scale: whether there is a gamma (default True; "frn" always has one).
        virtual_batch_size: for "batch", statistics over so many samples in turn, and over what is
            left.
        devices: for "batch", over how many devices the samples are split, in turn and evenly;
            also with a layer.
        synchronized: for "batch", whether all devices share statistics (default False).

    Raises:
        InputError: an unknown name, a bad shape, an axis out of range, groups that do not divide,
            an option of another normalization, devices that do not divide.
    """
    sizes = _check_shape(shape)
    options = {
        "groups": groups, "axis": axis, "center": center, "scale": scale, "devices": devices,
        "virtual_batch_size": virtual_batch_size, "synchronized": synchronized,
    }  # fmt: skip
    given = {name: value for name, value in options.items() if value is not None}
    if layer == "all":
        return _explain_all(sizes, given)
    if isinstance(layer, str):
        names = [*KINDS, WEIGHT]
        if layer not in names:
            near = difflib.get_close_matches(layer.lower(), [*names, "all"], 1, 0.4)
            raise InputError(
                f"unknown normalization {layer!r}{f'; did you mean {near[0]!r}?' if near else ';'} "
                f"expected one of {', '.join(names)}, all."
            )
        return _explain_one(layer, sizes, given)
    name, settings = _read_layer(layer)
    own = [option for option in given if option != "devices"]
    if own:
        raise InputError(
            f"{', '.join(own)} cannot be given with a layer object, which has its own; "
            f"pass the name {name!r} instead of the layer to choose them."
        )
    return _explain_one(name, sizes, settings | given)


def parse_shape(text: str) -> Shape:
    """Read a shape such as "8,28,28,10", with ? for an unknown size."""
    try:
        parts = [part.strip() for part in text.strip().strip("()[]").split(",")]
        return _check_shape([None if part == "?" else int(part) for part in parts])
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"cannot read the shape {text!r}; expected sizes separated by commas, with ? for an "
            "unknown one, such as 8,28,28,10 or ?,128,64."
        ) from None


def parse_axis(text: str) -> int | list[int]:
    """Read an axis such as "3" or a list of axes such as "1,2,3"."""
    try:
        axes = [int(part) for part in text.strip().strip("()[]").split(",")]
    except ValueError:
        raise InputError(
            f"cannot read the axis {text!r}; expected an integer such as 3, or integers separated "
            "by commas such as 1,2,3."
        ) from None
    return axes[0] if len(axes) == 1 else axes


def _check_shape(shape: Sequence[int | None]) -> Shape:
    try:
        sizes = tuple(None if size is None else operator.index(size) for size in shape)
    except TypeError:
        raise InputError(
            f"shape={shape!r} must be a sequence of integers (None where unknown), "
            "such as (8, 28, 28, 10)."
        ) from None
    if len(sizes) < 2:
        raise InputError(
            f"shape={sizes} has rank {len(sizes)}; expected at least 2 axes, samples first, "
            "such as (32, 10)."
        )
    if any(size is not None and size < 1 for size in sizes):
        raise InputError(f"shape={sizes} must have sizes of at least 1 (None where unknown).")
    return sizes


def _read_layer(layer: object) -> tuple[str, dict[str, Any]]:
    """The name and the options of a layer object, recognized by the name of its class."""
    names = {_class_name(name): name for name in (*KINDS, WEIGHT)}
    for base in type(layer).__mro__ if not isinstance(layer, type) else ():
        if base.__name__ in names:
            name = names[base.__name__]
            break
    else:
        raise InputError(
            f"cannot explain {layer!r}; expected a name ({', '.join(names.values())}, all) or a "
            f"layer: an instance of {', '.join(names)}."
        )
    if name == WEIGHT:
        raise InputError(
            "weight normalization depends on the shape of the kernel alone, not of an input; pass "
            "explain('weight', kernel_shape)."
        )
    kind, settings = KINDS[name], {"axis": getattr(layer, "axis", None)}
    if kind.groups:
        settings["groups"] = getattr(layer, "groups", None)
    if kind.optional:
        # Keras' RMSNormalization keeps its weight, always there, in `scale`, so only False means
        # no.
        settings["scale"] = getattr(layer, "scale", True) is not False
        if "beta" in kind.learned:
            settings["center"] = getattr(layer, "center", True) is not False
    settings |= {option: getattr(layer, option, None) or None for option in BATCH}
    return name, {key: value for key, value in settings.items() if value is not None}


def _class_name(name: str) -> str:
    """The layer's class in Keras or truenorm."""
    return "WeightNormalization" if name == WEIGHT else KINDS[name].keras


def _explain_all(shape: Shape, given: dict[str, Any]) -> Explanations:
    """Batch, layer, instance and group normalization, with the settings of the paper's figure."""
    batch = {k: v for k, v in given.items() if k in CUTS}
    options = {k: v for k, v in given.items() if k != "groups" and k not in batch}
    instance = _explain_one("instance", shape, options)
    (channels,) = instance.parameter_shape
    over: int | list[int] = list(range(1, len(shape)))
    words = "all axes of a sample"
    if "axis" in given:
        (over,) = instance.parameter_axes
        words = f"axis {given['axis']}, which is the channel axis of the others"
    groups, why = given.get("groups"), "as given"
    if groups is None:
        groups = max(n for n in range(1, 33) if channels % n == 0 and (n < channels or n == 1))
        why = f"the most, up to 32, that divide the {channels} channels and do not part all of them"
    items = (
        _explain_one("batch", shape, options | batch),
        _explain_one("layer", shape, {**options, "axis": over}),
        instance,
        _explain_one("group", shape, {**options, "groups": groups}),
    )
    preface = (
        f"As in figure 2 of 'Group Normalization' (arXiv:1803.08494): layer normalization over "
        f"{words}; group normalization with groups={groups}, {why}."
    )
    return Explanations(items, preface)


def _explain_one(name: str, shape: Shape, given: dict[str, Any]) -> Explanation:
    if "groups" in given and not (name in KINDS and KINDS[name].groups):
        fault = f"groups={given['groups']} is an option of group normalization, not of {name!r}."
        raise InputError(fault)
    if name == WEIGHT:
        return _explain_weight(shape, given)
    kind, rank = KINDS[name], len(shape)
    learned = _learned(kind, given)
    axis = given.get("axis", kind.default_axis(rank))
    groups = given.get("groups", 32 if kind.groups else None)
    try:
        if kind.groups:
            groups = check_group_count(groups)
        if kind.axis_is == "channels":
            single = isinstance(axis, (list, tuple)) and len(axis) == 1
            axis = check_single_axis(axis[0] if single else axis)
        view = kind.view(shape, axis, groups, first=1)
        cut = _split(name, view, shape, {k: given[k] for k in CUTS if k in given})
    except (ValueError, TypeError) as error:
        raise InputError(str(error)) from None
    for one in view.parameter_axes:
        if shape[one] is None:
            raise InputError(
                f"the size of axis {one} is unknown in shape={shape}, but gamma and beta of "
                f"{kind.title[0].lower()}{kind.title[1:]} vary over it; give its size."
            )
    axes = list(view.parameter_axes)
    channel = axes[-1]
    if kind.axis_is == "statistics":
        # Of several axes with a gamma and a beta none need have the channels.
        channel = channel if len(axes) == 1 else rank - 1
        axes = sorted({factor.axis for factor in view.factors if factor.reduced})
    settings = f"axis={axes[0] if len(axes) == 1 else axes}"
    if kind.groups:
        settings = f"groups={groups}, {settings}"
    for option in BATCH:
        settings += f", {option}={given[option]}" if given.get(option) else ""
    names = ["N", *SPATIAL.get(rank - 2, [f"X{i}" for i in range(1, rank - 1)])]
    names.insert(channel, "C")
    explanation = Explanation(name, settings, shape, tuple(names), view, learned, cut)
    return dataclasses.replace(explanation, notes=tuple(cautions(explanation)))


def _split(name: str, view: View, shape: Shape, given: dict[str, Any]) -> Split | None:
    """How these options cut the batch; None where they leave it whole."""
    if given and view.has_samples:
        option = next(iter(given))
        raise InputError(
            f"{option}={given[option]} is an option of batch normalization, not of {name!r}."
        )
    if "devices" not in given and "virtual_batch_size" not in given:
        return None
    return split(
        shape[0],
        given.get("devices", 1),
        given.get("synchronized", False),
        given.get("virtual_batch_size"),
    )


def _learned(kind: Kind, given: dict[str, Any]) -> tuple[str, ...]:
    """Those of gamma and beta that there are with these options."""
    wanted = {"gamma": given.get("scale", True), "beta": given.get("center", True)}
    for option, name in (("scale", "gamma"), ("center", "beta")):
        if option in given and not (kind.optional and name in kind.learned):
            has = "always has a gamma and a beta" if name in kind.learned else f"has no {name}"
            raise InputError(f"{option} is no option of {kind.name!r}: {kind.title} {has}.")
    return tuple(name for name in kind.learned if wanted[name])


def _explain_weight(shape: Shape, given: dict[str, Any]) -> Explanation:
    """Weight normalization: the weights of one output unit share a length."""
    if given:
        raise InputError(
            f"{', '.join(given)} cannot be given for 'weight', which normalizes the kernel of a "
            "layer: pass the kernel's shape, output units last, such as 3,3,16,32."
        )
    if None in shape:
        raise InputError(f"shape={shape} must be known: it is the shape of a kernel.")
    rank = len(shape)
    view = axes_view(rank, list(range(rank - 1)), [rank - 1])
    names = [*SPATIAL.get(rank - 2, [f"X{i}" for i in range(1, rank - 1)]), "I", "O"]
    notes = (
        "The kernel of an output unit is g * v / |v|, with |v| over its elements: length and "
        "direction are learned apart. v has the kernel's shape.",
        "No statistics of the data are taken: the output for one sample depends on that sample "
        "alone, and training and inference are the same. Only the first batch gives g and the bias "
        "their first values (data_init=True).",
    )
    settings = "layer"
    return Explanation("weight", settings, shape, tuple(names), view, ("g",), notes=notes)
