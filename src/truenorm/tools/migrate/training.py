"""The compile settings and the optimizer's state, as far as Keras 3 has them.

Nothing here ends in an exception: what Keras 3 does not have is left out, with a sentence.
"""

import inspect
import re
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from truenorm.tools.migrate import addons
from truenorm.tools.migrate.checkpoint import Checkpoint
from truenorm.tools.migrate.files import Saved

Array = np.ndarray[Any, Any]
Json = dict[str, Any]

ANY_ACCURACY = ("accuracy", "acc", "crossentropy", "ce")  # compile() chooses by the output
# Written by Keras 2 and of no meaning in Keras 3.
SILENT = {"jit_compile", "is_legacy_optimizer", "fn", "decay"}
LEGACY_SLOTS = ("m", "v", "vhat", "rms", "momentum", "mg", "accumulator", "u", "linear")
FAILED = (
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    IndexError,
    RecursionError,
    OverflowError,
)


class Compiling:
    """Compiles one model as its file says.

    Attributes:
        dropped: a sentence on each thing that Keras 3 does not have.
    """

    def __init__(self, custom_objects: Mapping[str, Any] | None = None) -> None:
        self.custom_objects = dict(custom_objects or {})
        self.dropped: list[str] = []

    def compile(self, model: Any, saved: Saved) -> None:
        """Compile the model, and give the optimizer its state."""
        if saved.training is None:
            return
        try:
            self.compile_as(model, saved, saved.training)
        except FAILED as error:
            self.dropped.append(
                f"The compile settings were dropped: they are not as Keras 2 writes them ({error})."
            )

    def compile_as(self, model: Any, saved: Saved, settings: Json) -> None:
        """Compile the model as these settings say."""
        optimizer = self.optimizer(settings.get("optimizer_config", settings.get("optimizer")))
        if optimizer is None:
            self.dropped[-1] += (
                " Keras' default, RMSprop, stands in for it until you compile the model with "
                "another."
            )
        names = getattr(model, "output_names", ())  # a Sequential model has none
        arguments = {
            "loss": self.nested(settings.get("loss"), self.loss),
            **{
                key: of_outputs(self.nested(settings.get(key), self.metric, names))
                for key in ("metrics", "weighted_metrics")
            },
            "loss_weights": settings.get("loss_weights"),
            "run_eagerly": bool(settings.get("run_eagerly")),
            "steps_per_execution": settings.get("steps_per_execution") or 1,
            "jit_compile": settings.get("jit_compile") or "auto",
        }
        try:
            model.compile(optimizer or "rmsprop", **arguments)
        except FAILED as error:
            self.dropped.append(f"The compile settings were dropped, since Keras 3 says: {error}")
            return
        try:
            model.optimizer.build(model.trainable_variables)  # else a file of it does not open
            problem = "" if optimizer is None else self.state(model, saved)
        except FAILED as error:
            problem = f"it does not fit: {error}"
        if problem:
            self.dropped.append(f"The optimizer starts without its state: {problem}.")

    def nested(self, value: Any, convert: Any, names: Any = ()) -> Any:
        """Convert what is in lists and dictionaries of outputs."""
        if value is None:
            return None
        if isinstance(value, dict) and "class_name" not in value:
            return {key: self.nested(one, convert, names) for key, one in value.items()}
        if isinstance(value, list):
            return [self.nested(one, convert, names) for one in value]
        return convert(value, names)

    def lookup(self, home: Any, data: Any) -> tuple[str, Any, Json]:
        """The name in a config, the class for it or None, and the arguments that it takes."""
        name, config = str(data.get("class_name")), dict(data.get("config") or {})
        registered = data.get("registered_name")
        for key in (registered, name):
            found = isinstance(key, str) and (
                self.custom_objects.get(key) or keras.saving.get_registered_object(key)
            )
            if found:
                return key, found, config
        addon = addons.short_name(registered) or addons.short_name(name, data.get("module"))
        if addon:
            return f"{addons.PACKAGE}>{addon}", None, config
        config = {key: value for key, value in config.items() if key != "name" or value is not None}
        name = name.removeprefix("Custom>")
        cls = getattr(home, name, None)
        if not inspect.isclass(cls):
            return name, None, config
        known = addons.arguments(cls)
        for key in set(config) - known:
            value = config.pop(key)
            if key not in SILENT and value not in (None, False):
                self.dropped.append(
                    f"{name}'s argument {key}={value!r:.40} was dropped: Keras 3 has none."
                )
        return name, cls, config

    def optimizer(self, data: Any) -> Any:
        """An optimizer of Keras 3, or None."""
        if isinstance(data, str):
            data = {"class_name": data, "config": {}}
            name = {one.lower(): one for one in dir(keras.optimizers)}.get(
                data["class_name"].lower()
            )
            data["class_name"] = name or data["class_name"]
        if not isinstance(data, dict):
            self.dropped.append("The optimizer was dropped: the file does not name one.")
            return None
        name = data.get("class_name")
        if name in ("LossScaleOptimizer", "LossScaleOptimizerV3"):
            return self.loss_scale(data.get("config") or {})
        decay = (data.get("config") or {}).get("decay")
        name, cls, config = self.lookup(keras.optimizers, data)
        if cls is None:
            self.dropped.append(f"The optimizer {name} was dropped: Keras 3 does not have it.")
            return None
        try:
            rate = config.get("learning_rate")
            if isinstance(rate, dict):
                config["learning_rate"] = self.schedule(rate)
            elif decay and isinstance(rate, (int, float)):  # of the optimizers before Keras 2.11
                schedules = keras.optimizers.schedules
                config["learning_rate"] = schedules.InverseTimeDecay(rate, 1, decay)
            return cls.from_config(config)
        except FAILED as error:
            self.dropped.append(f"The optimizer {name} was dropped, since Keras 3 says: {error}")
            return None

    def loss_scale(self, config: Json) -> Any:
        """The optimizer that scales the loss for half precision."""
        inner = self.optimizer(config.get("inner_optimizer"))
        if inner is None:
            return None
        return keras.optimizers.LossScaleOptimizer(
            inner,
            initial_scale=config.get("initial_scale") or 2.0**15,
            dynamic_growth_steps=config.get("dynamic_growth_steps") or 2000,
        )

    def schedule(self, data: Json) -> Any:
        """A learning rate schedule.

        Raises:
            ValueError: Keras 3 does not have it.
        """
        name, cls, config = self.lookup(keras.optimizers.schedules, data)
        if cls is None:
            raise ValueError(f"there is no learning rate schedule {name}.")
        return cls.from_config(config)

    def loss(self, data: Any, names: Any) -> Any:
        """A loss, or None."""
        cls: Any
        if isinstance(data, str):
            name, cls = (
                data,
                self.custom_objects.get(data) or keras.saving.get_registered_object(data),
            )
            try:
                return cls or (keras.losses.get(data) and data)
            except FAILED:
                cls = None
        elif isinstance(data, dict):
            name, cls, config = self.lookup(keras.losses, data)
            if config.get("reduction") == "auto":
                config["reduction"] = "sum_over_batch_size"
            try:
                if name == "LossFunctionWrapper" and isinstance(data["config"].get("fn"), str):
                    return self.loss(data["config"]["fn"], names)
                if cls is not None:
                    return cls.from_config(config) if hasattr(cls, "from_config") else cls
            except FAILED as error:
                self.dropped.append(f"The loss {name} was dropped, since Keras 3 says: {error}")
                return None
        else:
            name = repr(data)
        self.dropped.append(
            f"The loss {name} was dropped: Keras 3 does not have it. Compile the model with a loss "
            "before you train it."
        )
        return None

    def metric(self, data: Any, names: Any) -> Any:
        """A metric, or None."""
        cls: Any
        if isinstance(data, str):
            if data in ANY_ACCURACY:
                return data
            name, cls = (
                data,
                self.custom_objects.get(data) or keras.saving.get_registered_object(data),
            )
            try:
                return cls or (keras.metrics.get(data) and data)
            except FAILED:
                cls = None
        elif isinstance(data, dict):
            name, cls, config = self.lookup(keras.metrics, data)
            shown = str(config.get("name"))
            for output in names:
                if len(names) > 1 and shown.startswith(f"{output}_"):  # Keras 3 puts it there again
                    config["name"] = shown = shown.removeprefix(f"{output}_")
            function = (data.get("config") or {}).get("fn")
            try:
                if name == "MeanMetricWrapper" and isinstance(function, str):
                    camel = "".join(part.capitalize() for part in function.split("_"))
                    cls = getattr(keras.metrics, camel, None)
                    name = function
                    config = {key: config[key] for key in ("name", "dtype") if key in config}
                if cls is not None:
                    return cls.from_config(config) if hasattr(cls, "from_config") else cls
            except FAILED:
                cls = None
        else:
            name = repr(data)
        self.dropped.append(f"The metric {name} was dropped: Keras 3 does not have it.")
        return None

    def state(self, model: Any, saved: Saved) -> str:
        """Give the optimizer its state; return why it cannot be, or ""."""
        optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
        named, rate = stored_state(saved)
        if not named:
            return "" if saved.training is None else "the file has none"
        (_, iterations), *others = named
        rest = by_variable(others, len(model.trainable_variables), optimizer)
        skip = {id(optimizer.iterations)}
        if not isinstance(
            getattr(optimizer, "_learning_rate", None),
            keras.optimizers.schedules.LearningRateSchedule,
        ):
            skip.add(id(optimizer.learning_rate))
        wanted = [one for one in optimizer.variables if id(one) not in skip]
        if isinstance(optimizer, keras.optimizers.SGD) and not optimizer.momentum:
            rest = []  # Keras 2 kept a momentum of zeros
        if isinstance(optimizer, keras.optimizers.Nadam):
            return "Keras 2 did not save all of Nadam's"
        shapes = [tuple(one.shape) for one in wanted], [one.shape for one in rest]
        if shapes[0] != shapes[1]:
            return f"Keras 3 keeps {len(wanted)} arrays, the file has {len(rest)} that do not match"
        optimizer.iterations.assign(iterations.astype("int64"))
        if rate is not None and id(optimizer.learning_rate) in skip:
            optimizer.learning_rate.assign(rate)
        for variable, array in zip(wanted, rest, strict=True):
            variable.assign(array)
        return ""


def of_outputs(metrics: Any) -> Any:
    """Metrics without those that were dropped; of one output, not in a list of one list.

    Keras 2 wrote that, which Keras 3.10 refuses.
    """
    kept = without_none(metrics)
    single = isinstance(kept, list) and len(kept) == 1 and isinstance(kept[0], list)
    return kept[0] if single else kept


def without_none(value: Any) -> Any:
    """Metrics without those that were dropped, in lists of outputs too."""
    if isinstance(value, list):
        nested = any(isinstance(one, list) for one in value)
        kept = [without_none(one) for one in value]
        return [one or [] for one in kept] if nested else [one for one in kept if one is not None]
    return (
        {key: without_none(one) for key, one in value.items()} if isinstance(value, dict) else value
    )


def stored_state(saved: Saved) -> tuple[list[tuple[str, Array]], Array | None]:
    """The optimizer's arrays with their names, the number of steps first; and the learning rate."""
    weights = saved.weights
    if isinstance(weights, Checkpoint):
        node = weights.child(0, "optimizer")
        listed = None if node is None else weights.child(node, "_variables")
        if node is None or listed is None:
            return [], None
        steps = weights.value(weights.child(node, "_iterations"))
        numbers = sorted(int(one) for one in weights.nodes[listed].children if one.isdigit())
        values = [(str(one), weights.value(weights.child(listed, str(one)))) for one in numbers]
        state = [("iteration", steps), *(one for one in values if one[0] != "0")]
        if any(value is None for _, value in state):
            return [], None
        return state, weights.value(weights.child(node, "_learning_rate"))  # type: ignore[return-value]
    if saved.kind == "h5":
        names = weights.texts("optimizer_weights", "weight_names")
        arrays = [(name, weights.arrays.get(f"optimizer_weights/{name}")) for name in names]
        return [one for one in arrays if one[1] is not None], None  # type: ignore[misc]
    found: list[tuple[str, Array]] = []
    while (key := f"optimizer/vars/{len(found)}") in weights.arrays:
        found.append((key, weights.arrays[key]))
    return found, None


def by_variable(named: list[tuple[str, Array]], count: int, optimizer: Any) -> list[Array]:
    """The arrays in the order of Keras 3; optimizers before Keras 2.11 wrote slot by slot."""
    arrays = [array for _, array in named]
    slots = [re.fullmatch(r".*/(\w+):0", name) for name, _ in named]
    legacy = named and all(one and one[1] in LEGACY_SLOTS for one in slots)
    if legacy and count and len(arrays) % count == 0:
        kinds = len(arrays) // count
        interleaved = not isinstance(optimizer, keras.optimizers.RMSprop)
        if interleaved and kinds == 2:
            return [arrays[kind * count + i] for i in range(count) for kind in range(kinds)]
    return arrays
