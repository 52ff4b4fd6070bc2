"""Arrays of a file into the variables of a Keras 3 model.

Keras 2 wrote weights in three ways: the legacy .h5 lists those of each top-level layer in order;
.keras and .weights.h5 have a tree of layers with numbered variables; checkpoints have a graph of
objects whose variables have names. Each way is a function that pairs arrays with variables. All
pairs are checked before the first variable is assigned: a file that does not fit changes nothing.
"""

import re
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from truenorm.core.errors import InputError
from truenorm.layers import WeightNormalization
from truenorm.layers.wrapper import KernelWrapper
from truenorm.tools.migrate.checkpoint import Checkpoint
from truenorm.tools.migrate.files import Saved
from truenorm.tools.migrate.hdf5 import Tree

Array = np.ndarray[Any, Any]
Pair = tuple[str, Any, Array]  # the layer's path, its variable, the value
# Weights that TensorFlow Addons' wrappers do not have, and the value that has no effect.
ADDED = {"initial_g": 0.0, "initial_bias": 0.0, "sigma": 1.0}
BATCH = ("gamma", "beta", "moving_mean", "moving_variance")
DROPPED = "data_dep_init/"  # in the name of a weight that is used once and saved for ever
TREE_ROOTS = ("layers", "_layer_checkpoint_dependencies")  # the second in Keras 2.12


def assign(model: Any, saved: Saved) -> None:
    """Give the model the file's weights.

    Raises:
        InputError: some do not fit; all are named, and none is assigned.
    """
    check_built(model)
    for layer in wrappers(model):
        layer.finalize_state()  # it may list its weights as Addons did, for Keras to read
    problems: list[str] = []
    if isinstance(saved.weights, Checkpoint):
        pairs = from_checkpoint(model, saved.weights, problems)
    elif saved.kind in ("h5", "weights.h5"):
        tree = saved.weights.below("model_weights") if saved.kind == "h5" else saved.weights
        pairs = from_list(model, tree, problems)
    else:
        pairs = from_tree(model, saved.weights, problems)
    pairs = [(path, variable, without_ones(variable, array)) for path, variable, array in pairs]
    for path, variable, array in pairs:
        if tuple(variable.shape) != array.shape:
            problems.append(
                f"{path}: {variable.name} has shape {tuple(variable.shape)}, in the file "
                f"{array.shape}"
            )
    found = {id(variable) for _, variable, _ in pairs}
    added = dict(added_variables(model))
    missing = [one.path for one in model.weights if id(one) not in found and one.path not in added]
    if missing and not problems:
        problems.append(f"the file has nothing for {', '.join(missing)}")
    if problems:
        raise InputError(
            f"The weights in {saved.path} do not fit the model {model.name!r}: "
            f"{'; '.join(problems)}."
        )
    for _, variable, array in pairs:
        variable.assign(array)
    for variable, value in added.values():
        variable.assign(np.full(variable.shape, value))


def without_ones(variable: Any, array: Array) -> Array:
    """The weight (1, H, 1, C) of a batch normalization in Keras 2 as (H, C); others as they are."""
    shape = tuple(variable.shape)
    if variable.name in BATCH and shape == tuple(size for size in array.shape if size != 1):
        return array.reshape(shape)
    return array


def check_built(model: Any) -> None:
    """Refuse a model that has no weights yet."""
    if not model.built:
        raise InputError(
            f"The model {model.name!r} has no weights yet: its input shape is not known. Call it "
            "on data, or build it, and then call truenorm.load_weights(model, path)."
        )


def sublayers(layer: Any) -> Iterator[tuple[str, int | None, Any]]:
    """A layer's own layers: the attribute that has it, its place if that is a list, and it."""
    if isinstance(layer, keras.Model):
        yield from (("layers", number, one) for number, one in enumerate(layer.layers))
        return
    seen = set()
    for name in dir(layer):  # not vars: a PyTorch module keeps its layers elsewhere
        value = None if hasattr(type(layer), name) else getattr(layer, name)
        if name.startswith("_") and not isinstance(value, keras.Layer):
            continue
        for number, one in (
            enumerate(value) if isinstance(value, (list, tuple)) else ((None, value),)
        ):
            if isinstance(one, keras.Layer) and id(one) not in seen:
                seen.add(id(one))
                yield name, number, one


def wrappers(layer: Any) -> Iterator[Any]:
    """Truenorm's wrappers at any depth, whose weights are not quite those of Addons'."""
    if isinstance(layer, KernelWrapper):
        yield layer
    for _, _, one in sublayers(layer):
        yield from wrappers(one)


def added_variables(layer: Any) -> Iterator[tuple[str, tuple[Any, float]]]:
    """The variables that Addons' files do not have, by their path, with their values."""
    for wrapper in wrappers(layer):
        for name, value in ADDED.items():
            variable = getattr(wrapper, name, None)
            if variable is not None:
                yield variable.path, (variable, value)


def old_variables(layer: Any) -> list[Any]:
    """A layer's variables in the order in which Keras 2 listed them, trained ones first."""
    added = dict(added_variables(layer))
    listed = layer.trainable_weights + layer.non_trainable_weights
    return [one for one in listed if one.path not in added]


def own_variables(layer: Any) -> list[Any]:
    """Those that belong to no layer inside, in the order of .keras files, without `ADDED`."""
    inner = {id(one) for _, _, child in sublayers(layer) for one in child.weights}
    added = dict(added_variables(layer))
    own = [one for one in layer.weights if id(one) not in inner and one.path not in added]
    return [one for one in own if one.trainable] + [one for one in own if not one.trainable]


def last_name(name: str) -> str:
    """The name kernel of model/dense/kernel:0."""
    return name.rpartition("/")[2].partition(":")[0]


def from_list(model: Any, tree: Tree, problems: list[str]) -> list[Pair]:
    """The legacy layout: a list of weights for each top-level layer."""
    lists: dict[str, list[tuple[str, Array]]] = {}
    for name in tree.texts("", "layer_names"):
        weights = []
        for weight in tree.texts(name, "weight_names"):
            if DROPPED in weight:
                continue
            array = tree.arrays.get(f"{name}/{weight}")
            if array is None:
                problems.append(f"{name}: {weight} is named but not in the file")
            else:
                weights.append((last_name(weight), array))
        if weights:
            lists[name] = weights
    wanted = [(one, variables) for one in model.layers if (variables := old_variables(one))]
    if {one.name for one, _ in wanted} == set(lists):
        chosen = [lists[one.name] for one, _ in wanted]
    elif len(wanted) == len(lists):
        chosen = list(lists.values())
    else:
        problems.append(
            f"the model has {len(wanted)} layers with weights "
            f"({', '.join(one.name for one, _ in wanted)}), the file {len(lists)} "
            f"({', '.join(lists)})"
        )
        return []
    pairs: list[Pair] = []
    for (layer, variables), arrays in zip(wanted, chosen, strict=True):
        if len(arrays) != len(variables):
            problems.append(
                f"{layer.name}: it has {len(variables)} weights, in the file {len(arrays)}"
            )
            continue
        theirs, ours = [name for name, _ in arrays], [one.name for one in variables]
        if theirs != ours and sorted(theirs) == sorted(ours) and len(set(ours)) == len(ours):
            by_name = dict(arrays)
            arrays = [(name, by_name[name]) for name in ours]
        pairs += [
            (layer.name, variable, array)
            for variable, (_, array) in zip(variables, arrays, strict=True)
        ]
    return pairs


def snake_case(name: str) -> str:
    """The name batch_normalization of BatchNormalization, as Keras makes it."""
    name = re.sub("(.)([A-Z][a-z0-9]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def from_tree(model: Any, tree: Tree, problems: list[str]) -> list[Pair]:
    """The layout of .keras and .weights.h5: layers/dense/vars/0."""
    pairs: list[Pair] = []
    seen: set[int] = set()

    def stored(path: str) -> list[Array]:
        arrays: list[Array] = []
        while (key := f"{path}/vars/{len(arrays)}".lstrip("/")) in tree.arrays:
            arrays.append(tree.arrays[key])
        return arrays

    def pair(layer: Any, variables: list[Any], arrays: list[Array], shown: str) -> None:
        if len(arrays) != len(variables):
            problems.append(f"{shown}: it has {len(variables)} weights, in the file {len(arrays)}")
            return
        pairs.extend(
            (shown, variable, array) for variable, array in zip(variables, arrays, strict=True)
        )

    def visit(layer: Any, path: str, shown: str, inner_kernel: Any = None) -> None:
        seen.add(id(layer))
        arrays, variables = stored(path), own_variables(layer)
        if isinstance(layer, KernelWrapper):
            # Addons' wrappers list the kernel as their own; WeightNormalization then takes it
            # from the layer that they wrap.
            inner_kernel = layer.kernel_variable()
            if isinstance(layer, WeightNormalization):
                variables = [layer.g, inner_kernel, layer.initialized]
            else:
                arrays = arrays[-1:]
                inner_kernel = None
        elif inner_kernel is not None and any(one is inner_kernel for one in variables):
            place = next(i for i, one in enumerate(variables) if one is inner_kernel)
            if len(arrays) == len(variables):
                del arrays[place]
            variables = variables[:place] + variables[place + 1 :]
        pair(layer, variables, arrays, shown or layer.name)
        used: dict[tuple[str, str], int] = {}
        for attribute, number, one in sublayers(layer):
            if id(one) in seen:
                continue
            here = f"{path}/{attribute}".lstrip("/")
            if number is not None:
                root = "/".join([*here.split("/")[:-1], TREE_ROOTS[1]])
                if attribute == "layers" and here not in tree.groups and root in tree.groups:
                    here = root
                name = snake_case(type(one).__name__)
                if f"{here}/sync_{name}" in tree.groups and getattr(one, "synchronized", False):
                    name = f"sync_{name}"  # a class of its own in Keras 2
                count = used.get((attribute, name), 0)
                used[attribute, name] = count + 1
                here += f"/{name}_{count}" if count else f"/{name}"
            if one.weights:
                visit(one, here, f"{shown}/{one.name}".lstrip("/"), inner_kernel)

    visit(model, "", "")
    return pairs


def from_checkpoint(model: Any, graph: Checkpoint, problems: list[str]) -> list[Pair]:
    """The layout of checkpoints: layer_with_weights-0/kernel."""
    pairs: list[Pair] = []
    seen: set[int] = set()

    def visit(layer: Any, node: int, shown: str, inner_kernel: Any = None) -> None:
        seen.add(id(layer))
        variables = own_variables(layer)
        if isinstance(layer, KernelWrapper):
            inner_kernel = layer.kernel_variable()
            value = graph.value(
                graph.child(node, "v" if isinstance(layer, WeightNormalization) else "w")
            )
            if value is not None:
                pairs.append((shown, inner_kernel, value))
            else:
                inner_kernel = None
        wanted = [one for one in variables if one is not inner_kernel]
        values = {name: graph.value(graph.child(node, name)) for name in graph.nodes[node].children}
        used = {one.name for one in wanted}
        for variable in wanted:
            value = values.get(variable.name)
            if value is None:  # a variable that Keras 3 calls otherwise
                shape = tuple(variable.shape)
                others = {
                    graph.child(node, name): one
                    for name, one in values.items()
                    if name not in used and one is not None and one.shape == shape
                }
                value = next(iter(others.values())) if len(others) == 1 else None
            if value is None:
                problems.append(f"{shown or layer.name}: {variable.name} is not in the checkpoint")
            else:
                pairs.append((shown or layer.name, variable, value))
        with_weights = 0
        for attribute, number, one in sublayers(layer):
            if not one.weights:
                continue
            if isinstance(layer, keras.Model):
                child = graph.child(node, f"layer_with_weights-{with_weights}")
                with_weights += 1
            else:
                child = graph.child(node, attribute)
                if child is not None and number is not None:
                    child = graph.child(child, str(number))
            here = f"{shown}/{one.name}".lstrip("/")
            if id(one) in seen:
                continue
            if child is None:
                problems.append(f"{here}: it is not in the checkpoint")
            else:
                visit(one, child, here, inner_kernel)

    # tf.train.Checkpoint(model=model) has the model as a child.
    starts = [0, *graph.nodes[0].children.values()]
    has_layers = (
        one for one in starts if one < len(graph.nodes) and graph.child(one, "layer_with_weights-0")
    )
    visit(model, next(has_layers, 0), "")
    return pairs
