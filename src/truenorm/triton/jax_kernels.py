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


def _launches(call: Call, x: Any, halves: bool = False) -> Any:
    if unavailable() is not None or x.size == 0:
        return None
    if isinstance(plan.make(call, x.shape, halves), str):
        return None
    from truenorm.triton import launch

    return launch.make(call, tuple(x.shape), x.dtype == jnp.float64, True, halves)


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
    inputs, sums = [x, gamma, beta, dy, statistics], None
    inside, absent = _left(found, gamma)
    if _is_split(found.backward):
        groups = jax.ShapeDtypeStruct((statistics.size // 3, 2), gamma.dtype)
        sums, left = _sums(found.backward, inputs, groups, inside, absent)
        (dx,) = _start(found.backward.apply, [*inputs, sums], [x], "dtotal")
    else:
        dx, *left = _start(found.backward, inputs, [x, *inside], f"{absent} dtotal")
    return dx, *_parameter_gradients(found, left, sums, inputs)


def moments(call: Call, x: Any) -> Any:
    """The mean, its rest and the variance of each group."""
    found = _launches(call, x, halves=True)
    if found is None:
        return None
    dtype = jnp.float64 if x.dtype == jnp.float64 else jnp.float32
    statistics, _ = _sums(found.forward, [x], jax.ShapeDtypeStruct((found.plan.groups, 3), dtype))
    return tuple(statistics[:, i] for i in range(3))


def apply_backward(
    call: Call, x: Any, gamma: Any, mean: Any, rest: Any, power: Any, dy: Any
) -> Any:
    """The gradients in x, gamma, beta, mean, rest and power, as `jax_halves.py` has them."""
    found = _launches(call, x, halves=True)
    if found is None:
        return None
    inputs = [x, gamma, gamma, dy, jnp.stack([mean, rest, power], -1)]  # beta is not read
    inside, absent = _left(found, gamma)
    groups = jax.ShapeDtypeStruct((power.size, 2), power.dtype)
    sums, (dx, *left) = _sums(found.backward, inputs, groups, [x, *inside], absent)
    gradients = _parameter_gradients(found, left, sums, inputs)
    if found.sums_are_shares:
        _, sets, _, extent, _ = found.shares
        scaled = sums.reshape(*found.shares, 2) * gamma.reshape(1, sets, 1, extent, 1, 1)
        sums = scaled.reshape(sums.shape)
    dmean = -sums[:, 0] / jnp.sqrt(power)
    dmean = dmean if call.centered else jnp.zeros_like(dmean)
    return dx, *gradients, dmean, dmean, -0.5 * sums[:, 1] / power


def _left(found: Any, gamma: Any) -> tuple[list[Any], str]:
    """What the backward kernels fill with what is added to the gradients of gamma and beta; or the
    names of these parameters where they do not.
    """
    if found.sums_are_shares or found.columns is not None:
        return [], "dgamma dbeta"
    return [jax.ShapeDtypeStruct(found.shares, gamma.dtype)] * 2, ""


def _parameter_gradients(found: Any, left: Any, sums: Any, inputs: list[Any]) -> Any:
    """dgamma and dbeta of what the kernels left."""
    gamma = inputs[1]
    if found.columns is not None:
        shapes = [jax.ShapeDtypeStruct(found.shares, gamma.dtype)] * 2
        left = _start(found.columns, inputs, shapes)
    elif found.sums_are_shares:
        left = [sums[:, i].reshape(found.shares) for i in (1, 0)]
    return [one.sum((0, 2, 4)).reshape(gamma.shape) for one in left]
