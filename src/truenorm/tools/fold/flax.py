"""Convolutions and linear layers of flax.nnx, and those that are called one after the other."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from truenorm.core.errors import InputError
from truenorm.tools.carry.modules import FLAX, Normalization
from truenorm.tools.fold.arithmetic import Layout, Linear
from truenorm.tools.fold.graph import Graph, chains

_LINEAR = (nnx.Conv, nnx.ConvTranspose, nnx.Linear)


class Identity(nnx.Module):
    """What stands in the place of a batch normalization that was folded."""

    def __call__(self, x: Any, *args: Any, residual: Any = None, **options: Any) -> Any:
        """The input; the other arguments of batch normalization change nothing in inference."""
        if residual is not None:
            raise InputError(
                "a batch normalization that was folded is called with a residual, which it added "
                "before it normalized; leave it out of pairs."
            )
        return x


def copied(model: Any) -> Any:
    """A copy with parameters of its own."""
    return nnx.clone(model)


def modules(model: Any) -> dict[str, Any]:
    """All modules, by name."""
    return {".".join(map(str, path)): module for path, module in nnx.iter_modules(model)}


def reason(one: Normalization) -> str:
    """Why a batch normalization cannot be folded; "" if it can."""
    if one.module.use_running_average or getattr(one.module, "frozen", False):
        return ""
    return "it is in training mode; call eval() of the model first"


def fits(one: Normalization, layer: Any) -> str:
    """Why the channels are others than the layer's; "" if they are the same."""
    last = (-1,) if isinstance(layer, nnx.Linear) else (-1, len(layer.kernel_size) + 1)
    return "" if one.module.axis in last else f"its channels are in axis {one.module.axis}"


def linear_in(model: Any) -> Callable[[Any], Linear | str | None]:
    """The function that tells what is linear in a layer of the model."""
    places = Counter(
        id(value)
        for _, module in nnx.iter_modules(model)
        for value in vars(module).values()
        if isinstance(value, nnx.Variable)
    )

    def linear(layer: Any) -> Linear | str | None:
        if not isinstance(layer, _LINEAR):
            return None
        if type(layer) not in _LINEAR:
            return f"is a {type(layer).__name__}, which may do more than its base class"
        if getattr(layer, "mask", None) is not None:
            return "has a mask"
        if any(places[id(one)] > 1 for one in (layer.kernel, layer.bias) if one is not None):
            return "shares a parameter with another layer"
        kernel, bias = FLAX.read(layer.kernel), layer.bias
        return Linear(
            _layout(layer).read(kernel),
            np.zeros(layer.out_features) if bias is None else FLAX.read(bias).astype(np.float64),
            zeros=_zeros(layer),
        )

    return linear


def _zeros(layer: Any) -> bool:
    if isinstance(layer, nnx.Linear):
        return False
    if isinstance(layer, nnx.ConvTranspose) or np.any(np.asarray(layer.input_dilation or 1) != 1):
        return True
    padding = layer.padding
    if isinstance(padding, str):
        one = padding.upper() == "SAME" and all(size == 1 for size in layer.kernel_size)
        return not (one or padding.upper() in ("VALID", "CIRCULAR", "REFLECT"))
    return bool(np.any(np.asarray(jax.tree.leaves(padding))))


def _layout(layer: Any) -> Layout:
    into, out = layer.in_features, layer.out_features
    if isinstance(layer, nnx.Linear):
        return Layout((1, 1, into, out), (0, 1, 2, 3))
    taps = math.prod(layer.kernel_size)
    if isinstance(layer, nnx.ConvTranspose):
        if layer.transpose_kernel:
            return Layout((taps, 1, out, into), (0, 1, 3, 2))
        return Layout((taps, 1, into, out), (0, 1, 2, 3))
    groups = layer.feature_group_count
    return Layout((taps, into // groups, groups, out // groups), (0, 2, 1, 3))


def write(layer: Any, linear: Linear) -> None:
    """Give the layer its new parameters."""
    kernel = layer.kernel
    FLAX.write(kernel, _layout(layer).write(linear.kernel, tuple(kernel.shape)))
    if layer.bias is None:
        layer.bias = nnx.Param(jax.numpy.zeros(len(linear.bias), kernel.dtype))
        layer.use_bias = True
    FLAX.write(layer.bias, linear.bias)


def remove(model: Any, removed: list[Any]) -> None:
    """Put an `Identity` in the place of each."""
    gone = {id(one) for one in removed}
    for _, module in list(nnx.iter_graph(model)):
        if isinstance(module, (nnx.List, list)):
            for position, child in enumerate(module):
                if id(child) in gone:
                    module[position] = Identity()
        elif isinstance(module, (nnx.Dict, dict)):
            for key, child in module.items():
                if id(child) in gone:
                    module[key] = Identity()
        elif isinstance(module, nnx.Module):
            for name, child in list(vars(module).items()):
                if id(child) in gone:
                    setattr(module, name, Identity())


def graph(model: Any) -> tuple[Graph, str, str]:
    """The order of the calls, how it was learned, and what to say of a module that is not in it."""
    found = list(nnx.iter_modules(model))
    holders = Counter(
        id(child)
        for _, node in nnx.iter_graph(model)
        for child in (vars(node).values() if isinstance(node, nnx.Pytree) else ())
        if isinstance(child, nnx.Module)
    )
    sequences = []
    for path, module in found:
        if isinstance(module, nnx.Sequential) and type(module).__call__ is nnx.Sequential.__call__:
            prefix = ".".join((*map(str, path), "layers"))
            sequences.append(
                [
                    (f"{prefix}.{position}", one if holders[id(one)] == 1 else None)
                    for position, one in enumerate(module.layers)
                ]
            )
    return (
        chains(sequences),
        "only neighbours in nnx.Sequential, as flax keeps no graph",
        "it is not in an nnx.Sequential, and the order is not known; pass pairs=",
    )
