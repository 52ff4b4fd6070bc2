"""The normalizations in a model of torch.nn, flax.nnx or Keras, and ours, seen as one thing.

A framework is known by the names of its classes: none is imported here.
"""

import dataclasses
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from truenorm.core.errors import InputError, brief
from truenorm.core.kinds import KINDS, Kind

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]

# What can be carried, and what it is where there is none; moving statistics are there or not.
ABSENT = {"gamma": 1.0, "beta": 0.0, "mean": None, "variance": None, "learned epsilon": 0.0}


@dataclasses.dataclass(frozen=True, eq=False)
class Framework:
    """How one framework keeps a normalization.

    Attributes:
        name: as in `Kind`.
        homes: where its classes, and ours for it, are defined.
        base: the name of the class of all its modules.
        epsilon: the attribute.
        parameters: the attribute of each.
        keeps: whether momentum is the share of the old average that stays.
        unbiased: whether training moves the variance by that with n - 1 in the denominator.
        channels: where the framework has them unless told otherwise.
        inside: the modules directly inside a module, with their names.
        read: the value of a parameter as an array; fails where there is none yet.
        write: gives a parameter a value.
    """

    name: str
    homes: tuple[str, ...]
    base: str
    epsilon: str
    parameters: Mapping[str, str]
    keeps: bool
    unbiased: bool
    channels: str
    inside: Callable[[Any], Iterator[tuple[str, Any]]]
    read: Callable[[Any], Array]
    write: Callable[[Any, Array], None]

    def owns(self, cls: type) -> bool:
        """Whether the class is the framework's, or ours for it."""
        return f"{cls.__module__}.".startswith(self.homes)


def _torch_inside(module: Any) -> Iterator[tuple[str, Any]]:
    yield from module.named_children()


def _torch_read(parameter: Any) -> Array:
    torch = sys.modules["torch"]
    wide = parameter.dtype if parameter.dtype == torch.float64 else torch.float32
    return np.array(parameter.detach().to("cpu", wide).numpy())


def _torch_write(parameter: Any, value: Array) -> None:
    torch = sys.modules["torch"]
    with torch.no_grad():
        parameter.copy_(torch.tensor(value))


def _flax_inside(module: Any) -> Iterator[tuple[str, Any]]:
    # Not flax's own iteration, which goes through the attributes in alphabetical order.
    if isinstance(module, (list, tuple)):
        yield from ((str(number), one) for number, one in enumerate(module))
    elif isinstance(module, dict):
        yield from ((str(key), one) for key, one in module.items())
    elif any(cls.__name__ in ("Module", "Pytree") for cls in type(module).__mro__):
        yield from vars(module).items()


def _flax_read(variable: Any) -> Array:
    value = np.asarray(variable[...])
    return value if value.dtype == np.float64 else value.astype(np.float32)


def _flax_write(variable: Any, value: Array) -> None:
    jax = sys.modules["jax"]
    there = variable[...]
    variable[...] = jax.device_put(jax.numpy.asarray(value, there.dtype), there.sharding)


def _keras_inside(layer: Any) -> Iterator[tuple[str, Any]]:
    # A model's own list is in the order of its graph; other layers have only the private one.
    model = isinstance(layer, sys.modules["keras"].Model)
    yield from ((one.name, one) for one in (layer.layers if model else layer._layers))


def _keras_read(variable: Any) -> Array:
    value = np.array(sys.modules["keras"].ops.convert_to_numpy(variable))
    return value if value.dtype == np.float64 else value.astype(np.float32)


def _keras_write(variable: Any, value: Array) -> None:
    variable.assign(value)


KERAS = Framework(
    "keras", ("keras.", "truenorm.layers."), "Layer", "epsilon",
    {
        "gamma": "gamma", "beta": "beta", "mean": "moving_mean", "variance": "moving_variance",
        "learned epsilon": "eps_learned",
    },
    True, False, "last", _keras_inside, _keras_read, _keras_write,
)  # fmt: skip
TORCH = Framework(
    "torch", ("torch.nn.", "truenorm.torch."), "Module", "eps",
    {
        "gamma": "weight", "beta": "bias", "mean": "running_mean", "variance": "running_var",
        "learned epsilon": "learned_eps",
    },
    False, True, "first", _torch_inside, _torch_read, _torch_write,
)  # fmt: skip
FLAX = Framework(
    "flax", ("flax.nnx.", "truenorm.flax."), "Module", "epsilon",
    {"gamma": "scale", "beta": "bias", "mean": "mean", "variance": "var"},
    True, False, "last", _flax_inside, _flax_read, _flax_write,
)  # fmt: skip
FRAMEWORKS = (KERAS, TORCH, FLAX)  # with the backend torch, a layer is a module of torch too


@dataclasses.dataclass(frozen=True, eq=False)
class Normalization:
    """A normalization as it was found."""

    name: str
    module: Any
    framework: Framework
    kind: Kind

    def parameter(self, name: str) -> Any:
        """The framework's own parameter, or None."""
        attribute = self.framework.parameters.get(name, "")
        if self.framework is KERAS and name == "gamma" and not hasattr(self.module, "gamma"):
            attribute = "scale"  # in Keras' own RMS normalization
        return getattr(self.module, attribute, None)

    def value(self, name: str) -> Array | None:
        """The parameter as an array, or None.

        Raises:
            InputError: it has no value, or assigning to it would change nothing.
        """
        parameter = self.parameter(name)
        if parameter is None:
            return None
        attribute = self.framework.parameters[name]
        if self.framework is TORCH and not (
            attribute in self.module._parameters or attribute in self.module._buffers
        ):
            raise InputError(
                f"{attribute} of {self.name} is computed from other parameters; remove the "
                "parametrization first."
            )
        try:
            return self.framework.read(parameter)
        except Exception as error:  # uninitialized, abstract, on no device, sharded
            raise InputError(
                f"{name} of {self.name} cannot be read ({type(error).__name__}: {error}); give it "
                "a value, for instance by a first call."
            ) from error

    def is_built(self) -> bool:
        """Whether its parameters have shapes."""
        if self.framework is KERAS:
            return bool(self.module.built)
        # Those that torch has not made yet can be materialized.
        lazy = any(hasattr(self.parameter(name), "materialize") for name in ABSENT)
        return not lazy and getattr(self.module, "normalized_shape", ()) is not None

    def epsilon(self) -> float | None:
        """As the module has it; None is the dtype's own."""
        epsilon = getattr(self.module, self.framework.epsilon)
        return None if epsilon is None else float(epsilon)

    def unbiased(self) -> bool:
        """Whether training moves the variance by that with n - 1; ours can do either."""
        return bool(getattr(self.module, "unbiased", self.framework.unbiased))

    def axes(self) -> int:
        """The number of axes along which the parameters vary."""
        if self.kind.name == "batch":
            return len(_several(getattr(self.module, "axis", 1)))
        if self.framework is FLAX:
            return len(_several(getattr(self.module, "feature_axes", -1)))
        if self.framework is TORCH:
            return len(_several(getattr(self.module, "normalized_shape", 1)))
        over_all = self.kind.axis_is == "statistics" and self.kind.name != "frn"
        return len(_several(self.module.axis)) if over_all else 1

    def sizes(self) -> Shape | None:
        """The shape of the parameters, their axes of size one left out of those over one axis.

        flax has those over several axes in one. None where there are none that would tell.
        """
        for name in ("gamma", "beta", "mean"):
            if (parameter := self.parameter(name)) is not None:
                shape = tuple(int(size) for size in parameter.shape)
                return shape if self.axes() > 1 else (math.prod(shape),)
        for attribute in ("normalized_shape", "num_channels", "num_features"):
            if (sizes := getattr(self.module, attribute, None)) is not None:
                return _several(sizes)
        if hasattr(self.module, "group_size"):
            return (self.module.num_groups * self.module.group_size,)
        return None

    def groups(self, channels: Shape | None) -> int | None:
        """The number of groups; -1 is one for each channel; None is not in groups."""
        if self.kind.name == "instance":
            return -1
        if not self.kind.groups:
            return None
        groups = getattr(self.module, "groups" if self.framework is KERAS else "num_groups")
        return -1 if channels == (groups,) else groups

    def own_axes(self) -> tuple[Shape, Shape] | None:
        """The axes of the statistics and of the parameters, where flax was given unusual ones."""
        over = getattr(self.module, "reduction_axes", None) if self.framework is FLAX else None
        if over is None:
            return None
        over = tuple(sorted(_several(over)))
        along = tuple(sorted(_several(getattr(self.module, "feature_axes", ()))))
        return None if over == along else (over, along)

    def __str__(self) -> str:
        return f"{self.name} ({self.kind.name}, {self.sizes() or 'no parameters'})"


def _several(value: Any) -> Shape:
    return tuple(value) if isinstance(value, (list, tuple)) else (int(value),)


def framework_of(module: Any) -> Framework | None:
    """The framework whose module or layer this is; None for anything else."""
    for framework in FRAMEWORKS:
        for cls in type(module).__mro__:
            if cls.__name__ == framework.base and framework.owns(cls):
                return framework
    return None


def _plain(name: str) -> str:
    """The name of a class without what torch.nn adds to it: 2d, Lazy, Sync."""
    return re.sub(r"^(Lazy|Sync)|\dd$", "", name)


def kind_of(module: Any, framework: Framework) -> Kind | None:
    """The kind of normalization that this is; None for anything else."""
    for cls in type(module).__mro__:
        if framework.owns(cls):
            for kind in KINDS.values():
                name = getattr(kind, framework.name)
                if name is not None and _plain(name) == _plain(cls.__name__):
                    return kind
    return None


def found_in(root: Any, argument: str) -> list[Normalization]:
    """The normalizations of a model in order, or the one that this is.

    Raises:
        InputError: there is none, or one is not built.
        TypeError: it is no module or layer.
    """
    framework = framework_of(root)
    if framework is None:
        raise TypeError(
            f"{argument} is {brief(root)}, of the class {type(root).__name__}; expected a "
            "normalization or a model of torch.nn, flax.nnx, Keras, or truenorm."
        )
    found: list[Normalization] = []
    seen: set[int] = set()

    def visit(module: Any, path: str, inherited: Framework) -> None:
        if id(module) in seen:
            return
        seen.add(id(module))
        own = framework_of(module) or inherited
        kind = kind_of(module, own)
        if kind is not None:
            one = Normalization(path or type(module).__name__, module, own, kind)
            if not one.is_built():
                raise InputError(
                    f"{one.name} in the {argument} is not built, and has no parameters yet; call "
                    "the model once, or build it."
                )
            found.append(one)
            return
        for name, inner in own.inside(module):
            visit(inner, f"{path}.{name}" if path else name, own)

    visit(root, "", framework)
    if not found:
        raise InputError(
            f"{argument}, a {type(root).__name__}, has none of the normalizations that are known: "
            f"{', '.join(KINDS)}."
        )
    return found
