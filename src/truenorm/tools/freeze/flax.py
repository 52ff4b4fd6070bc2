"""Batch normalization of flax.nnx that keeps its moving statistics."""

from typing import Any

from flax import nnx

from truenorm.tools.freeze import has_switch


def switch(module: Any, on: bool, affine: bool) -> str:
    """Freeze or thaw it, and say what there is to know."""
    if has_switch(module):
        module.frozen = on
    else:
        module.use_running_average = on
    if affine:
        return ""
    kind = nnx.BatchStat if on else nnx.Param
    for name in ("scale", "bias"):
        variable = getattr(module, name, None)
        if variable is not None and type(variable) is not kind:
            setattr(module, name, kind(variable.get_value(), **variable.get_metadata()))
    return f"gamma and beta too, as nnx.{kind.__name__}"


def finish(model: Any) -> None:
    """Nothing is left to do."""
