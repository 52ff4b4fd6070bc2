"""The inputs of batch normalizations of flax.nnx, seen while a model computes."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx

from truenorm.core.errors import InputError
from truenorm.tools.carry.modules import Normalization
from truenorm.tools.statistics.batches import arguments, converted
from truenorm.tools.statistics.moments import Moments, moments

_INFERENCE = ("deterministic", "use_running_average")


@contextlib.contextmanager
def watched(
    model: Any, found: list[Normalization], see: Callable[..., None]
) -> Iterator[Callable[[Any], None]]:
    """Give the function that runs the model, in inference mode, on a batch.

    Before each call of one of the batch normalizations, `see` gets it and a function for the
    moments of its input.
    """
    known = {id(one.module): one for one in found}
    modes = [
        (vars(module), name, vars(module)[name])
        for _, module in nnx.iter_modules(model)
        for name in _INFERENCE
        if name in vars(module)
    ]
    classes = {type(one.module) for one in found}
    before = {cls: vars(cls).get("__call__") for cls in classes}
    inside: list[Any] = []

    def instead(call: Any, self: Any, x: Any, *args: Any, **options: Any) -> Any:
        if not inside and isinstance(x, jax.core.Tracer):
            raise InputError(
                f"the input of a {type(self).__name__} of shape {x.shape} is traced and has no "
                "values: the model calls it inside jit, vmap, scan or another transformation; "
                "call it without."
            )
        one = known.get(id(self))
        if one is None or self in inside:  # another model's, or super().__call__
            return call(self, x, *args, **options)
        inside.append(self)
        try:
            bound = inspect.signature(call).bind(self, x, *args, **options).arguments
            given = bound.pop("kwargs", {}) | bound | {"use_running_average": True}
            for name in list(bound)[:2]:  # self and x
                del given[name]
            residual = given.get("residual")
            total = x if residual is None else x + residual
            see(one, functools.partial(_moments, one, total, given.get("mask")))
            return call(self, x, **given)
        finally:
            inside.pop()

    def forward(batch: Any) -> None:
        args, options = converted(arguments(batch), jax.numpy.asarray, jax.Array)
        model(*args, **options)

    try:
        for attributes, name, _ in modes:
            attributes[name] = True
        for cls in classes:  # Python looks __call__ up in the class, never in the instance
            cls.__call__ = _method(instead, cls.__call__)
        yield forward
    finally:
        for cls, call in before.items():
            if call is not None:
                cls.__call__ = call
            elif "__call__" in vars(cls):
                del cls.__call__
        for attributes, name, value in modes:
            attributes[name] = value


def _method(instead: Callable[..., Any], call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def method(self: Any, *args: Any, **options: Any) -> Any:
        return instead(call, self, *args, **options)

    return method


def _moments(one: Normalization, x: Any, mask: Any) -> Moments:
    return moments(np.asarray(x), one.module.axis, None if mask is None else np.asarray(mask))


def finish(one: Normalization, batches: int) -> None:
    """Nothing: flax counts no batches."""
