"""The functions of the plain formula over jax.numpy; see `truenorm.arrays`."""

from typing import Any

import jax
from jax.lax import erf, stop_gradient
from jax.nn import sigmoid
from jax.numpy import (
    broadcast_to,
    concatenate,
    isfinite,
    logical_and,
    logical_not,
    logical_or,
    pad,
    reshape,
    sqrt,
    square,
    stack,
    sum,
    transpose,
    where,
    zeros_like,
)

__all__ = [
    "broadcast_to",
    "cast",
    "concatenate",
    "dtype",
    "erf",
    "is_tensor",
    "isfinite",
    "logical_and",
    "logical_not",
    "logical_or",
    "pad",
    "reshape",
    "shape",
    "sigmoid",
    "sqrt",
    "square",
    "stack",
    "stop_gradient",
    "sum",
    "transpose",
    "where",
    "zeros_like",
]


def dtype(t: jax.Array) -> str:
    """The dtype's name."""
    return str(t.dtype.name)


def shape(t: jax.Array) -> tuple[Any, ...]:
    """The sizes: integers, or symbols where a program is exported for unknown ones."""
    return tuple(t.shape)


def is_tensor(value: Any) -> bool:
    """Whether it is an array; a symbol is none."""
    return isinstance(value, jax.Array)


def cast(t: jax.Array, dtype: str) -> jax.Array:
    """T in the dtype of this name."""
    return t.astype(dtype)
