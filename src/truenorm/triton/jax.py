"""The GPU kernels under JAX: the engine, and the lowering of the primitives for GPUs.

The primitives of `native/jax_primitives.py`, with their rules, are those of the CPU kernels: where
XLA compiles for a CUDA device, they become the kernels of this package, through jax-triton, and the
plain formula where that is missing or the kernels do not read the call. With an activation or a
residual they are those of `jax_fused.py`. Of the halves' primitives, those of `jax_halves.py`, what
sums over a group becomes kernels; what is elementwise XLA fuses with what stands around it.
"""

import functools
from typing import Any

import jax

from truenorm.core.call import Call, Statistics
from truenorm.native import jax as cpu
from truenorm.native import jax_halves, jax_primitives
from truenorm.triton import FUSES, jax_fused, jax_kernels

name = "triton"
fuses = {"normalize": FUSES, "measure": FUSES}
unavailable = jax_kernels.unavailable


def _reason(x: jax.Array, mask: jax.Array | None, epsilon: jax.Array | None = None) -> str | None:
    """Why the primitives do not become kernels, or None if they can."""
    reason = unavailable() or cpu.refused(x, mask, epsilon)
    if reason is not None:
        return reason
    if any(one.platform != "gpu" for one in cpu.devices(x)):
        return f"x is on {x.devices()}; the GPU kernels serve arrays on GPUs"
    if cpu.unavailable() is not None:
        return "the kernels for CPUs, which the primitives become there, are missing"
    return None


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
    reason = _reason(x, mask, epsilon)
    if reason is not None:
        return reason
    if call.activation is None and residual is None:
        return cpu.bind(call, x, gamma, beta)[0]
    y, _, *s = _fused(call, x, gamma, beta, *(() if residual is None else (residual,)))
    return (y, *s) if s else y


def _fused(call: Call, x: jax.Array, gamma: Any, beta: Any, *residual: jax.Array) -> Any:
    """y, the statistics, and the sum with a residual."""
    how, ordered = cpu.ordered(call)
    gamma, beta = cpu.parameters(call, x, gamma, beta, how)
    given = [one.transpose(how.order) for one in (x, *residual)]
    y, statistics, *s = jax_fused.forward(ordered, given[0], gamma, beta, *given[1:])
    y, *s = (one.transpose(how.inverse) for one in (y, *s))
    return y, statistics, *s


def moments(call: Call, x: jax.Array, mask: jax.Array | None = None) -> Statistics | str:
    """As `Plain.moments`, or why not."""
    reason = _reason(x, mask) or cpu.split(x)
    return reason if reason is not None else cpu.bind_moments(call, x)


def measure(
    call: Call,
    x: jax.Array,
    gamma: jax.Array | None,
    beta: jax.Array | None,
    mask: jax.Array | None = None,
) -> tuple[jax.Array, Statistics] | str:
    """As `Plain.measure`, or why not."""
    reason = _reason(x, mask) or cpu.split(x)
    if reason is not None:
        return reason
    if call.activation is None:
        return cpu.bind_measure(call, x, gamma, beta)
    y, statistics = _fused(call, x, gamma, beta)
    return y, cpu.with_count(call, x, *jax.numpy.unstack(statistics, axis=1))


def apply(
    call: Call,
    x: jax.Array,
    statistics: Statistics,
    gamma: jax.Array | None,
    beta: jax.Array | None,
    mask: jax.Array | None = None,
) -> jax.Array | str:
    """As `Plain.apply`, or why not."""
    reason = _reason(x, mask) or cpu.split(x)
    return reason if reason is not None else cpu.bind_apply(call, x, statistics, gamma, beta)


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


def _moments(x: Any, *, call: Call) -> Any:
    found = jax_kernels.moments(call, x)
    return jax_halves.plain_moments(x, call=call) if found is None else found


def _apply_backward(*operands: Any, call: Call) -> Any:
    found = jax_kernels.apply_backward(call, *operands)
    return jax_halves.plain_apply_backward(*operands, call=call) if found is None else found


HALVES = (
    _moments,
    functools.partial(jax_halves.moments_backward, jax_halves.plain_apply),
    jax_halves.plain_apply,
    _apply_backward,
)
jax_primitives.lower_for("cuda", _forward, _backward)
jax_halves.lower_for("cuda", *HALVES)
