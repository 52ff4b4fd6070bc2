"""The config of a Keras 2 model, rewritten as Keras 3 writes it.

`Conversion.model` walks the config once. What it cannot map it collects with its path in the model,
so that one error names all of it; what became of each layer it keeps for the report.
"""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import keras

from truenorm import layers
from truenorm.core.errors import InputError
from truenorm.tools.migrate import addons
from truenorm.tools.migrate.calls import ending, named, node, single

Json = dict[str, Any]

MODELS = ("Sequential", "Functional", "Model")
BATCH = ("BatchNormalization", "SyncBatchNormalization")
RARE = ("renorm", "virtual_batch_size")  # its arguments that not every Keras 3 has
# Arguments of Keras 2 that say nothing in Keras 3: how it computed, or what the file has elsewhere.
SILENT = {
    "batch_input_shape",
    "build_input_shape",
    "fused",
    "implementation",
    "input_dtype",
    "input_length",
    "key_shape",
    "query_shape",
    "use_legacy_config",
    "value_shape",
}
# Of every layer. Whatever else a class takes is in its signature.
COMMON = {"name", "trainable", "dtype", "activity_regularizer"}
ACTIVATION_KEYS = ("activation", "recurrent_activation")
# A dimension of one of the layer's weights, at the least.
SIZE_KEYS = (
    "units",
    "filters",
    "kernel_size",
    "depth_multiplier",
    "input_dim",
    "output_dim",
    "num_heads",
    "key_dim",
    "value_dim",
)
LAYER_KEYS = ("layer", "cell", "cells", "backward_layer", "forward_layer")
KINDS = {
    "initializer": keras.initializers,
    "regularizer": keras.regularizers,
    "constraint": keras.constraints,
}


@dataclasses.dataclass
class Row:
    """A layer and what became of it."""

    path: str
    old: str
    new: str
    note: str = ""


class Conversion:
    """Rewrites one model's config.

    Args:
        custom_objects: the user's classes and functions, by the names in the file.
        safe_mode: refuse Python code in the file.
    """

    def __init__(self, custom_objects: Mapping[str, Any] | None, safe_mode: bool) -> None:
        self.custom_objects = dict(custom_objects or {})
        self.safe_mode = safe_mode
        self.rows: list[Row] = []
        self.unmapped: list[str] = []
        self.code: list[str] = []
        self.sizes: list[tuple[str, int]] = []

    def model(self, config: Json) -> Json:
        """The whole model's config as Keras 3 writes it.

        Raises:
            InputError: layers that cannot be mapped, all of them; or code, in safe mode.
        """
        converted = self.layer(without_tuples(config), "")
        sentences = []
        if self.unmapped:
            sentences.append(
                f"Keras 3 and truenorm have no counterpart to {'; '.join(self.unmapped)}. Pass "
                "custom_objects={NAME: a Keras 3 class or function} to truenorm.load_model for "
                "those that you have."
            )
        if self.code:
            sentences.append(
                f"The file has Python code in {', '.join(self.code)}, which is not run unless you "
                "trust the file and pass safe_mode=False (--unsafe)."
            )
        if sentences:
            raise InputError(" ".join(sentences))
        return converted

    def custom(self, *names: Any) -> str | None:
        """The first of these names that the user gave or registered."""
        for name in names:
            if not isinstance(name, str):
                continue
            known = (
                name in self.custom_objects or keras.saving.get_registered_object(name) is not None
            )
            if known and addons.short_name(name) not in addons.CLASSES:
                return name
        return None

    def layer(self, data: Any, path: str) -> Json:
        """One layer or model, at a path such as "encoder/conv"."""
        if not isinstance(data, dict) or not isinstance(data.get("class_name"), str):
            raise InputError(f"The layer at {path or 'the top'} has no class name in its config.")
        name, config = data["class_name"], data.get("config")
        if isinstance(config, list) and name == "Sequential":
            config = {"name": "sequential", "layers": config}
        if not isinstance(config, dict):
            raise InputError(f"The config of {name} at {path or 'the top'} is not a JSON object.")
        config = dict(config)
        if isinstance(config.get("dtype"), dict):  # a dtype policy
            config["dtype"] = (config["dtype"].get("config") or {}).get("name")
        registered, module = data.get("registered_name"), data.get("module")
        addon = addons.short_name(registered) or addons.short_name(name, module)
        shown = f"Addons>{addon}" if addon else str(registered or name) if ">" not in name else name
        row = Row(path, shown, "")
        if path:
            self.rows.append(row)
        custom = self.custom(registered, name, shown)
        if custom is None and name.split(">")[-1] in self.custom_objects:
            custom = name.split(">")[-1]
        if custom:
            row.new, row.note = custom, "yours"
            return {**named(config, custom), "module": None, "registered_name": custom}
        if addon in addons.CLASSES:
            cls = addons.CLASSES[addon]
            row.new = f"truenorm>{cls.__name__}"
            added = addons.settings(cls)
            row.note = ", ".join(f"{key}={value}" for key, value in added.items())
            config = self.arguments(cls, config, path, row) | added
            return named(config, cls.__name__, cls.__module__, f"truenorm>{cls.__name__}")
        if name in MODELS and "layers" in config:
            row.new = "Sequential" if name == "Sequential" else "Functional"
            make = self.sequential if name == "Sequential" else self.functional
            return make(config, path)
        if name in BATCH and not addon:
            return self.batch(config, path, row)
        cls = getattr(keras.layers, name, None)
        if not (inspect.isclass(cls) and issubclass(cls, keras.layers.Layer)) or addon:
            where = f"{path or 'the model itself'} ({shown}"
            function = config.get("function")
            self.unmapped.append(where + (f": {function})" if isinstance(function, str) else ")"))
            return {}
        row.new = name
        if name == "InputLayer":
            config = self.input(config, path)
        elif name == "Lambda":
            config = self.code_of(config, path)
        elif name == "LeakyReLU" and "alpha" in config:
            config["negative_slope"] = config.pop("alpha")
        return named(self.arguments(cls, config, path, row), name, "keras.layers")

    def batch(self, config: Json, path: str, row: Row) -> Json:
        """A batch normalization: Keras' own where it is one on every backend, else truenorm's."""
        axis = config.get("axis", -1)
        if config.get("virtual_batch_size") is not None:
            # Keras 2 put an axis in front, and kept the numbers that it had then.
            axis = [one - 1 for one in axis] if isinstance(axis, list) else axis
        config["axis"] = axis = single(axis)
        cls: Any = keras.layers.BatchNormalization
        if row.old.endswith(BATCH[1]):
            config["synchronized"] = True
        new = any(config.get(key) and key not in addons.arguments(cls) for key in RARE)
        if not (new or config.get("synchronized") or isinstance(axis, list)):
            row.new = cls.__name__
            return named(self.arguments(cls, config, path, row), cls.__name__, "keras.layers")
        cls = layers.BatchNormalization
        row.new = f"truenorm>{cls.__name__}"
        return named(self.arguments(cls, config, path, row), cls.__name__, cls.__module__, row.new)

    def arguments(self, cls: Any, config: Json, path: str, row: Row) -> Json:
        """A layer's arguments, without those that Keras 3 no longer has."""
        known = COMMON | addons.arguments(cls)
        converted = {}
        for key, value in config.items():
            for size in value if isinstance(value, list) else [value]:
                if key in SIZE_KEYS and isinstance(size, (int, float)):
                    self.sizes.append((f"{path}.{key}", int(min(size, 1e18))))
            if key not in known:
                # Initial values do not matter: the weights are in the file.
                silent = key in SILENT or key.endswith("_initializer")
                if not silent and value not in (None, False, 1, [], {}):
                    self.unmapped.append(
                        f"{path} ({row.old}: its argument {key}={value!r:.60} is not in Keras 3)"
                    )
            elif key in LAYER_KEYS:
                converted[key] = self.inner_layers(value, f"{path}/{key}")
            elif key in ACTIVATION_KEYS:
                converted[key] = self.activation(value, f"{path}/{key}")
            else:
                converted[key] = self.object(key, value, f"{path}/{key}")
        return converted

    def inner_layers(self, value: Any, path: str) -> Any:
        """The layer of a wrapper, the cell or cells of an RNN."""
        if isinstance(value, list):
            return [self.layer(one, f"{path}/{number}") for number, one in enumerate(value)]
        return None if value is None else self.layer(value, path)

    def object(self, key: str, value: Any, path: str) -> Any:
        """An initializer, regularizer or constraint; any other value as it is."""
        home = KINDS.get(key.rpartition("_")[2])
        if home is None or value is None:
            return value
        if isinstance(value, str):
            name, config, registered = value, None, None
        elif isinstance(value, dict) and isinstance(value.get("class_name"), str):
            name, config, registered = (
                value["class_name"],
                value.get("config"),
                value.get("registered_name"),
            )
        else:
            raise InputError(f"{path} is not the config of an object: {value!r:.80}.")
        if custom := self.custom(registered, name):
            return custom if config is None else named(config, custom, None, custom)
        short = name.split(">")[-1] if name.startswith("Custom>") else name
        try:
            return (
                value
                if config is None and home.get(short)
                else named(config, *exported(home, short))
            )
        except (AttributeError, ValueError):
            self.unmapped.append(f"{path} ({registered or name})")
            return None

    def activation(self, value: Any, path: str) -> Any:
        """The name of an activation function."""
        if isinstance(value, dict):
            name = value.get("registered_name") or value.get("class_name")
            if value.get("class_name") == "function":
                name = value.get("registered_name") or value.get("config")
            if value.get("class_name") == "__lambda__":
                self.code.append(path)
                return value
            if value.get("class_name") not in ("function", None):  # a layer as an activation
                return self.layer(value, path)
        else:
            name = value
        if name is None or self.custom(name):
            return name
        addon = addons.short_name(name)
        name = addons.ACTIVATIONS.get(addon, name) if addon else name
        try:
            keras.activations.get(name)
        except (ValueError, TypeError):
            self.unmapped.append(f"{path} ({name})")
        return name

    def input(self, config: Json, path: str) -> Json:
        """An InputLayer."""
        if config.pop("ragged", False):
            self.unmapped.append(f"{path} (InputLayer: ragged tensors)")
        shape = config.pop("batch_input_shape", None)
        if shape is not None:
            config["batch_shape"] = shape
        return config

    def code_of(self, config: Json, path: str) -> Json:
        """A Lambda layer: code in the file, or the name of a function."""
        config = dict(config)
        function, kind = config.get("function"), config.pop("function_type", "lambda")
        for key in ("module", "output_shape_type", "output_shape_module"):
            config.pop(key, None)
        if kind == "function" and isinstance(function, str):
            if not self.custom(function):
                self.unmapped.append(f"{path} (Lambda: the function {function})")
            return {**config, "function": function}
        if self.safe_mode:
            self.code.append(f"the Lambda layer {path}")
        if isinstance(function, list) and len(function) == 3:
            keys = ("code", "defaults", "closure")
            config["function"] = {
                "class_name": "__lambda__",
                "config": dict(zip(keys, function, strict=True)),
            }
        return config

    def sequential(self, config: Json, path: str) -> Json:
        """A Sequential model, which Keras 3 wants to begin with its input."""
        layers = layer_list(config, path)
        first = layers[0] if layers else {}
        if first and first.get("class_name") != "InputLayer":
            inner = first.get("config")
            shape = inner.get("batch_input_shape") if isinstance(inner, dict) else None
            shape = shape or config.get("build_input_shape")
            if shape:
                layers = [
                    {"class_name": "InputLayer", "config": {"batch_input_shape": shape}},
                    *layers,
                ]
        converted = [self.layer(one, below(path, one, i)) for i, one in enumerate(layers)]
        return named({**basics(config), "layers": converted}, "Sequential", "keras")

    def functional(self, config: Json, path: str) -> Json:
        """A functional model: its layers, and which outputs of which go into which."""
        layers, converted = layer_list(config, path), []
        # Keras 2 counted a model's own definition as its first call.
        begun = {one.get("name"): one.get("class_name") in MODELS for one in layers}
        for number, one in enumerate(layers):
            made = self.layer(one, below(path, one, number))
            made["name"] = one.get("name")
            nodes = one.get("inbound_nodes")
            made["inbound_nodes"] = [node(calls, begun) for calls in nodes or []]
            converted.append(made)
        kinds = {one.get("name"): one.get("class_name") for one in layers}
        ends = {
            key: single(ending(config.get(key), kinds)) for key in ("input_layers", "output_layers")
        }
        return named({**basics(config), "layers": converted, **ends}, "Model", "keras")


def exported(home: Any, name: str) -> tuple[str, str]:
    """A class of keras.initializers and so on, by its name, and the module.

    Raises:
        AttributeError: there is none.
    """
    if not inspect.isclass(getattr(home, name)):
        raise AttributeError(name)
    return name, f"keras.{home.__name__.split('.')[-1]}"


def basics(config: Json) -> Json:
    """A model's own arguments."""
    return {key: config[key] for key in ("name", "trainable") if key in config}


def below(path: str, layer: Any, number: int) -> str:
    """The path of a model's layer."""
    config = layer.get("config") if isinstance(layer, dict) else None
    name = config.get("name") if isinstance(config, dict) else None
    return f"{path}/{name or number}".lstrip("/")


def layer_list(config: Json, path: str) -> list[Any]:
    """The layers of a model's config."""
    layers = config["layers"]
    if not isinstance(layers, list) or not all(isinstance(one, dict) for one in layers):
        raise InputError(f"The layers of {path or 'the model'} are not a list of JSON objects.")
    return layers


def without_tuples(value: Any) -> Any:
    """The config with lists for the tuples that SavedModels mark."""
    if isinstance(value, list):
        return [without_tuples(one) for one in value]
    if not isinstance(value, dict):
        return value
    if value.get("class_name") == "__tuple__" and isinstance(value.get("items"), list):
        return [without_tuples(one) for one in value["items"]]
    return {key: without_tuples(one) for key, one in value.items()}
