"""The launches of the GPU kernels under JAX, by jax-triton.

What they return stands in the place of a primitive; None: the plain formula computes it.
"""

import functools
import importlib
from typing import Any

import jax
import jax.numpy as jnp

from truenorm.arrays import jax as arrays
from truenorm.core.activation import add
from truenorm.core.call import Call
from truenorm.triton import interpreted, plan


@functools.cache
def unavailable() -> str | None:
    """Why no call at all can be computed on JAX, or None."""
    if not interpreted() and jax.default_backend() != "gpu":
        return f"JAX computes on {jax.default_backend()}"
    try:
        importlib.import_module("jax_triton")
        importlib.import_module("truenorm.triton.launch")
    except (ImportError, AttributeError) as error:
        return f"jax-triton is missing, or does not fit this JAX: {error}"
    return None


def _launches(call: Call, x: Any) -> Any:
    if unavailable() is not None or x.size == 0 or isinstance(plan.make(call, x.shape), str):
        return None
    from truenorm.triton import launch

    return launch.make(call, tuple(x.shape), x.dtype == jnp.float64, True)


def _start(one: Any, inputs: list[Any], outputs: Any, absent: str = "") -> list[Any]:
    """What a kernel writes: its parameters are the inputs, the outputs, and what is absent."""
    import jax_triton

    found: list[Any] = jax_triton.triton_call(
        *inputs,
        kernel=one.kernel,
        out_shape=[jax.ShapeDtypeStruct(like.shape, like.dtype) for like in outputs],
        grid=one.grid,
        num_warps=one.warps,
        **one.numbers,
        **one.constants,
        **dict.fromkeys(absent.split()),
    )
    return found


def _sums(split: Any, inputs: list[Any], result: Any, more: Any = (), absent: str = "") -> Any:
    """The first two launches of a pass: what they sum for each group, in the shape of `result`; and
    what else the first one writes.
    """
    parts = jax.ShapeDtypeStruct((split.parts, result.shape[-1]), result.dtype)
    first = result if split.combine is None else parts
    found, *others = _start(split.sums, inputs, [first, *more], absent)
    if split.combine is not None:
        (found,) = _start(split.combine, [found], [result])
    return found, others


def _is_split(one: Any) -> bool:
    from truenorm.triton import launch

    return isinstance(one, launch.Split)


def forward(call: Call, x: Any, gamma: Any, beta: Any, results: Any, residual: Any = None) -> Any:
    """y, the statistics and with a residual the sum, of the shapes and dtypes of `results`."""
    found = _launches(call, x)
    if found is None:
        return None
    one = found.forward
    if _is_split(one):
        total = () if residual is None else (add(arrays, x, residual),)
        x = total[0] if total else x
        statistics, _ = _sums(one, [x], results[1])
        (y,) = _start(one.apply, [x, gamma, beta, statistics], results[:1])
        return y, statistics, *total
    if residual is None:
        return tuple(_start(one, [x, gamma, beta], results, "residual total"))
    from truenorm.triton import jax_sums

    looped = isinstance(found.plan, plan.Looped)
    one = one._replace(kernel=jax_sums.looped_sum if looped else jax_sums.held_sum)
    return tuple(_start(one, [x, gamma, beta, residual], results))


def backward(call: Call, x: Any, gamma: Any, beta: Any, dy: Any, statistics: Any) -> Any:
    """dx, dgamma and dbeta; beta is read for an activation only."""
    found = _launches(call, x)
    if found is None:
        return None
    inputs, left = [x, gamma, beta, dy, statistics], "dgamma dbeta"
    shapes = [jax.ShapeDtypeStruct(found.shares, gamma.dtype)] * 2
    shares: list[Any] = []
    if found.columns is not None:
        shares = _start(found.columns, inputs, shapes)
    inside = [] if shares or found.sums_are_shares else shapes
    absent = "" if inside else left
    if _is_split(found.backward):
        groups = jax.ShapeDtypeStruct((statistics.size // 3, 2), gamma.dtype)
        sums, more = _sums(found.backward, inputs, groups, inside, absent)
        (dx,) = _start(found.backward.apply, [*inputs, sums], [x], "dtotal")
        if found.sums_are_shares:
            shares = [sums[:, i].reshape(found.shares) for i in (1, 0)]
    else:
        dx, *more = _start(found.backward, inputs, [x, *inside], f"{absent} dtotal")
    shares += more
    return dx, *(one.sum((0, 2, 4)).reshape(gamma.shape) for one in shares)
