"""A normalization with its residual and its activation as one primitive of JAX, for GPUs.

    forward(x, gamma, beta) -> y, statistics
    forward(x, gamma, beta, residual) -> y, statistics, s             s = x + residual
    tangent(s, gamma, beta, statistics; ds, dgamma, dbeta) -> dy      linear in the last three
    backward(s, gamma, beta, dy, statistics) -> ds, dgamma, dbeta     the transpose of `tangent`

As those of `native/jax_primitives.py`, but the gradient of the activation asks for beta too. Where
XLA compiles for one CUDA device they become kernels; elsewhere, on several devices, under vmap, in
exported programs and for higher derivatives they are the plain formula and what stands around it.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import PartitionSpec

from truenorm.arrays import jax as arrays
from truenorm.core.activation import HALF, activate, add
from truenorm.core.call import Call
from truenorm.core.plain import Plain
from truenorm.native.jax_primitives import bind, implement, on_one_device
from truenorm.triton import jax_kernels

_plain = Plain(arrays)

forward_p = Primitive("truenorm_gpu_forward")
forward_p.multiple_results = True
backward_p = Primitive("truenorm_gpu_backward")
backward_p.multiple_results = True
tangent_p = Primitive("truenorm_gpu_tangent")

for _primitive in (forward_p, backward_p, tangent_p):
    implement(_primitive)


def forward(call: Call, x: Any, gamma: Any, beta: Any, *residual: Any) -> Any:
    """The activated y, the statistics, and s where there is a residual; gamma and beta are of the
    math's dtype.
    """
    return bind(forward_p, x, gamma, beta, *residual, call=call)


# --- types


def _groups(call: Call, x: Any) -> int:
    k0, _, k1, _ = call.view.sizes(x.shape)
    return int(k0 * k1)


@forward_p.def_abstract_eval
def _(x: Any, gamma: Any, beta: Any, *residual: Any, call: Call) -> Any:
    shape = (_groups(call, x), 3)
    whole = x.sharding.update(spec=PartitionSpec(None, None))
    return [x, x.update(shape=shape, dtype=gamma.dtype, sharding=whole), *residual]


@backward_p.def_abstract_eval
def _(x: Any, gamma: Any, beta: Any, *operands: Any, call: Call) -> Any:
    return [x, gamma, beta]


@tangent_p.def_abstract_eval
def _(x: Any, *operands: Any, call: Call) -> Any:
    return x


# --- the plain formula of each


def _function(call: Call) -> Any:
    """y as a function of x, gamma and beta, rounded once."""

    def function(x: Any, gamma: Any, beta: Any) -> Any:
        wide = x.astype(jnp.float32) if x.dtype.name in HALF else x
        y = _plain.normalize(call.alone or call, wide, gamma, beta)
        return activate(arrays, call.activation, y).astype(x.dtype)

    return function


def _plain_forward(x: Any, gamma: Any, beta: Any, *residual: Any, call: Call) -> Any:
    s = tuple(add(arrays, x, one) for one in residual)
    (x,) = s or (x,)
    wide = x.astype(jnp.float32) if x.dtype.name in HALF else x
    y, statistics = _plain.measure(call.alone or call, wide, gamma, beta)
    y = activate(arrays, call.activation, y).astype(x.dtype)
    return y, jnp.stack(statistics[:3], -1), *s


def _plain_backward(x: Any, gamma: Any, beta: Any, dy: Any, statistics: Any, *, call: Call) -> Any:
    return jax.vjp(_function(call), x, gamma, beta)[1](dy)


def _plain_tangent(
    x: Any, gamma: Any, beta: Any, statistics: Any, *tangents: Any, call: Call
) -> Any:
    return jax.jvp(_function(call), (x, gamma, beta), tangents)[1]


# --- lowering


def _forward(x: Any, gamma: Any, beta: Any, *residual: Any, call: Call) -> Any:
    shapes = (x, jax.ShapeDtypeStruct((_groups(call, x), 3), gamma.dtype), *residual)
    found = jax_kernels.forward(call, x, gamma, beta, shapes, *residual)
    return _plain_forward(x, gamma, beta, *residual, call=call) if found is None else found


def _backward(x: Any, gamma: Any, beta: Any, dy: Any, statistics: Any, *, call: Call) -> Any:
    operands = (x, gamma, beta, dy, statistics)
    found = jax_kernels.backward(call, *operands)
    return _plain_backward(*operands, call=call) if found is None else found


_RULES = ((forward_p, _plain_forward, _forward), (backward_p, _plain_backward, _backward))


def lower_for(platform: str) -> None:
    """Lower the primitives to kernels where XLA compiles for the platform."""
    for primitive, plain, fused in _RULES:
        mlir.register_lowering(primitive, on_one_device(plain, fused), platform=platform)


for _primitive, _formula, _ in _RULES:
    mlir.register_lowering(_primitive, mlir.lower_fun(_formula, multiple_results=True))
mlir.register_lowering(tangent_p, mlir.lower_fun(_plain_tangent, multiple_results=False))
lower_for("cuda")


# --- derivatives


def _forward_jvp(primals: Any, tangents: Any, *, call: Call) -> Any:
    y, statistics, *s = forward_p.bind(*primals, call=call)
    ds, dgamma, dbeta, *residual = (ad.instantiate_zeros(one) for one in tangents)
    for one in residual:
        ds = ds + one
    normalized = s[0] if s else primals[0]
    parameters = primals[1:3]
    dy = bind(tangent_p, normalized, *parameters, statistics, ds, dgamma, dbeta, call=call)
    constant = ad.Zero(jax.typeof(statistics).to_tangent_aval())
    return [y, statistics, *s], [dy, constant, *([ds] if s else [])]


def _tangent_jvp(primals: Any, tangents: Any, *, call: Call) -> Any:
    given = tuple(ad.instantiate_zeros(one) for one in tangents)
    _, dy = jax.jvp(functools.partial(_plain_tangent, call=call), tuple(primals), given)
    return tangent_p.bind(*primals, call=call), dy


def _tangent_transpose(
    dy: Any, x: Any, gamma: Any, beta: Any, statistics: Any, *linear: Any, call: Call
) -> Any:
    if isinstance(dy, ad.Zero):
        return [None] * 4 + [ad.Zero(one.aval) for one in linear]
    found = bind(backward_p, x, gamma, beta, dy, statistics, call=call)
    wanted = zip(linear, found, strict=True)
    return [None] * 4 + [one if ad.is_undefined_primal(to) else None for to, one in wanted]


def _backward_jvp(primals: Any, tangents: Any, *, call: Call) -> Any:
    given = tuple(ad.instantiate_zeros(one) for one in tangents)
    _, found = jax.jvp(functools.partial(_plain_backward, call=call), tuple(primals), given)
    return backward_p.bind(*primals, call=call), list(found)


ad.primitive_jvps[forward_p] = _forward_jvp
ad.primitive_jvps[tangent_p] = _tangent_jvp
ad.primitive_transposes[tangent_p] = _tangent_transpose
ad.primitive_jvps[backward_p] = _backward_jvp


# --- vmap


def _batched(plain: Any, multiple: bool) -> Any:
    def rule(operands: Any, axes: Any, *, call: Call) -> Any:
        found = jax.vmap(functools.partial(plain, call=call), tuple(axes))(*operands)
        return (found, (0,) * len(found)) if multiple else (found, 0)

    return rule


batching.primitive_batchers[forward_p] = _batched(_plain_forward, True)
batching.primitive_batchers[backward_p] = _batched(_plain_backward, True)
batching.primitive_batchers[tangent_p] = _batched(_plain_tangent, False)
