"""Which tensors go into which layers of a functional model, rewritten as Keras 3 writes it.

Keras 2 wrote a tensor as [layer, call, output], with the call's other arguments as a fourth
element, and counted a model's own definition as its first call.
"""

from collections.abc import Mapping
from typing import Any

from truenorm.core.errors import InputError

Json = dict[str, Any]


def named(config: Any, name: str, module: str | None = None, registered: str | None = None) -> Json:
    """The form in which Keras 3 writes an object."""
    return {"module": module, "class_name": name, "config": config, "registered_name": registered}


def is_tensor(value: Any) -> bool:
    """Whether this is [layer, call, output], maybe with arguments: a tensor as Keras 2 wrote it."""
    return (
        isinstance(value, list)
        and len(value) in (3, 4)
        and isinstance(value[0], str)
        and isinstance(value[1], int)
    )


def node(calls: Any, begun: Mapping[Any, bool]) -> Json:
    """One call of a layer: its tensors, and its other arguments."""

    def tensors(value: Any) -> Any:
        if is_tensor(value):
            name, call, output = value[:3]
            if name == "_CONSTANT_VALUE":
                return output
            if name not in begun:
                return value
            history = [name, call - begun[name], output]
            tensor = {"shape": [], "dtype": "float32", "keras_history": history}
            return named(
                tensor, "__keras_tensor__", "keras.src.backend.common.keras_tensor", "KerasTensor"
            )
        if isinstance(value, list):
            return [tensors(one) for one in value]
        return (
            {key: tensors(one) for key, one in value.items()} if isinstance(value, dict) else value
        )

    def keywords(value: Any) -> Json:
        if is_tensor(value):
            return value[3] if len(value) == 4 and isinstance(value[3], dict) else {}
        parts = (
            value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        )
        return next((found for part in parts if (found := keywords(part))), {})

    extra = {key: one for key, one in keywords(calls).items() if one is not None}
    return {"args": [single(tensors(calls))], "kwargs": tensors(extra)}


def single(value: Any) -> Any:
    """The one element of a list of one."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def ending(value: Any, kinds: Mapping[Any, Any]) -> Any:
    """A model's inputs or outputs; Keras 3 counts the calls of a Sequential from 0."""
    if is_tensor(value):
        return [value[0], value[1] - (kinds.get(value[0]) == "Sequential"), value[2]]
    if isinstance(value, list):
        return [ending(one, kinds) for one in value]
    if isinstance(value, dict):
        return {key: ending(one, kinds) for key, one in value.items()}
    raise InputError("The model's inputs or outputs are missing in its config.")
