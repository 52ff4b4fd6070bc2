"""The native kernels as primitives of JAX, with the rules of its transformations.

    forward(x, gamma, beta) -> y, statistics
    tangent(x, gamma, statistics; dx, dgamma, dbeta) -> dy      linear in the last three
    backward(x, gamma, dy, statistics) -> dx, dgamma, dbeta     the transpose of `tangent`

All have the same options: `call`, whose view reads x's axes in their own order, and `lead`: how
many axes are in front that are kept, the samples' and those that vmap adds.

`statistics` are the mean, its rest and the variance of each group: a function of x. Their own
tangent is zero by convention: a rule that differentiates one of the primitives does so through x.
Higher derivatives are those of the plain formula. Where XLA compiles for another device than a
CPU, or exports a program, the primitives are lowered to the plain formula.
"""

import contextlib
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import core  # see _alike
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import PartitionSpec

from truenorm.arrays import jax as arrays
from truenorm.core.call import Call
from truenorm.core.plain import Plain
from truenorm.native import jax_devices
from truenorm.native.recipe import recipe

_plain_engine = Plain(arrays)

# --- the primitives

forward_p = Primitive("truenorm_forward")
forward_p.multiple_results = True
backward_p = Primitive("truenorm_backward")
backward_p.multiple_results = True
tangent_p = Primitive("truenorm_tangent")


# Inside `jax.shard_map` operands that differ from device to device make the others differ too. JAX
# marks that by an operation, whose transpose is the sum over devices; its own operations insert it
# by themselves. The function that does has no public name, and had another one before JAX 0.10; a
# version without either has no native kernels, rather than gradients of one device.
_alike: Any = getattr(core, "auto_insert_reshard", None) or core.standard_insert_pvary


def bind(primitive: Primitive, *operands: Any, **options: Any) -> Any:
    """Bind a primitive to operands that vary over the same devices, as the rules below have it."""
    return primitive.bind(*_alike(*operands), **options)


def forward(
    call: Call, lead: int, x: jax.Array, gamma: jax.Array, beta: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The primitive's y and statistics; gamma and beta are of the dtype of the math."""
    y, statistics = bind(forward_p, x, gamma, beta, call=call, lead=lead)
    return y, statistics


def implement(primitive: Primitive) -> None:
    """Evaluate outside of jit by compiling the call, as JAX's own operations do."""

    @functools.lru_cache(maxsize=1024)
    def compiled(options: tuple[tuple[str, Any], ...]) -> Any:
        return jax.jit(functools.partial(primitive.bind, **dict(options)))

    primitive.def_impl(lambda *operands, **options: compiled(tuple(options.items()))(*operands))


for _primitive in (forward_p, backward_p, tangent_p):
    implement(_primitive)


# --- types


def forward_shapes(x: Any, gamma: Any, call: Call, lead: int) -> list[Any]:
    """y, and three statistics for each group: (..., groups of a sample, 3)."""
    one_sample = (1,) * lead + tuple(x.shape[lead:])
    k0, _, k1, _ = call.view.sizes(one_sample)
    statistics = (*x.shape[:lead], k0 * k1, 3)
    return [
        jax.ShapeDtypeStruct(x.shape, x.dtype),
        jax.ShapeDtypeStruct(statistics, gamma.dtype),
    ]


@forward_p.def_abstract_eval
def _(x: Any, gamma: Any, beta: Any, *, call: Call, lead: int) -> Any:
    _, statistics = forward_shapes(x, gamma, call, lead)
    # Where the sharding is a part of the type, that of x's leading axes is that of the statistics.
    spec = PartitionSpec(*x.sharding.spec[:lead])
    sharding = x.sharding.update(spec=spec)
    return [x, x.update(shape=statistics.shape, dtype=statistics.dtype, sharding=sharding)]


@backward_p.def_abstract_eval
def _(x: Any, gamma: Any, dy: Any, statistics: Any, **options: Any) -> Any:
    return [x, gamma, gamma]


@tangent_p.def_abstract_eval
def _(x: Any, *operands: Any, **options: Any) -> Any:
    return x


# --- the foreign function calls: what one device computes


def attributes(call: Call) -> dict[str, Any]:
    """What the foreign functions are told of a call."""
    how = recipe(call.view)
    return {
        "factors": np.array(how.factors, np.int64),
        "groups": np.int64(how.groups),
        "epsilon": np.float64(call.epsilon),
        "centered": bool(call.centered),
    }


def _forward_call(x: Any, gamma: Any, beta: Any, *, call: Call, lead: int) -> Any:
    results = forward_shapes(x, gamma, call, lead)
    compute = jax.ffi.ffi_call("truenorm_forward", results)
    return tuple(compute(x, gamma, beta, **attributes(call)))


def _backward_call(x: Any, gamma: Any, dy: Any, statistics: Any, *, call: Call, lead: int) -> Any:
    results = [jax.ShapeDtypeStruct(one.shape, one.dtype) for one in (x, gamma, gamma)]
    compute = jax.ffi.ffi_call("truenorm_backward", results)
    return tuple(compute(x, gamma, dy, statistics, **attributes(call)))


# --- the plain formula of each primitive: other devices, exported programs, higher derivatives


def _function(call: Call) -> Any:
    """The plain formula as a function of x, gamma and beta."""
    return functools.partial(_plain_engine.normalize, call)


def plain_forward(x: Any, gamma: Any, beta: Any, *, call: Call, lead: int) -> Any:
    """The primitive's y and statistics."""
    _, shape = forward_shapes(x, gamma, call, lead)
    y, statistics = _plain_engine.measure(call, x, gamma, beta)
    return y, jnp.stack(statistics[:3], -1).reshape(shape.shape)


def plain_backward(x: Any, gamma: Any, dy: Any, statistics: Any, *, call: Call, lead: int) -> Any:
    """The gradients, whatever the statistics."""
    _, pullback = jax.vjp(_function(call), x, gamma, jnp.zeros_like(gamma))
    return pullback(dy)


def _plain_tangent(
    x: Any, gamma: Any, statistics: Any, *tangents: Any, call: Call, lead: int
) -> Any:
    primals = (x, gamma, jnp.zeros_like(gamma))
    return jax.jvp(_function(call), primals, tangents)[1]


# --- lowering: kernels, on one device or on many, where there are some; else the plain formula


def _lowering(plain: Any, fused: Any, split: Any) -> Any:
    """The lowering to kernels, or to the plain formula in a program that is exported."""

    def on_devices(*operands: Any, **options: Any) -> Any:
        return split(fused, **options)(*operands)

    def lower(context: Any, *operands: Any, **options: Any) -> Any:
        module, devices = context.module_context, context.module_context.axis_context
        if module.lowering_parameters.for_export:
            chosen = plain
        elif getattr(devices, "num_devices", None) == 1:
            chosen = fused
        elif not options["lead"]:
            chosen = plain  # the statistics are over devices: XLA adds up what each has
        elif getattr(devices, "device_assignment", ()) is None:
            chosen = plain  # partitioning must know the devices, and this JAX does not tell them
        else:
            chosen = on_devices
        return mlir.lower_fun(chosen, multiple_results=True)(context, *operands, **options)

    return lower


def on_one_device(plain: Any, fused: Any) -> Any:
    """The lowering to kernels on one device alone, and not in a program that is exported."""

    def lower(context: Any, *operands: Any, **options: Any) -> Any:
        module = context.module_context
        alone = getattr(module.axis_context, "num_devices", None) == 1
        chosen = fused if alone and not module.lowering_parameters.for_export else plain
        return mlir.lower_fun(chosen, multiple_results=True)(context, *operands, **options)

    return lower


_RULES = (
    (forward_p, plain_forward, jax_devices.forward),
    (backward_p, plain_backward, jax_devices.backward),
)


def lower_for(platform: str, forward: Any, backward: Any) -> None:
    """Lower the primitives to these functions where XLA compiles for the platform."""
    for (primitive, plain, split), fused in zip(_RULES, (forward, backward), strict=True):
        mlir.register_lowering(primitive, _lowering(plain, fused, split), platform=platform)


for _primitive, _plain, _ in _RULES:
    mlir.register_lowering(_primitive, mlir.lower_fun(_plain, multiple_results=True))
lower_for("cpu", _forward_call, _backward_call)
mlir.register_lowering(tangent_p, mlir.lower_fun(_plain_tangent, multiple_results=False))

with contextlib.suppress(ImportError, AttributeError):
    # JAX tells a lowering rule the devices only where it was asked to; there is no public way.
    from jax._src.dispatch import prim_requires_devices_during_lowering

    prim_requires_devices_during_lowering.update({forward_p, backward_p})


# --- derivatives


def _forward_jvp(primals: Any, tangents: Any, **options: Any) -> Any:
    y, statistics = forward_p.bind(*primals, **options)
    x, gamma, _ = primals
    given = (ad.instantiate_zeros(one) for one in tangents)
    dy = bind(tangent_p, x, gamma, statistics, *given, **options)
    return [y, statistics], [dy, ad.Zero(jax.typeof(statistics).to_tangent_aval())]


def _tangent_jvp(primals: Any, tangents: Any, **options: Any) -> Any:
    given = tuple(ad.instantiate_zeros(one) for one in tangents)
    # Linear in the last three operands; in x and gamma the plain formula is differentiated.
    _, dy = jax.jvp(functools.partial(_plain_tangent, **options), tuple(primals), given)
    return tangent_p.bind(*primals, **options), dy


def _tangent_transpose(
    cotangent: Any, x: Any, gamma: Any, statistics: Any, *linear: Any, **options: Any
) -> Any:
    if isinstance(cotangent, ad.Zero):
        return [None] * 3 + [ad.Zero(one.aval) for one in linear]
    found = bind(backward_p, x, gamma, cotangent, statistics, **options)
    wanted = zip(linear, found, strict=True)
    return [None] * 3 + [one if ad.is_undefined_primal(to) else None for to, one in wanted]


def _backward_jvp(primals: Any, tangents: Any, **options: Any) -> Any:
    given = tuple(ad.instantiate_zeros(one) for one in tangents)
    _, found = jax.jvp(functools.partial(plain_backward, **options), tuple(primals), given)
    return backward_p.bind(*primals, **options), list(found)


ad.primitive_jvps[forward_p] = _forward_jvp
ad.primitive_jvps[tangent_p] = _tangent_jvp
ad.primitive_transposes[tangent_p] = _tangent_transpose
ad.primitive_jvps[backward_p] = _backward_jvp


# --- vmap: a mapped axis is one more kept axis in front, along which gamma may vary


def _stack(operands: Any, axes: Any, mapped: Any) -> Any:
    """Operands with the mapped axis in front: of length one in those that are not mapped."""
    size = next(
        one.shape[axis] for one, axis in zip(operands, axes, strict=True) if axis is not None
    )
    return [
        jnp.moveaxis(one, axis, 0)
        if axis is not None
        else jnp.broadcast_to(one, (size, *one.shape))
        if wanted
        else one
        for one, axis, wanted in zip(operands, axes, mapped, strict=True)
    ]


def _forward_batch(operands: Any, axes: Any, *, call: Call, lead: int) -> Any:
    parameters = any(axis is not None for axis in axes[1:])
    operands = _stack(operands, axes, (True, parameters, parameters))
    call = _stacked(call, varies=parameters)
    return forward_p.bind(*operands, call=call, lead=lead + 1), (0, 0)


def _backward_batch(operands: Any, axes: Any, *, call: Call, lead: int) -> Any:
    # Every entry has a gradient of gamma of its own.
    operands = _stack(operands, axes, (True, True, True, True))
    call = _stacked(call, varies=True)
    return backward_p.bind(*operands, call=call, lead=lead + 1), (0, 0, 0)


def _stacked(call: Call, varies: bool) -> Call:
    """The call for a stack of inputs, along which gamma and beta vary or not."""
    view = call.view.with_leading_axis()
    return dataclasses.replace(call, view=view.vary_over(0) if varies else view)


def _tangent_batch(operands: Any, axes: Any, **options: Any) -> Any:
    mapped = jax.vmap(functools.partial(_plain_tangent, **options), tuple(axes))
    return mapped(*operands), 0


batching.primitive_batchers[forward_p] = _forward_batch
batching.primitive_batchers[backward_p] = _backward_batch
batching.primitive_batchers[tangent_p] = _tangent_batch
