"""A cache for eager PyTorch, whose calls come often."""

import functools
from collections.abc import Callable
from typing import Any

import torch


def remembered(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with a cache, which torch.compile, tracing what is cached, is kept from."""
    cached = functools.lru_cache(maxsize=1024, typed=True)(function)

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling():
            return function(*arguments)
        try:
            return cached(*arguments)
        except TypeError:  # a list, or a size that is a symbol, cannot be a key
            return function(*arguments)

    return call
