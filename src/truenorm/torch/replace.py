"""`replace`: the normalizations of a model become truenorm's, the same ones or of another kind."""

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import InstanceNorm1d, InstanceNorm3d

from truenorm.core import arguments
from truenorm.core.errors import brief
from truenorm.core.kinds import KINDS
from truenorm.torch import batch_norm, modules

Where = Callable[[str, nn.Module], bool]

# torch.nn's module, and the one of the same numbers.
_SAME: dict[type[nn.Module], type[nn.Module]] = {
    getattr(nn, name): getattr(modules, name)
    for name in (
        "GroupNorm",
        "InstanceNorm1d",
        "InstanceNorm2d",
        "InstanceNorm3d",
        "LayerNorm",
        "RMSNorm",
    )
} | {getattr(nn, name): getattr(batch_norm, name) for name in batch_norm.__all__}
_BATCH = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    batch_norm.SyncBatchNorm,
)
_KNOWN = (*_SAME, *_BATCH, nn.LocalResponseNorm)
# What another kind can be made from: a module with one axis of channels, which is axis 1.
_CHANNELS = (
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    *_BATCH,
)


@dataclasses.dataclass(frozen=True)
class Replacement:
    """What was done with one normalization of a model.

    Attributes:
        name: the module's name in the model; "" is the model itself.
        before: its repr, with the package of its class in front.
        after: the same of what is in its place, or None where it was left.
        note: why it was left, or what else there is to know.
    """

    name: str
    before: str
    after: str | None
    note: str = ""

    def __str__(self) -> str:
        name, note = self.name or "(the model)", f" ({self.note})" if self.note else ""
        if self.after is None:
            return f"{name}: left as it is, {self.before}: {self.note}"
        return f"{name}: {self.before} -> {self.after}{note}"


@dataclasses.dataclass(frozen=True)
class Report:
    """What `replace` did: printing it gives a line for each normalization.

    Attributes:
        model: the model, or what took its place where it is itself a normalization.
        replaced: what was changed.
        left: what was not, and why.
    """

    model: nn.Module
    replaced: tuple[Replacement, ...]
    left: tuple[Replacement, ...]

    def __str__(self) -> str:
        many = f"{len(self.replaced)} normalization{'s' * (len(self.replaced) != 1)} replaced"
        summary = f"{many}, {len(self.left)} left" if self.left else many
        return "\n".join([summary, *(f"  {one}" for one in (*self.replaced, *self.left))])

    __repr__ = __str__


def replace(
    model: nn.Module,
    to: str | None = None,
    *,
    where: Where | None = None,
    groups: int | None = None,
) -> Report:
    """Put truenorm's modules in the place of a model's normalizations, inside the model.

    With `to=None` each normalization of torch.nn that has an exact counterpart becomes that: the
    same object with the same parameters and hooks, and the same numbers within what truenorm
    promises. A subclass does where it computes the same, or, of layer normalization, the same over
    axis 1; it is tried on a few numbers. With the name of a kind, normalizations over channels
    (batch, group and instance) become that kind, with their weight and bias; subclasses, which may
    do more than normalize, are left.

    Args:
        model: any module; one that occurs in it several times is replaced by one.
        to: None, "group", "instance", "layer" (over the channels of each place), "rms" (the same),
            or "sync_batch": batch normalization with the statistics of all processes.
        where: takes a module's name and the module, and tells whether it may be replaced.
        groups: for "group": how many, or -1 for one per channel; None is 32, or the most below that
            divide the channels with more than one channel in each.

    Returns:
        What was replaced by what, and what was left and why.

    Raises:
        ValueError: `to` is unknown, or groups are given without "group", or are 0 or below -1.
        TypeError: the model is no module, or groups are no integer.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}.")
    kinds = ("group", "instance", "layer", "rms", "sync_batch")
    if to is not None and to not in kinds:
        raise ValueError(
            f"to={brief(to)} is unknown; expected None, {', '.join(map(repr, kinds))}."
        )
    if groups is not None and to != "group":
        raise ValueError(f"groups={brief(groups)} is an option of to='group' alone.")
    if groups is not None:
        groups = arguments.check_group_count(groups)
    made: dict[nn.Module, nn.Module] = {}
    done: list[Replacement] = []
    for name, module in model.named_modules():
        if not isinstance(module, _KNOWN) or (where is not None and not where(name, module)):
            continue
        before = _shown(module)
        new, note = _same(module) if to is None else _other(module, to, groups)
        done.append(Replacement(name, before, None if new is None else _shown(new), note))
        if new is not None and new is not module:
            made[module] = _take_over(new, module)
    for parent in list(model.modules()):
        for name, child in parent._modules.items():  # named_children() leaves repeated ones out
            if child in made:
                parent._modules[name] = made[child]
    return Report(
        made.get(model, model),
        tuple(one for one in done if one.after is not None),
        tuple(one for one in done if one.after is None),
    )


def _shown(module: nn.Module) -> str:
    """The module's repr, after the package that one imports its class from."""
    home = type(module).__module__
    for package in ("torch.nn", "truenorm.torch"):
        if home.startswith(f"{package}."):
            home = package
    return f"{home}.{module!r}"


def _same(module: nn.Module) -> tuple[nn.Module | None, str]:
    """The module, of truenorm's class, or why there is none of the same numbers."""
    if isinstance(module, tuple(_SAME.values())):
        return None, "it is truenorm's"
    base = next((one for one in _SAME if isinstance(module, one)), None)
    if base is None:
        return None, "truenorm has no such normalization"
    axis: int | None = None if hasattr(module, "normalized_shape") else 1
    if type(module) is not base:
        if getattr(module, "running_mean", None) is not None:  # which a trial would move
            return None, f"it is a subclass of {base.__name__} that may do more: replace it by hand"
        found = _axis_of(module, base)
        if found is _NONE:
            return None, f"it is a subclass of {base.__name__} that computes something else"
        axis = found
    # The object stays, and with it its parameters, hooks and mode, and who refers to it.
    module.__class__ = _SAME[base]
    # Not by setattr: a subclass may have a module of that name.
    vars(module).update(axis=axis, activation=None, implementation=None)
    return module, ""


_NONE = object()


def _axis_of(module: nn.Module, base: type[nn.Module]) -> Any:
    """The axis with which a subclass computes what truenorm's module does; `_NONE` if with none.

    It is asked for its result on random numbers: many libraries have subclasses of their own, such
    as a layer normalization over the channels of (N, C, H, W).
    """
    sizes = tuple(getattr(module, "normalized_shape", ()))
    channels = getattr(module, "num_channels", None) or getattr(module, "num_features", None)
    pixels = {InstanceNorm1d: 1, InstanceNorm3d: 3}.get(base, 2)
    shapes: list[tuple[int | None, tuple[int, ...]]] = []
    if sizes:
        shapes.append((None, (2, 3, *sizes)))
        if len(sizes) == 1:
            shapes.append((1, (2, *sizes, 3, 5 if sizes[0] != 5 else 7)))
    elif channels is not None:
        shapes.append((1, (2, channels, *(3, 5, 7)[:pixels])))
    like = next(module.parameters(), torch.empty(()))
    if like.is_meta:
        return _NONE
    ours = copy.copy(module)
    ours.__class__ = _SAME[base]
    vars(ours).update(activation=None, implementation=None)
    close = 1e-4 if like.dtype in (torch.float32, torch.float64) else 3e-2
    for axis, shape in shapes:
        x = torch.linspace(-2, 3, math.prod(shape), dtype=like.dtype, device=like.device)
        x = torch.sin(17 * x).reshape(shape) + 0.3
        ours.axis = axis
        with torch.no_grad():
            try:
                y, wanted = ours.forward(x), module.forward(x)
            except Exception:  # it takes no such input
                continue
        same = isinstance(wanted, Tensor) and y.shape == wanted.shape
        if same and torch.allclose(y, wanted, rtol=close, atol=close):
            return axis
    return _NONE


def _other(module: nn.Module, to: str, groups: int | None) -> tuple[nn.Module | None, str]:
    """A module of another kind over the same channels, or why there is none."""
    if not isinstance(module, _CHANNELS):
        return None, "it does not normalize channels in axis 1"
    channels = getattr(module, "num_channels", None) or getattr(module, "num_features", None)
    if not channels:
        return None, "its number of channels is not known yet"
    if type(module) not in _CHANNELS and type(module) not in _SAME.values():
        base = next(one.__name__ for one in type(module).mro() if one in _CHANNELS)
        return None, f"it is a subclass of {base} that may do more: replace it by hand"
    if to == "sync_batch":
        return _synchronized(module)
    weight, bias = module.weight, module.bias
    one = weight if isinstance(weight, Tensor) else None
    options: dict[str, Any] = {"eps": module.eps, "axis": 1}
    if one is not None:
        options |= {"device": one.device, "dtype": one.dtype}
    if type(module) in _SAME.values():
        options |= {
            name: getattr(module, name) for name in ("axis", "activation", "implementation")
        }
    pixels = not isinstance(module, (nn.BatchNorm1d, nn.InstanceNorm1d))
    if to == "group":
        count = _groups(channels) if groups is None else groups
        count = channels if count == -1 else count
        if channels % count:
            return None, f"groups={count} does not divide its {channels} channels"
        if channels == count and not pixels:
            return None, f"groups={count} would leave one element in a group of an input (N, C)"
        new: nn.Module = modules.GroupNorm(count, channels, affine=weight is not None, **options)
    elif to == "instance":
        rank = next((one for one in "123" if type(module).__name__.endswith(f"{one}d")), None)
        if rank is None:
            return None, "the rank of its input is not known: replace it by hand"
        if isinstance(module, nn.BatchNorm1d):
            return (
                None,
                "it may have inputs (N, C), where instance normalization leaves one element",
            )
        cls = getattr(modules, f"InstanceNorm{rank}d")
        new = cls(channels, affine=weight is not None, **options)
    elif channels == 1:
        return None, f"{KINDS[to].title.lower()} over one channel leaves one element in a group"
    else:
        cls = modules.LayerNorm if to == "layer" else modules.RMSNorm
        new = cls(channels, elementwise_affine=weight is not None, **options)
    for name, parameter in (("weight", weight), ("bias", bias)):
        if name in new._parameters:
            new._parameters[name] = parameter
    notes = []
    if bias is not None and "bias" not in new._parameters:
        notes.append("its bias is dropped")
    if getattr(module, "running_mean", None) is not None:
        notes.append("its running statistics are dropped")
    return new, ", ".join(notes)


def _synchronized(module: nn.Module) -> tuple[nn.Module | None, str]:
    """The module, of the class whose statistics are those of all processes."""
    if not isinstance(module, _BATCH):
        return None, "it is no batch normalization"
    if getattr(module, "virtual_batch_size", None) is not None:
        return None, "it takes statistics over virtual batches"
    if isinstance(module, batch_norm.SyncBatchNorm):
        return None, "it is synchronized"
    module.__class__ = batch_norm.SyncBatchNorm  # which has defaults for what torch.nn's has not
    return module, ""


def _groups(channels: int) -> int:
    """At most 32 groups that divide the channels, with more than one in each where that can be."""
    fitting = [n for n in range(1, 33) if channels % n == 0 and n < channels]
    return max(fitting, default=1)


def _take_over(new: nn.Module, old: nn.Module) -> nn.Module:
    """The new module, with the old one's hooks and mode."""
    for name, value in vars(old).items():
        if "hook" in name:  # _forward_hooks and the like, and _is_full_backward_hook
            new.__dict__[name] = value
    return new.train(old.training)
