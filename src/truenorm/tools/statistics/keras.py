"""The inputs of batch normalizations of Keras, seen while a model computes."""

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from truenorm.core.errors import InputError
from truenorm.tools.carry.modules import Normalization
from truenorm.tools.statistics.batches import converted, is_batch, not_a_batch
from truenorm.tools.statistics.moments import Moments, moments


@contextlib.contextmanager
def watched(
    model: Any, found: list[Normalization], see: Callable[..., None]
) -> Iterator[Callable[[Any], None]]:
    """Give the function that runs the model, in inference mode, on a batch.

    Before each call of one of the batch normalizations, `see` gets it and a function for the
    moments of its input.
    """

    def instead(one: Normalization, call: Any, inputs: Any, *args: Any, **options: Any) -> Any:
        bound = inspect.signature(call).bind(inputs, *args, **options).arguments
        given = bound.pop("kwargs", {}) | bound | {"training": False}
        first = given.pop(next(iter(bound)))
        residual = given.get("residual")
        masked = getattr(one.module, "use_mask", True)
        mask = given.get("mask", given.get("inputs_mask")) if masked else None
        x = first if residual is None else keras.ops.add(first, residual)
        see(one, functools.partial(_moments, one, x, mask))
        return call(first, **given)

    def forward(batch: Any) -> None:
        model(converted(_inputs(model, batch), keras.ops.convert_to_tensor, ()), training=False)

    # In the instance's own dictionary: Keras' __setattr__ and torch's have nothing to track here.
    before = [(vars(one.module), vars(one.module).get("call")) for one in found]
    gradients = (
        sys.modules["torch"].no_grad()
        if keras.backend.backend() == "torch"
        else contextlib.nullcontext()
    )
    try:
        for one in found:
            vars(one.module)["call"] = functools.partial(instead, one, one.module.call)
        with gradients:
            yield forward
    finally:
        for attributes, call in before:
            if call is None:
                attributes.pop("call", None)
            else:
                attributes["call"] = call


def _inputs(model: Any, batch: Any) -> Any:
    """What the model is called with: all of the batch, or its first where it has labels too."""
    if isinstance(batch, (tuple, list)) and batch:
        several = len(getattr(model, "inputs", None) or ()) == len(batch) > 1
        batch = batch if several and all(map(is_batch, batch)) else batch[0]
    leaves = keras.tree.flatten(batch)
    if not leaves or not all(map(is_batch, leaves)):
        raise not_a_batch(batch)
    return batch


def _moments(one: Normalization, x: Any, mask: Any) -> Moments:
    try:
        array = np.asarray(keras.ops.convert_to_numpy(x))
        there = None if mask is None else np.asarray(keras.ops.convert_to_numpy(mask))
    except Exception as error:
        raise InputError(
            f"the input of {one.name} is traced and has no values ({type(error).__name__}): the "
            "model calls it inside a function that is compiled or vectorized; call it without."
        ) from error
    return moments(array, one.module.axis, there)


def finish(one: Normalization, batches: int) -> None:
    """Give batch renormalization the same statistics, from which training goes on."""
    layer = one.module
    if getattr(layer, "renorm", False):
        deviation = keras.ops.sqrt(keras.ops.add(layer.moving_variance, layer.epsilon))
        layer.renorm_mean.assign(layer.moving_mean)
        for weight in (layer.moving_stddev, layer.renorm_stddev):
            weight.assign(deviation)
