"""The GPU kernels under JAX: the engine, and the lowering of the primitives for GPUs.

The primitives of `native/jax_primitives.py`, with their rules, are those of the CPU kernels: where
XLA compiles for a CUDA device, they become the kernels of this package, through jax-triton, and the
plain formula where that is missing or the kernels do not read the call. With an activation or a
residual they are those of `jax_fused.py`.
"""

from typing import Any

import jax

from truenorm.core.call import Call, Statistics
from truenorm.native import jax as cpu
from truenorm.native import jax_primitives
from truenorm.triton import FUSES, jax_fused, jax_kernels

name = "triton"
fuses = {"normalize": FUSES}
unavailable = jax_kernels.unavailable

_HALVES = "the GPU kernels compute both halves in one"


def normalize(
    call: Call,
    x: jax.Array,
    gamma: jax.Array | None,
    beta: jax.Array | None,
    mask: jax.Array | None = None,
    epsilon: jax.Array | None = None,
    residual: jax.Array | None = None,
) -> Any:
    """As `core.engine.normalize`, through the primitives, or why not."""
    reason = unavailable() or cpu.refused(x, mask, epsilon)
    if reason is not None:
        return reason
    if any(one.platform != "gpu" for one in cpu.devices(x)):
        return f"x is on {x.devices()}; the GPU kernels serve arrays on GPUs"
    if cpu.unavailable() is not None:
        return "the kernels for CPUs, which the primitives become there, are missing"
    if call.activation is None and residual is None:
        return cpu.bind(call, x, gamma, beta)[0]
    how, ordered = cpu.ordered(call)
    gamma, beta = cpu.parameters(call, x, gamma, beta, how)
    given = [one.transpose(how.order) for one in (x, residual) if one is not None]
    found = jax_fused.forward(ordered, given[0], gamma, beta, *given[1:])
    return jax.tree.map(lambda one: one.transpose(how.inverse), found)


def moments(call: Call, x: jax.Array, mask: jax.Array | None = None) -> str:
    """Why not."""
    return _HALVES


def measure(call: Call, x: jax.Array, gamma: Any, beta: Any, mask: Any = None) -> str:
    """Why not."""
    return _HALVES


def apply(
    call: Call, x: jax.Array, statistics: Statistics, gamma: Any, beta: Any, mask: Any = None
) -> str:
    """Why not."""
    return _HALVES


# --- what the primitives of the CPU kernels become


def _forward(x: Any, gamma: Any, beta: Any, *, call: Call, lead: int) -> Any:
    results = jax_primitives.forward_shapes(x, gamma, call, lead)
    found = jax_kernels.forward(call, x, gamma, beta, results)
    if found is not None:
        return found
    return jax_primitives.plain_forward(x, gamma, beta, call=call, lead=lead)


def _backward(x: Any, gamma: Any, dy: Any, statistics: Any, *, call: Call, lead: int) -> Any:
    found = jax_kernels.backward(call, x, gamma, gamma, dy, statistics)
    if found is not None:
        return found
    return jax_primitives.plain_backward(x, gamma, dy, statistics, call=call, lead=lead)


jax_primitives.lower_for("cuda", _forward, _backward)
