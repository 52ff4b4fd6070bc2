"""The inputs of batch normalizations of torch.nn, seen while a model computes."""

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from truenorm.core.errors import InputError
from truenorm.core.view import canonical_axes
from truenorm.tools.carry.modules import TORCH, Normalization
from truenorm.tools.statistics.batches import arguments, converted
from truenorm.tools.statistics.moments import Moments
from truenorm.tools.statistics.moments import moments as moments_of_array


@contextlib.contextmanager
def watched(
    model: torch.nn.Module, found: list[Normalization], see: Callable[..., None]
) -> Iterator[Callable[[Any], None]]:
    """Give the function that runs the model, in inference mode, on a batch.

    Before each call of one of the batch normalizations, `see` gets it and a function for the
    moments of its input.
    """
    modes = [(module, module.training) for module in model.modules()]
    like = next(iter(model.parameters()), None)
    if like is None:
        like = next(iter(model.buffers()))

    def forward(batch: Any) -> None:
        # Arrays of NumPy get the model's dtype: there they are often float64.
        def tensor(array: Any) -> torch.Tensor:
            made = torch.tensor(array)  # a copy: it may be read-only
            return made.to(like.device, like.dtype if made.is_floating_point() else None)

        args, options = converted(arguments(batch), tensor, torch.Tensor)
        move = functools.partial(_moved, device=like.device)
        model(*map(move, args), **{name: move(one) for name, one in options.items()})

    def before(one: Normalization, module: Any, args: Any, options: Any) -> None:
        bound = inspect.signature(module.forward).bind(*args, **options).arguments
        x, mask, residual = next(iter(bound.values())), bound.get("mask"), bound.get("residual")
        x = x if residual is None else x + residual
        see(one, functools.partial(_moments, x, mask, one))

    handles = []
    try:
        for module, _ in modes:
            module.training = False  # not eval(), which a model may have written anew
        for one in found:
            handles.append(
                one.module.register_forward_pre_hook(
                    functools.partial(before, one), with_kwargs=True
                )
            )
        with torch.no_grad(), _eager(model):
            yield forward
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode


def _eager(model: torch.nn.Module) -> Any:
    """Where the model is compiled: without that, as what was compiled calls no new hooks."""
    compiled = any(
        type(module).__name__ == "OptimizedModule"
        or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )
    return torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value


def _moments(x: torch.Tensor, mask: torch.Tensor | None, one: Normalization) -> Moments:
    axis = getattr(one.module, "axis", None)
    axes = canonical_axes(1 if axis is None else axis, x.ndim)
    if mask is not None or x.device.type == "mps":  # which has no float64
        there = None if mask is None else mask.cpu().numpy()
        return moments_of_array(TORCH.read(x), axes, there)
    last = tuple(range(x.ndim - len(axes), x.ndim))
    shape = (-1, math.prod(x.shape[one] for one in axes))
    channels = x.movedim(axes, last).reshape(shape).to(torch.float64)
    if not len(channels):
        raise InputError(f"the input of {one.name} is empty: {tuple(x.shape)}.")
    mean = channels.mean(0)
    squares = (channels - mean).square().sum(0)
    count = torch.full_like(mean, len(channels))
    return Moments(*(value.cpu().numpy() for value in (count, mean, squares)))


def finish(one: Normalization, batches: int) -> None:
    """Count the batches where none were counted."""
    tracked = getattr(one.module, "num_batches_tracked", None)
    if tracked is not None and int(tracked) == 0:
        tracked.fill_(batches)
