"""The batch normalizations in a model of torch.nn, flax.nnx or Keras."""

from typing import Any

from truenorm.core.errors import InputError, brief
from truenorm.tools.carry.modules import Framework, Normalization, framework_of, kind_of


def batch_normalizations(model: Any) -> tuple[Framework, list[Normalization]]:
    """The model's framework, and its batch normalizations in order, each once.

    Raises:
        InputError: it has none, or one is not built, or is of another framework than the model.
        TypeError: it is no module or layer.
    """
    framework = framework_of(model)
    if framework is None:
        raise TypeError(
            f"model is {brief(model)}, of the class {type(model).__name__}; expected a model of "
            "torch.nn, flax.nnx or Keras."
        )
    found: list[Normalization] = []
    seen: set[int] = set()

    def visit(module: Any, path: str) -> None:
        if id(module) in seen:
            return
        seen.add(id(module))
        own = framework_of(module) or framework
        kind = kind_of(module, own)
        if kind is not None and kind.name == "batch":
            one = Normalization(path or type(module).__name__, module, own, kind)
            _check(one, framework)
            found.append(one)
            return
        for name, inner in own.inside(module):
            visit(inner, f"{path}.{name}" if path else name)

    visit(model, "")
    if not found:
        raise InputError(
            f"model, a {type(model).__name__}, has no batch normalization; expected a model with "
            "one of torch.nn, flax.nnx, Keras or truenorm."
        )
    return framework, found


def _check(one: Normalization, framework: Framework) -> None:
    if one.framework is not framework:
        raise InputError(
            f"{one.name} is a normalization of {one.framework.name} in a model of "
            f"{framework.name}; pass the part of the model that is of {one.framework.name} alone."
        )
    if not one.is_built():
        raise InputError(
            f"{one.name} is not built, and has no parameters yet; call the model once, or build it."
        )
