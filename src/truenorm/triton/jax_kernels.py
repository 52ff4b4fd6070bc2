"""The launches of the GPU kernels under JAX, by jax-triton.

What they return stands in the place of a primitive; None: the plain formula computes it.
"""

import functools
import importlib
from typing import Any

import jax
import jax.numpy as jnp

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


def _start(
    one: Any, inputs: list[Any], outputs: list[Any], absent: str = "", writes: int | None = None
) -> Any:
    """What a kernel writes: its parameters are the inputs, the outputs, and those that are absent.

    `writes` is the place of an input that is the first output too.
    """
    import jax_triton

    return jax_triton.triton_call(
        *inputs,
        kernel=one.kernel,
        out_shape=[jax.ShapeDtypeStruct(like.shape, like.dtype) for like in outputs],
        grid=one.grid,
        num_warps=one.warps,
        input_output_aliases={} if writes is None else {writes: 0},
        **one.numbers,
        **one.constants,
        **dict.fromkeys(absent.split()),
    )


def forward(call: Call, x: Any, gamma: Any, beta: Any, results: Any, residual: Any = None) -> Any:
    """y, the statistics and with a residual the sum, of the shapes and dtypes of `results`."""
    found = _launches(call, x)
    if found is None:
        return None
    inputs, absent = [x, gamma, beta], "residual total"
    if isinstance(found.plan, plan.Looped):
        inputs.append(jnp.zeros((found.parts or 1, 3), gamma.dtype))
    launches = found.forward
    if residual is not None:
        from truenorm.triton import jax_sums

        looped = isinstance(found.plan, plan.Looped)
        kernel = jax_sums.looped_sum if looped else jax_sums.held_sum
        launches = [one._replace(kernel=kernel) for one in launches]
        inputs, absent = [*inputs, residual], "total"
    if len(launches) == 2:
        (inputs[3],) = _start(launches[0], inputs, inputs[3:4], f"statistics {absent}", writes=3)
    last = absent if residual is None else ""
    return tuple(_start(launches[-1], inputs, results, last))


def backward(call: Call, x: Any, gamma: Any, beta: Any, dy: Any, statistics: Any) -> Any:
    """dx, dgamma and dbeta; beta is read for an activation only."""
    found = _launches(call, x)
    if found is None:
        return None
    inputs, absent = [x, gamma, beta, dy, statistics], "dtotal"
    left = [jax.ShapeDtypeStruct(found.shares, gamma.dtype)] * 2
    if isinstance(found.plan, plan.Looped):
        inputs.append(jnp.zeros((found.parts or 1, 2), gamma.dtype))
    shares: list[Any] = []
    if found.columns is not None:
        shares = _start(found.columns, inputs[:5], left)
        left, absent = [], "dgamma dbeta dtotal"
    if len(found.backward) == 2:
        inputs[5], *more = _start(found.backward[0], inputs, [inputs[5], *left], absent, writes=5)
        (dx,) = _start(found.backward[1], inputs, [x], "dgamma dbeta dtotal")
    else:
        dx, *more = _start(found.backward[0], inputs, [x, *left], absent)
    shares += more
    return dx, *(one.sum((0, 2, 4)).reshape(gamma.shape) for one in shares)
