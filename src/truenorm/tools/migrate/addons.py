"""TensorFlow Addons' names, and the objects of truenorm and Keras that stand for them."""

import inspect
from typing import Any

import keras

from truenorm import layers, rnn

PACKAGE = "Addons"  # its classes were registered as Addons>NAME
MODULE = "tensorflow_addons"

# What truenorm covers, by the part of Addons that has it; `migrate-code` rewrites the same.
COVERED: dict[str, tuple[Any, ...]] = {
    "layers": (
        layers.FilterResponseNormalization,
        layers.GroupNormalization,
        layers.InstanceNormalization,
        layers.PoincareNormalize,
        layers.SpectralNormalization,
        layers.TLU,
        layers.WeightNormalization,
    ),
    "rnn": (rnn.LayerNormLSTMCell, rnn.LayerNormSimpleRNNCell),
}
CLASSES: dict[str, Any] = {cls.__name__: cls for part in COVERED.values() for cls in part}
# Activations that compute the same in Keras 3. Addons' gelu is another: its default approximates.
ACTIVATIONS = {
    "hardshrink": "hard_shrink",
    "mish": "mish",
    "softshrink": "soft_shrink",
    "sparsemax": "sparsemax",
    "tanhshrink": "tanh_shrink",
}


def settings(cls: Any) -> dict[str, Any]:
    """What a layer from Addons is made with beyond its config: its statistics ignored masks."""
    return {"use_mask": False} if "use_mask" in arguments(cls) else {}


def arguments(cls: Any) -> set[str]:
    """The names of the arguments of a class, and of those classes that it passes others on to."""
    names: set[str] = set()
    for base in cls.__mro__:
        if "__init__" in vars(base):
            parameters = inspect.signature(base.__init__).parameters
            names |= set(parameters)
            if all(one.kind != one.VAR_KEYWORD for one in parameters.values()):
                break
    return names


def short_name(name: Any, module: Any = None) -> str | None:
    """X for Addons>X, or for a class X of Addons' modules; else None."""
    if isinstance(name, str) and name.startswith(f"{PACKAGE}>"):
        return name.removeprefix(f"{PACKAGE}>")
    if isinstance(name, str) and isinstance(module, str) and module.split(".")[0] == MODULE:
        return name.split(">")[-1]
    return None


class Reader:
    """What Keras finds under an old name: its from_config makes the layer of truenorm.

    It is not the class itself, so that new files say truenorm>X, and old ones get `settings`.
    """

    def __init__(self, cls: Any) -> None:
        self.cls = cls

    def from_config(self, config: dict[str, Any]) -> Any:
        """Make the layer."""
        return self.cls.from_config({**config, **settings(self.cls)})


def register() -> None:
    """Let `keras.models.load_model` read the old names, by Keras' own table of custom objects."""
    for name, cls in CLASSES.items():
        keras.saving.get_custom_objects()[f"{PACKAGE}>{name}"] = Reader(cls)
