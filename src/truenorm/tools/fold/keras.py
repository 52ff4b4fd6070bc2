"""Convolutions and dense layers of Keras, and the graph of a functional model."""

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from truenorm.core.errors import InputError, summary
from truenorm.tools.carry.modules import KERAS, Normalization
from truenorm.tools.fold.arithmetic import Layout, Linear
from truenorm.tools.fold.graph import Call, Graph, Plan, chains

_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_TRANSPOSED = tuple(getattr(keras.layers, f"Conv{rank}DTranspose") for rank in (1, 2, 3))
_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
_SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
_LINEAR = (*_CONVOLUTIONS, *_TRANSPOSED, *_DEPTHWISE, *_SEPARABLE, keras.layers.Dense)
_HOW = "graph of the model"


def folded(
    model: Any, found: list[Normalization], in_graph: Callable[..., None]
) -> tuple[Any, Plan, str]:
    """The folded copy, what was done, and how the order of the calls was learned."""
    if not _has_graph(model):
        raise InputError(
            f"model is a {type(model).__name__}, which is subclassed: Keras does not know its "
            "graph, and nothing in it can be folded; expected a functional or Sequential model."
        )
    done: set[int] = set()
    made, plan = _folded(model, found, in_graph, "", done)
    plan.left += [
        (one.name, "it is in a layer whose graph is not known")
        for one in found
        if id(one.module) not in done
    ]
    return made, plan, _HOW


def _has_graph(model: Any) -> bool:
    if isinstance(model, keras.Sequential):
        return type(model).call is keras.Sequential.call
    functional: list[Any] = [cls for cls in type(model).__mro__ if cls.__name__ == "Functional"]
    return bool(functional) and type(model).call is functional[0].call


def _folded(
    model: Any,
    found: list[Normalization],
    in_graph: Callable[..., None],
    path: str,
    done: set[int],
) -> tuple[Any, Plan]:
    plan = Plan(linear, fits)
    inside = {id(layer) for layer in model.layers}
    here = [one for one in found if id(one.module) in inside]
    done |= {id(one.module) for one in here}
    graph = _graph(model, path)
    in_graph(plan, graph, here, lambda one: "", "the model does not call it")
    removed = {id(one.module) for one in plan.removed}
    copies: dict[int, tuple[Any, Any]] = {}

    def copied(layer: Any) -> Any:
        if isinstance(layer, keras.Model) and _has_graph(layer):
            made, inner = _folded(layer, found, in_graph, f"{path}{layer.name}.", done)
            plan.folded += inner.folded
            plan.left += inner.left
            return made
        config = layer.get_config()
        if id(layer) in plan.layers:
            config["use_bias"] = True
        made = type(layer).from_config(config)
        copies[id(layer)] = layer, made
        return made

    def called(layer: Any, *args: Any, **options: Any) -> Any:
        # It gets the copy of a layer.
        return args[0] if id(layer) in identities else layer(*args, **options)

    identities: set[int] = set()

    def known(layer: Any) -> Any:
        made = copied(layer)
        if id(layer) in removed:
            identities.add(id(made))
        return made

    try:
        if isinstance(model, keras.Sequential):
            first = model.inputs[0]
            start = keras.Input(batch_shape=first.shape, dtype=first.dtype)
            layers = [copied(layer) for layer in model.layers if id(layer) not in removed]
            new = keras.Sequential([start, *layers], name=model.name)
        else:
            new = keras.models.clone_model(model, clone_function=known, call_function=called)
    except Exception as error:
        raise InputError(
            f"{model.name} cannot be cloned ({summary(error)}); each of its layers must come back "
            "from its get_config()."
        ) from error
    for layer, made in copies.values():
        if id(layer) in plan.layers:
            _write(made, plan.layers[id(layer)][1])
        elif id(layer) not in removed and getattr(layer, "variables", None):
            for old, variable in zip(layer.variables, made.variables, strict=True):
                variable.assign(old)
    return new, plan


def _graph(model: Any, path: str) -> Graph:
    if isinstance(model, keras.Sequential):
        return chains([[(f"{path}{layer.name}", layer) for layer in model.layers]])
    number: dict[int, int] = {}
    calls = []
    for nodes in model._nodes_by_depth.values():
        for node in nodes:
            if node.is_input:
                continue
            out = len(number)
            for tensor in node.output_tensors:
                out = number.setdefault(id(tensor), out)
    total = len(number)
    for nodes in model._nodes_by_depth.values():
        for node in nodes:
            if node.is_input:
                continue
            into = [
                number.get(id(tensor), total + position)
                for position, tensor in enumerate(node.input_tensors)
            ]
            if node.arguments.kwargs.get("training"):  # batch statistics, in inference too
                into.append(-1)
            out = number[id(node.output_tensors[0])]
            layer = node.operation
            calls.append(Call(layer, f"{path}{layer.name}", tuple(into), out))
    return Graph(calls, [number.get(id(tensor), -2) for tensor in model.outputs])


def linear(layer: Any) -> Linear | str | None:
    """What is linear in a layer, or None of another, or why it cannot be used."""
    if not isinstance(layer, _LINEAR):
        return None
    if type(layer) not in _LINEAR:
        return f"is a {type(layer).__name__}, which may do more than its base class"
    if getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None):
        return "has a kernel that is quantized, or computed with LoRA"
    separable = isinstance(layer, _SEPARABLE)
    main = layer.pointwise_kernel if separable else layer.kernel
    kernel, bias = _layout(layer).read(KERAS.read(main)), layer.bias
    channels = kernel.shape[1] * kernel.shape[3]
    return Linear(
        kernel,
        np.zeros(channels) if bias is None else KERAS.read(bias).astype(np.float64),
        activation=layer.activation is not keras.activations.linear,
        zeros=_zeros(layer),
        inner=_depthwise(layer).read(KERAS.read(layer.depthwise_kernel)) if separable else None,
    )


def fits(one: Normalization, layer: Any) -> str:
    """Why the channels are others than the layer's; "" if they are the same."""
    axis = one.module.axis
    if isinstance(axis, (list, tuple)):
        if len(axis) > 1:
            return f"its channels are in axes {axis}"
        (axis,) = axis
    if isinstance(layer, keras.layers.Dense):
        rank = getattr(getattr(one.module, "input_spec", None), "ndim", None)
        same = axis == -1 or (rank is not None and axis == rank - 1)
    else:
        rank = len(layer.kernel_size) + 2
        same = axis % rank == (rank - 1 if layer.data_format == "channels_last" else 1)
    return "" if same else f"its channels are in axis {axis}, those of {layer.name} are not"


def _zeros(layer: Any) -> bool:
    if isinstance(layer, keras.layers.Dense):
        return False
    if isinstance(layer, _TRANSPOSED):
        return True
    return bool(layer.padding != "valid" and any(size > 1 for size in layer.kernel_size))


def _layout(layer: Any) -> Layout:
    if isinstance(layer, keras.layers.Dense):
        return Layout((1, 1, *layer.kernel.shape), (0, 1, 2, 3))
    if isinstance(layer, _SEPARABLE):
        into, out = layer.pointwise_kernel.shape[-2:]
        return Layout((1, 1, into, out), (0, 1, 2, 3))
    taps, (one, other) = math.prod(layer.kernel_size), layer.kernel.shape[-2:]
    if isinstance(layer, _DEPTHWISE):
        return Layout((taps, one, 1, other), (0, 1, 2, 3))
    if isinstance(layer, _TRANSPOSED):
        return Layout((taps, 1, one, other), (0, 1, 3, 2))
    return Layout((taps, one, layer.groups, other // layer.groups), (0, 2, 1, 3))


def _depthwise(layer: Any) -> Layout:
    into, multiplier = layer.depthwise_kernel.shape[-2:]
    return Layout((math.prod(layer.kernel_size), into, 1, multiplier), (0, 1, 2, 3))


def _write(layer: Any, new: Linear) -> None:
    kernel = layer.kernel if new.inner is None else layer.pointwise_kernel
    KERAS.write(kernel, _layout(layer).write(new.kernel, tuple(kernel.shape)))
    if new.inner is not None:
        kernel = layer.depthwise_kernel
        KERAS.write(kernel, _depthwise(layer).write(new.inner, tuple(kernel.shape)))
    KERAS.write(layer.bias, new.bias)
