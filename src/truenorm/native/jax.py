"""The native kernels under JAX: the engine.

It registers the kernels as foreign functions of XLA, and computes a call by the primitives of
`jax_primitives.py` and its halves by those of `jax_halves.py`, which have the rules of JAX's
transformations; `jax_devices.py` has the one for arrays that are split over devices.
"""

import ctypes
import dataclasses
import functools
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp

from truenorm.core.call import Call, Statistics
from truenorm.native import jax_halves, jax_primitives, library
from truenorm.native.recipe import Recipe, recipe

name = "native"

_DTYPES = ("float32", "float64", "bfloat16", "float16")


def _interface() -> tuple[int, int]:
    """The version of JAX's foreign function interface, which only its headers tell."""
    header = pathlib.Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h"
    text = header.read_text(encoding="utf-8")
    major, minor = (
        int(re.search(rf"#define XLA_FFI_API_{part} (\d+)", text)[1])  # type: ignore[index]
        for part in ("MAJOR", "MINOR")
    )
    return major, minor


@functools.cache
def unavailable() -> str | None:
    """Why no call at all can be computed on JAX, or None; registers the kernels the first time."""
    file = library.path("libtruenorm_jax")
    if file is None:
        return "this build of truenorm has no native kernels for JAX (jaxlib was not there)"
    if jax.__version_info__ < (0, 8):  # the first whose partitioning can keep an axis whole
        return f"the native kernels need JAX 0.8 or later, and this is {jax.__version__}"
    try:
        binding = ctypes.CDLL(str(file))
        needed = (binding.truenorm_jax_interface_major(), binding.truenorm_jax_interface_minor())
        if (found := _interface()) < needed or found[0] != needed[0]:
            # Registered all the same, they would keep JAX from finding the CPU at all.
            return (
                "the native kernels were built for version {}.{} of JAX's foreign function "
                "interface, and this JAX has {}.{}: install a matching JAX, or build truenorm "
                "from source with this one's jaxlib".format(*needed, *found)
            )
        for name in ("forward", "backward", "moments", "apply", "apply_backward"):
            handler = jax.ffi.pycapsule(getattr(binding, f"truenorm_jax_{name}"))
            jax.ffi.register_ffi_target(f"truenorm_{name}", handler, platform="cpu")
    except Exception as error:
        return f"the native kernels for JAX do not load: {error}"
    return None


def refused(x: Any, mask: Any, epsilon: Any = None) -> str | None:
    """Why no fused kernel, on whichever device, can compute this call, or None."""
    if mask is not None:
        return "mask: the native kernels take none"
    if epsilon is not None:
        return "epsilon is learned: the native kernels take a number"
    if x.dtype.name not in _DTYPES:
        return f"x is of dtype {x.dtype.name}; the native kernels take {', '.join(_DTYPES)}"
    if not all(isinstance(size, int) for size in x.shape):
        return f"x has the shape {x.shape}, which is not known when the function is traced"
    return None


def _reason(x: Any, mask: Any, epsilon: Any = None) -> str | None:
    """Why the kernels for CPUs cannot compute this call, or None if they can."""
    reason = refused(x, mask, epsilon)
    if reason is not None:
        return reason
    if any(device.platform != "cpu" for device in devices(x)):
        return f"x is on {x.devices()}; the native kernels serve CPU arrays"
    return None


def devices(x: Any) -> Any:
    """Where x is, as far as it is known: jax.grad may hand down a NumPy array that it was given."""
    known = isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer)
    return x.devices() if known else ()


def normalize(
    call: Call,
    x: jax.Array,
    gamma: jax.Array | None,
    beta: jax.Array | None,
    mask: jax.Array | None = None,
    epsilon: jax.Array | None = None,
) -> jax.Array | str:
    """As `Plain.normalize`, through the primitives, or why not."""
    reason = _reason(x, mask, epsilon)
    return reason if reason is not None else bind(call, x, gamma, beta)[0]


def bind(
    call: Call, x: jax.Array, gamma: jax.Array | None, beta: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """y and the statistics by the primitives, which become kernels where XLA compiles for a device
    that has them.
    """
    how, inside = ordered(call)
    gamma, beta = parameters(call, x, gamma, beta, how)
    x = x.transpose(how.order) if how.permutes else x
    y, statistics = jax_primitives.forward(inside, int(call.view.has_samples), x, gamma, beta)
    return y.transpose(how.inverse) if how.permutes else y, statistics


def moments(call: Call, x: jax.Array, mask: jax.Array | None = None) -> Statistics | str:
    """As `Plain.moments`, or why not."""
    reason = _reason(x, mask) or split(x)
    return reason if reason is not None else bind_moments(call, x)


def bind_moments(call: Call, x: jax.Array) -> Statistics:
    """The statistics by their primitive."""
    how, inside = ordered(dataclasses.replace(call, epsilon=0.0))
    ordered_x = x.transpose(how.order) if how.permutes else x
    return with_count(call, x, *jax_halves.moments(inside, ordered_x))


def measure(
    call: Call,
    x: jax.Array,
    gamma: jax.Array | None,
    beta: jax.Array | None,
    mask: jax.Array | None = None,
) -> tuple[jax.Array, Statistics] | str:
    """As `Plain.measure`, or why not."""
    reason = _reason(x, mask) or split(x)
    return reason if reason is not None else bind_measure(call, x, gamma, beta)


def bind_measure(
    call: Call, x: jax.Array, gamma: jax.Array | None, beta: jax.Array | None
) -> tuple[jax.Array, Statistics]:
    """y and the statistics by the primitives."""
    y, statistics = bind(call, x, gamma, beta)
    return y, with_count(call, x, *jnp.unstack(statistics.reshape(-1, 3), axis=1))


def apply(
    call: Call,
    x: jax.Array,
    statistics: Statistics,
    gamma: jax.Array | None,
    beta: jax.Array | None,
    mask: jax.Array | None = None,
) -> jax.Array | str:
    """As `Plain.apply`, or why not."""
    reason = _reason(x, mask) or split(x)
    return reason if reason is not None else bind_apply(call, x, statistics, gamma, beta)


def bind_apply(
    call: Call,
    x: jax.Array,
    statistics: Statistics,
    gamma: jax.Array | None,
    beta: jax.Array | None,
) -> jax.Array:
    """y of these statistics by the primitive."""
    how, inside = ordered(dataclasses.replace(call, epsilon=0.0))
    gamma, beta = parameters(call, x, gamma, beta, how)
    mean, rest, variance = (one.astype(_compute_dtype(x)) for one in statistics[:3])
    power = variance + call.epsilon
    if call.centered:
        # As in the plain formula: rounding can take it below zero.
        power = jnp.where(power < 0.5 * call.epsilon, call.epsilon, power)
    else:
        mean = rest = jnp.zeros_like(power)
    x = x.transpose(how.order) if how.permutes else x
    y = jax_halves.apply(inside, x, gamma, beta, mean, rest, power)
    return y.transpose(how.inverse) if how.permutes else y


def with_count(
    call: Call, x: jax.Array, mean: jax.Array, rest: jax.Array, variance: jax.Array
) -> Statistics:
    """The statistics with the number of elements that each group has."""
    _, r0, _, r1 = call.view.sizes(x.shape)
    return Statistics(mean, rest, variance, jnp.full_like(variance, r0 * r1))


def split(x: Any) -> str | None:
    """A reason where x's type says how it is split over devices: that of its groups would not."""
    if any(one is not None for one in jax.typeof(x).sharding.spec):
        return "x is split over devices by its type, which the halves do not carry on"
    return None


def ordered(call: Call) -> tuple[Recipe, Call]:
    """The recipe, and the call for x in its order."""
    how = recipe(call.view)
    return how, dataclasses.replace(call, view=call.view.permuted(how.order))


def parameters(
    call: Call, x: jax.Array, gamma: jax.Array | None, beta: jax.Array | None, how: Recipe
) -> tuple[jax.Array, jax.Array]:
    """gamma and beta, or ones and zeros, in the compute dtype and in the recipe's order."""
    compute = _compute_dtype(x)
    shape = call.view.parameter_shape(x.shape)
    gamma = jnp.ones(shape, compute) if gamma is None else gamma.astype(compute)
    beta = jnp.zeros(shape, compute) if beta is None else beta.astype(compute)
    return gamma.transpose(how.parameter_order), beta.transpose(how.parameter_order)


def _compute_dtype(x: Any) -> Any:
    return jnp.float64 if x.dtype == jnp.float64 else jnp.float32
