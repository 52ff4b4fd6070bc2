"""The halves of a call as primitives of JAX.

    moments(x) -> mean, rest, variance      of each group; the mean's derivative is in its rest
    apply(x, gamma, beta, mean, rest, power) -> y      power: the variance with epsilon added

Each has, as `normalize` in `jax_primitives.py`, a tangent that is linear and that has a primitive
for its transpose; higher derivatives are the plain formula's. The kernels compute on one device;
under vmap, for arrays that are split over devices, on a device for which there are none and in a
program that is exported, the plain formula does. All have one option, `call`, whose view reads x's
axes in their own order, and whose epsilon is zero.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import PartitionSpec

from truenorm.arrays import jax as arrays
from truenorm.core.call import Call, Statistics
from truenorm.core.plain import Plain
from truenorm.native.jax_primitives import attributes, bind, implement, on_one_device
from truenorm.native.recipe import MERGED, call_of

_plain = Plain(arrays)
_MERGED = call_of(MERGED.factors, MERGED.groups, epsilon=0.0, centered=True)


def moments(call: Call, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The mean, its rest and the variance of each group."""
    mean, rest, variance = bind(_moments.primal, x, call=call)
    return mean, rest, variance


def apply(call: Call, *operands: jax.Array) -> jax.Array:
    """y of x, gamma, beta, mean, rest and power, all but x of the dtype of the math."""
    (y,) = bind(_apply.primal, *operands, call=call)
    return y


# --- the plain formula of each primitive


def plain_moments(x: Any, *, call: Call) -> Any:
    """The statistics without the count."""
    return _plain.moments(call, x)[:3]


def _plain_moments_tangent(x: Any, mean: Any, rest: Any, dx: Any, *, call: Call) -> Any:
    return jax.jvp(functools.partial(plain_moments, call=call), (x,), (dx,))[1][1:]


def _plain_moments_backward(
    x: Any, mean: Any, rest: Any, drest: Any, dvariance: Any, *, call: Call
) -> Any:
    _, pullback = jax.vjp(functools.partial(plain_moments, call=call), x)
    return pullback((jnp.zeros_like(drest), drest, dvariance))


def plain_apply(
    x: Any, gamma: Any, beta: Any, mean: Any, rest: Any, power: Any, *, call: Call
) -> Any:
    """The primitive's y."""
    # Without a mask the count says nothing.
    statistics = Statistics(mean, rest, power, jnp.ones_like(power))
    return (_plain.apply(call, x, statistics, gamma, beta),)


def _plain_apply_tangent(
    x: Any, gamma: Any, mean: Any, rest: Any, power: Any, *tangents: Any, call: Call
) -> Any:
    primals = (x, gamma, jnp.zeros_like(gamma), mean, rest, power)
    return jax.jvp(functools.partial(plain_apply, call=call), primals, tangents)[1]


def plain_apply_backward(
    x: Any, gamma: Any, mean: Any, rest: Any, power: Any, dy: Any, *, call: Call
) -> Any:
    """The gradients in all but dy."""
    primals = (x, gamma, jnp.zeros_like(gamma), mean, rest, power)
    return jax.vjp(functools.partial(plain_apply, call=call), *primals)[1]((dy,))


# --- the kernels


def _native_moments(x: Any, *, call: Call) -> Any:
    result = jax.ShapeDtypeStruct((_groups(x, call), 3), _compute_dtype(x))
    statistics = jax.ffi.ffi_call("truenorm_moments", result)(x, **attributes(call))
    return tuple(statistics[:, i] for i in range(3))


def moments_backward(
    apply: Any, x: Any, mean: Any, rest: Any, drest: Any, dvariance: Any, *, call: Call
) -> Any:
    """The gradient of the statistics, of what computes `apply`.

    2 / n * dvariance * (x - mean) + drest / n: x with a mean that is given, a variance of 1, and a
    gamma and beta for each group.
    """
    k0, r0, k1, r1 = sizes = call.view.sizes(x.shape)
    gamma, beta = (
        (one / max(r0 * r1, 1)).reshape(k0, k1)
        for one in (2 * dvariance, drest if call.centered else jnp.zeros_like(drest))
    )
    given = (mean, rest, jnp.ones_like(mean))
    (dx,) = apply(x.reshape(sizes), gamma, beta, *given, call=_MERGED)
    return (dx.reshape(x.shape),)


def _native_apply(
    x: Any, gamma: Any, beta: Any, mean: Any, rest: Any, power: Any, *, call: Call
) -> Any:
    compute = jax.ffi.ffi_call("truenorm_apply", jax.ShapeDtypeStruct(x.shape, x.dtype))
    given = jnp.stack([mean, rest, power], -1)
    return (compute(x, gamma, beta, given, **attributes(call)),)


def _native_apply_backward(
    x: Any, gamma: Any, mean: Any, rest: Any, power: Any, dy: Any, *, call: Call
) -> Any:
    like = [jax.ShapeDtypeStruct(one.shape, one.dtype) for one in (x, gamma, gamma)]
    dgiven = jax.ShapeDtypeStruct((*power.shape, 2), power.dtype)
    compute = jax.ffi.ffi_call("truenorm_apply_backward", [*like, dgiven])
    given = jnp.stack([mean, rest, power], -1)
    dx, dgamma, dbeta, dgiven = compute(x, gamma, dy, given, **attributes(call))
    return dx, dgamma, dbeta, dgiven[:, 0], dgiven[:, 0], dgiven[:, 1]


def _groups(x: Any, call: Call) -> int:
    k0, _, k1, _ = call.view.sizes(x.shape)
    return int(k0 * k1)


def _compute_dtype(x: Any) -> Any:
    return jnp.float64 if x.dtype == jnp.float64 else jnp.float32


# --- the primitives and their rules


def _primitive(name: str, types: Callable[..., Any], plain: Any) -> Primitive:
    """A primitive with results of these types, computed by `plain`."""
    made = Primitive(f"truenorm_{name}")
    made.multiple_results = True
    implement(made)
    made.def_abstract_eval(lambda *operands, call: types(*operands, call=call))
    mlir.register_lowering(made, mlir.lower_fun(plain, multiple_results=True))

    def batch(operands: Any, axes: Any, **options: Any) -> Any:
        found = jax.vmap(functools.partial(plain, **options), tuple(axes))(*operands)
        return found, (0,) * len(found)

    batching.primitive_batchers[made] = batch
    return made


class _Half:
    """A function of `primal`, its `tangent` and the transpose of that, `backward`.

    The tangent takes the residuals, which `kept` makes of the operands and results, and the
    operands' tangents; it is that of all but the first `constant` results. The backward primitive
    takes the residuals and cotangents.
    """

    def __init__(
        self,
        primal: Primitive,
        tangent: Primitive,
        backward: Primitive,
        plain_tangent: Any,
        plain_backward: Any,
        kept: Callable[[Any, Any], tuple[Any, ...]],
        residual_count: int,
        constant: int,
    ) -> None:
        self.primal = primal
        self.backward = backward

        def primal_jvp(primals: Any, tangents: Any, **options: Any) -> Any:
            results = primal.bind(*primals, **options)
            given = (ad.instantiate_zeros(one) for one in tangents)
            found = bind(tangent, *kept(primals, results), *given, **options)
            zeros = [ad.Zero(jax.typeof(one).to_tangent_aval()) for one in results[:constant]]
            return results, [*zeros, *found]

        def jvp_of(made: Primitive, plain: Any) -> Any:
            def jvp(primals: Any, tangents: Any, **options: Any) -> Any:
                given = tuple(ad.instantiate_zeros(one) for one in tangents)
                _, found = jax.jvp(functools.partial(plain, **options), tuple(primals), given)
                return made.bind(*primals, **options), list(found)

            return jvp

        def transpose(cotangents: Any, *operands: Any, **options: Any) -> Any:
            residuals, linear = operands[:residual_count], operands[residual_count:]
            given = (ad.instantiate_zeros(one) for one in cotangents)
            found = bind(backward, *residuals, *given, **options)
            wanted = zip(linear, found, strict=True)
            gradients = [one if ad.is_undefined_primal(to) else None for to, one in wanted]
            return [None] * residual_count + gradients

        ad.primitive_jvps[primal] = primal_jvp
        ad.primitive_jvps[tangent] = jvp_of(tangent, plain_tangent)
        ad.primitive_jvps[backward] = jvp_of(backward, plain_backward)
        ad.primitive_transposes[tangent] = transpose


def _of_groups(x: Any, call: Call) -> Any:
    """The type of one number for each group."""
    sharding = x.sharding.update(spec=PartitionSpec())
    return x.update(shape=(_groups(x, call),), dtype=np.dtype(_compute_dtype(x)), sharding=sharding)


_moments = _Half(
    _primitive("moments", lambda x, call: [_of_groups(x, call)] * 3, plain_moments),
    _primitive(
        "moments_tangent", lambda x, mean, rest, dx, call: [mean, mean], _plain_moments_tangent
    ),
    _primitive(
        "moments_backward",
        lambda x, *operands, call: [x],
        _plain_moments_backward,
    ),
    _plain_moments_tangent,
    _plain_moments_backward,
    lambda operands, results: (operands[0], results[0], results[1]),
    residual_count=3,
    constant=1,
)
_apply = _Half(
    _primitive("apply", lambda x, *operands, call: [x], plain_apply),
    _primitive("apply_tangent", lambda x, *operands, call: [x], _plain_apply_tangent),
    _primitive(
        "apply_backward",
        lambda x, gamma, mean, rest, power, dy, call: [x, gamma, gamma, mean, rest, power],
        plain_apply_backward,
    ),
    _plain_apply_tangent,
    plain_apply_backward,
    lambda operands, _: (operands[0], operands[1], *operands[3:]),
    residual_count=5,
    constant=0,
)


# --- lowering


def lower_for(platform: str, *kernels: Any) -> None:
    """Lower moments, its backward, apply and its backward to these functions for the platform."""
    for (primitive, plain), fused in zip(_RULES, kernels, strict=True):
        mlir.register_lowering(primitive, on_one_device(plain, fused), platform=platform)


_RULES = (
    (_moments.primal, plain_moments),
    (_moments.backward, _plain_moments_backward),
    (_apply.primal, plain_apply),
    (_apply.backward, plain_apply_backward),
)
lower_for(
    "cpu",
    _native_moments,
    functools.partial(moments_backward, _native_apply),
    _native_apply,
    _native_apply_backward,
)
