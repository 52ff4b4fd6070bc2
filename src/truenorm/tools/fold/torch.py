"""Convolutions and linear layers of torch.nn, and the order in which a model calls them."""

import copy
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import fx, nn

from truenorm.tools.carry.modules import TORCH, Normalization
from truenorm.tools.fold.arithmetic import Layout, Linear
from truenorm.tools.fold.graph import Call, Graph, chains

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LINEAR = (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear)


def copied(model: nn.Module) -> nn.Module:
    """A copy with parameters of its own."""
    return copy.deepcopy(model)


def modules(model: nn.Module) -> dict[str, nn.Module]:
    """All modules, by name."""
    return dict(model.named_modules(remove_duplicate=False))


def reason(one: Normalization) -> str:
    """Why a batch normalization cannot be folded; "" if it can."""
    if one.module.training and not getattr(one.module, "frozen", False):
        return "it is in training mode; call eval() of the model first"
    return _hooked(one.module)


def _hooked(module: nn.Module) -> str:
    hooks = module._forward_hooks or module._forward_pre_hooks
    return "it has forward hooks, which would see other values" if hooks else ""


def fits(one: Normalization, layer: nn.Module) -> str:
    """Why the channels are others than the layer's; "" if they are the same."""
    axis = getattr(one.module, "axis", None)
    known = (None, 1, [1], (1,)) + ((-1,) if isinstance(layer, nn.Linear) else ())
    return "" if axis in known else f"its channels are in axis {axis}"


def linear_in(model: nn.Module) -> Callable[[Any], Linear | str | None]:
    """The function that tells what is linear in a layer of the model."""
    places = Counter(
        id(parameter)
        for module in model.modules()
        for parameter in module._parameters.values()
        if parameter is not None
    )

    def linear(layer: nn.Module) -> Linear | str | None:
        if not isinstance(layer, _LINEAR):
            return None
        if type(layer) not in _LINEAR:
            return f"is a {type(layer).__name__}, which may do more than its base class"
        if layer._forward_hooks or layer._forward_pre_hooks:
            return "has forward hooks, which would see other values"
        if "weight" not in layer._parameters or "bias" not in layer._parameters:
            return "has a weight that is computed from others; remove the parametrization first"
        if not layer.weight.is_floating_point():
            return f"has a weight of {layer.weight.dtype}"
        if any(places[id(one)] > 1 for one in layer._parameters.values() if one is not None):
            return "shares a parameter with another layer"
        weight, bias = TORCH.read(layer.weight), layer.bias
        out = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        return Linear(
            _layout(layer).read(weight),
            np.zeros(out) if bias is None else TORCH.read(bias).astype(np.float64),
            zeros=_zeros(layer),
            note="for inputs (N, C)" if isinstance(layer, nn.Linear) else "",
        )

    return linear


def _zeros(layer: nn.Module) -> bool:
    if isinstance(layer, _TRANSPOSED):
        return True
    if isinstance(layer, nn.Linear) or layer.padding_mode != "zeros":
        return False
    if layer.padding == "same":
        return any(size > 1 for size in layer.kernel_size)
    return layer.padding != "valid" and any(layer.padding)


def _layout(layer: nn.Module) -> Layout:
    if isinstance(layer, nn.Linear):
        return Layout((1, 1, layer.out_features, layer.in_features), (0, 1, 3, 2))
    into, out, groups = layer.in_channels, layer.out_channels, layer.groups
    taps = math.prod(layer.kernel_size)
    if isinstance(layer, _TRANSPOSED):
        return Layout((groups, into // groups, out // groups, taps), (3, 0, 1, 2))
    return Layout((groups, out // groups, into // groups, taps), (3, 0, 2, 1))


def write(layer: nn.Module, linear: Linear) -> None:
    """Give the layer its new parameters."""
    weight = layer.weight
    TORCH.write(weight, _layout(layer).write(linear.kernel, tuple(weight.shape)))
    if layer.bias is None:
        layer.bias = nn.Parameter(weight.new_zeros(len(linear.bias)), weight.requires_grad)
    TORCH.write(layer.bias, linear.bias)


def remove(model: nn.Module, removed: list[nn.Module]) -> None:
    """Put an nn.Identity in the place of each."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if any(child is one for one in removed):
                parent._modules[name] = nn.Identity().train(child.training)


class _Tracer(fx.Tracer):
    """Takes truenorm's modules for a whole as well."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = TORCH.owns(type(m)) and not isinstance(m, nn.Sequential)
        return own or bool(super().is_leaf_module(m, module_qualified_name))


def graph(model: nn.Module) -> tuple[Graph, str, str]:
    """The order of the calls, how it was learned, and what to say of a module that is not in it."""
    try:
        nodes = list(_Tracer().trace(model).nodes)
    except Exception as error:  # whatever the model raises when its tensors have no values
        how = f"torch.fx cannot trace it ({type(error).__name__}), only neighbours in nn.Sequential"
        return _neighbours(model), how, "it is not in an nn.Sequential, and the order is not known"
    number = {node: position for position, node in enumerate(nodes)}
    names, calls = modules(model), []
    outputs: list[int] = []
    for node in nodes:
        into = tuple(number[one] for one in node.all_input_nodes)
        if node.op == "output":
            outputs += into
        elif node.op == "call_module":
            # An argument more than the input is something that is not known here.
            more = len(node.args) + len(node.kwargs) - 1
            into += (-1,) * (more if TORCH.owns(type(names[node.target])) else 0)
            calls.append(Call(names[node.target], node.target, into, number[node]))
        elif node.op == "get_attr":  # a parameter that the model uses by itself
            owner, _, _ = node.target.rpartition(".")
            calls.append(Call(names.get(owner), node.target, (), number[node]))
        elif node.op != "placeholder":
            what = getattr(node.target, "__name__", str(node.target))
            calls.append(Call(None, what, into, number[node]))
    return Graph(calls, outputs), "graph by torch.fx", "the model does not call it"


def _neighbours(model: nn.Module) -> Graph:
    everywhere = model.named_modules(remove_duplicate=False)
    times = Counter(id(module) for _, module in everywhere)
    sequences = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
            prefix = f"{name}." if name else ""
            inside = [(f"{prefix}{key}", one) for key, one in module._modules.items()]
            # One that is elsewhere too, may be called there.
            sequences.append([(key, one if times[id(one)] == 1 else None) for key, one in inside])
    return chains(sequences)
