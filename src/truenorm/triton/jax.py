"""The GPU kernels under JAX: the engine, and the lowering of the primitives for GPUs.

The primitives of `native/jax_primitives.py`, with their rules, are those of the CPU kernels: where
XLA compiles for a CUDA device, they become the kernels of this package, through jax-triton, and the
plain formula where that is missing or the kernels do not read the call. Under jit nobody knows the
device before, so there the engine for CPUs, which comes first, serves both. Activation and residual
are computed around the kernels.
"""

import functools
import importlib
from typing import Any

import jax
import jax.numpy as jnp

from truenorm.core.call import Call, Statistics
from truenorm.native import jax as cpu
from truenorm.native import jax_primitives
from truenorm.triton import interpreted, plan

name = "triton"

_HALVES = "the GPU kernels compute both halves in one"


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


def normalize(
    call: Call,
    x: jax.Array,
    gamma: jax.Array | None,
    beta: jax.Array | None,
    mask: jax.Array | None = None,
    epsilon: jax.Array | None = None,
) -> jax.Array | str:
    """As `Plain.normalize`, through the primitives, or why not."""
    if not isinstance(x, jax.core.Tracer) and any(one.platform != "gpu" for one in x.devices()):
        return f"x is on {x.devices()}; the GPU kernels serve arrays on GPUs"
    if cpu.unavailable() is not None:
        return "the kernels for CPUs, which the primitives become there, are missing"
    reason = cpu.refused(x, mask, epsilon) or unavailable()
    return reason if reason is not None else cpu.bind(call, x, gamma, beta)


def moments(call: Call, x: jax.Array, mask: jax.Array | None = None) -> str:
    """Why not."""
    return _HALVES


def apply(
    call: Call, x: jax.Array, statistics: Statistics, gamma: Any, beta: Any, mask: Any = None
) -> str:
    """Why not."""
    return _HALVES


# --- what the primitives become


def _launches(call: Call, x: Any) -> Any:
    """The launches, or None: the plain formula computes it."""
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


def _forward(x: Any, gamma: Any, beta: Any, *, call: Call, lead: int) -> Any:
    found = _launches(call, x)
    if found is None:
        return jax_primitives.plain_forward(x, gamma, beta, call=call, lead=lead)
    results = jax_primitives.forward_shapes(x, gamma, call, lead)
    inputs, absent = [x, gamma, beta], "residual total"
    if isinstance(found.plan, plan.Looped):
        inputs.append(jnp.zeros((found.parts or 1, 3), gamma.dtype))
    if len(found.forward) == 2:
        (inputs[3],) = _start(
            found.forward[0], inputs, inputs[3:], f"statistics {absent}", writes=3
        )
    return tuple(_start(found.forward[-1], inputs, results, absent))


def _backward(x: Any, gamma: Any, dy: Any, statistics: Any, *, call: Call, lead: int) -> Any:
    found = _launches(call, x)
    if found is None:
        return jax_primitives.plain_backward(x, gamma, dy, statistics, call=call, lead=lead)
    # What is in the place of beta is read for an activation only.
    inputs, absent = [x, gamma, gamma, dy, statistics], "dtotal"
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


jax_primitives.lower_for("cuda", _forward, _backward)
