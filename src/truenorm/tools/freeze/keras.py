"""Batch normalization of Keras that keeps its moving statistics."""

import functools
from typing import Any

from truenorm.tools.carry.modules import KERAS
from truenorm.tools.freeze import has_switch


def switch(layer: Any, on: bool, affine: bool) -> str:
    """Freeze or thaw it, and say what there is to know."""
    if not has_switch(layer):
        layer.trainable = not on
        return "gamma and beta too: in Keras trainable=False is both"
    layer.frozen = on
    if affine:
        return ""
    layer.trainable = not on
    return "gamma and beta too"


def finish(model: Any) -> None:
    """Let the model, and those in it, compile their steps again."""
    seen: set[int] = set()
    visit = functools.partial(_forget, seen=seen)
    visit(model)


def _forget(layer: Any, seen: set[int]) -> None:
    if id(layer) in seen:
        return
    seen.add(id(layer))
    for name in ("train_function", "test_function", "predict_function"):
        if getattr(layer, name, None) is not None:
            setattr(layer, name, None)
    for _, inner in KERAS.inside(layer):
        _forget(inner, seen)
