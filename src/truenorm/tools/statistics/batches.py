"""The batches of some data, whatever kind of iterable they come in."""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from truenorm.core.errors import InputError, brief

_EXPECTED = (
    "expected an iterable of batches, each an array, a tuple or list that begins with one, or a "
    "dict of keyword arguments"
)


def is_array(value: Any) -> bool:
    """Whether this is an array or tensor of any framework."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def is_batch(value: Any) -> bool:
    """Whether this is an array with an axis of samples."""
    return is_array(value) and len(value.shape) > 0


def check_data(data: Any, again: bool) -> None:
    """Raise unless data can be iterated, and more than once if `again`."""
    if is_array(data):
        raise InputError(
            f"data is one array of shape {tuple(data.shape)}, whose parts would be samples; pass a "
            "list of batches, [data] where it is one."
        )
    if isinstance(data, (str, bytes, dict)) or not (
        hasattr(data, "__iter__") or hasattr(data, "__getitem__")
    ):
        raise TypeError(f"data={brief(data)}, a {type(data).__name__}; {_EXPECTED}.")
    if again and hasattr(data, "__next__"):
        raise InputError(
            f"data is a {type(data).__name__}, which can be read once, and layer_by_layer=True "
            "reads it once for every batch normalization; pass a list, a data loader, or another "
            "iterable that begins again."
        )


def batches(data: Any) -> Iterator[Any]:
    """The batches, each as it is there."""
    if hasattr(data, "__iter__"):
        yield from data
    else:  # a keras.utils.PyDataset
        yield from (data[number] for number in range(len(data)))


def arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a model is called with, positional and keyword.

    Raises:
        TypeError: it is no batch.
    """
    if isinstance(batch, dict) and batch:
        return (), batch
    first = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not is_batch(first):
        raise not_a_batch(batch)
    return (first,), {}


def not_a_batch(batch: Any) -> TypeError:
    """The error to raise for a batch that is none."""
    return TypeError(f"a batch of data is {brief(batch)}, a {type(batch).__name__}; {_EXPECTED}.")


def converted(value: Any, convert: Callable[[Any], Any], own: type | tuple[()]) -> Any:
    """The value with `convert` for each array of another framework in it, as a NumPy array."""
    if isinstance(value, dict):
        return {name: converted(one, convert, own) for name, one in value.items()}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(converted(one, convert, own) for one in value)
    if isinstance(value, own) or not is_array(value):
        return value
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        value = value.detach().cpu()
    return convert(np.asarray(value))
