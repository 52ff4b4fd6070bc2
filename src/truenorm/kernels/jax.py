"""The native kernels under JAX: primitives with the rules of JAX's transformations.

From outside in: a derivative rule, a batching rule, partitioning over devices, and XLA's foreign
function call. Three primitives carry the whole:

    forward(x, gamma, beta) -> y, statistics
    tangent(x, gamma, statistics; dx, dgamma, dbeta) -> dy      linear in the last three
    backward(x, gamma, dy, statistics) -> dx, dgamma, dbeta     the transpose of `tangent`

`statistics` are a function of x. Their own tangent is zero by convention: a rule that
differentiates one of the primitives does so through x. Higher derivatives are those of the plain
formula. Where XLA compiles for another device than a CPU, or exports a program, the primitives are
lowered to the plain formula.
"""

import contextlib
import ctypes
import functools
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import core  # see _alike
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding, PartitionSpec

from truenorm.kernels import library
from truenorm.kernels.recipe import recipe
from truenorm.view import View

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
        for name in ("forward", "backward"):
            handler = jax.ffi.pycapsule(getattr(binding, f"truenorm_jax_{name}"))
            jax.ffi.register_ffi_target(f"truenorm_{name}", handler, platform="cpu")
    except Exception as error:
        return f"the native kernels for JAX do not load: {error}"
    return None


def unsupported(x: Any, gamma: Any, beta: Any, view: View) -> str | None:
    """Why the kernels cannot compute this call, or None if they can."""
    if x.dtype.name not in _DTYPES:
        return f"x is of dtype {x.dtype.name}; the native kernels take {', '.join(_DTYPES)}"
    if not all(isinstance(size, int) for size in x.shape):
        return f"x has the shape {x.shape}, which is not known when the function is traced"
    if not isinstance(x, jax.core.Tracer) and any(
        device.platform != "cpu" for device in x.devices()
    ):
        return f"x is on {x.devices()}; the native kernels serve CPU arrays"
    return None


def normalize(
    x: jax.Array,
    gamma: jax.Array | None,
    beta: jax.Array | None,
    view: View,
    *,
    epsilon: float,
    centered: bool,
) -> jax.Array:
    """Normalize as `plain.normalize` does, through the primitives."""
    per_sample = any(
        one is not None and len(one.shape) > len(view.parameter_axes) for one in (gamma, beta)
    )
    if per_sample:
        view = view.vary_over(0)
    compute = _compute_dtype(x)
    shape = view.parameter_shape(x.shape)
    gamma = jnp.ones(shape, compute) if gamma is None else gamma.astype(compute)
    beta = jnp.zeros(shape, compute) if beta is None else beta.astype(compute)
    how = recipe(view, False)
    permuted = view.permuted(how.order)
    lead = int(view.has_samples)
    options = {"view": permuted, "lead": lead, "epsilon": epsilon, "centered": centered}
    gamma, beta = (one.transpose(how.parameter_order) for one in (gamma, beta))
    x = x.transpose(how.order) if how.permutes else x
    y, _ = _bind(forward_p, x, gamma, beta, **options)
    return y.transpose(how.inverse) if how.permutes else y


def _compute_dtype(x: Any) -> Any:
    return jnp.float64 if x.dtype == jnp.float64 else jnp.float32


def _plain(view: View, epsilon: float, centered: bool) -> Any:
    """The same function of x, gamma and beta in the plain formula."""
    from truenorm import plain

    def normalize(x: Any, gamma: Any, beta: Any) -> Any:
        return plain.normalize(x, gamma, beta, view, epsilon=epsilon, centered=centered)

    return normalize


# --- the foreign function calls


def _attributes(view: View, epsilon: float, centered: bool) -> dict[str, Any]:
    how = recipe(view, False)
    return {
        "factors": np.array(how.factors, np.int64),
        "groups": np.int64(how.groups),
        "epsilon": np.float64(epsilon),
        "centered": bool(centered),
    }


def _forward_shapes(x: Any, gamma: Any, beta: Any, *, view: View, lead: int) -> list[Any]:
    """y, and three statistics for each group: (..., groups of a sample, 3)."""
    one_sample = (1,) * lead + tuple(x.shape[lead:])
    k0, _, k1, _ = view.sizes(one_sample)
    statistics = (*x.shape[:lead], k0 * k1, 3)
    return [
        jax.ShapeDtypeStruct(x.shape, x.dtype),
        jax.ShapeDtypeStruct(statistics, gamma.dtype),
    ]


def _forward_call(x: Any, gamma: Any, beta: Any, *, view: View, lead: int, **options: Any) -> Any:
    results = _forward_shapes(x, gamma, beta, view=view, lead=lead)
    call = jax.ffi.ffi_call("truenorm_forward", results)
    return tuple(call(x, gamma, beta, **_attributes(view, **options)))


def _backward_call(
    x: Any, gamma: Any, dy: Any, statistics: Any, *, view: View, lead: int, **options: Any
) -> Any:
    results = [jax.ShapeDtypeStruct(one.shape, one.dtype) for one in (x, gamma, gamma)]
    call = jax.ffi.ffi_call("truenorm_backward", results)
    return tuple(call(x, gamma, dy, statistics, **_attributes(view, **options)))


# --- partitioning: the leading kept axes may be split over devices, all others are whole


def _leading_spec(shape: Any, lead: int) -> list[Any]:
    """The mesh axes over which an operand's leading axes are split."""
    sharding = shape.sharding
    spec = list(sharding.spec) if isinstance(sharding, NamedSharding) else []
    return (spec + [None] * lead)[:lead]


def _specs(
    x_shape: Any, gamma_shape: Any, view: View, lead: int
) -> tuple[Any, Any, tuple[str, ...]]:
    """The partition specs of x and of gamma, and the mesh axes that split x but not gamma."""
    leading = _leading_spec(x_shape, lead)
    varying = [axis for axis in view.parameter_axes if axis < lead]
    gamma = PartitionSpec(*(leading[axis] for axis in varying))
    names: list[str] = []
    for axis, mesh_axes in enumerate(leading):
        if axis not in varying and mesh_axes is not None:
            names += [mesh_axes] if isinstance(mesh_axes, str) else list(mesh_axes)
    return PartitionSpec(*leading), gamma, tuple(names)


def _rule(view: View, lead: int, signature: str) -> dict[str, Any]:
    """Shardy's rule: leading axes are split alike in all operands, all others are not split.

    `signature` names the operands and results: x (or y, of its shape), p (a parameter) and s.
    """
    leading = [f"n{i}" for i in range(lead)]
    others = [f"x{i}" for i in range(view.rank - lead)]
    gamma = [(leading + others)[axis] for axis in view.parameter_axes]
    spelled = {"x": leading + others, "p": gamma, "s": [*leading, "g", "t"]}
    sides = [", ".join(" ".join(spelled[one]) for one in side) for side in signature.split("->")]
    return {"sharding_rule": " -> ".join(sides), "need_replication_factors": (*others, "g", "t")}


@functools.lru_cache(maxsize=1024)
def _partitioned_forward(view: View, lead: int, epsilon: float, centered: bool) -> Any:
    def call(x: Any, gamma: Any, beta: Any) -> Any:
        return _forward_call(
            x, gamma, beta, view=view, lead=lead, epsilon=epsilon, centered=centered
        )

    def partition(mesh: Any, arguments: Any, results: Any) -> Any:
        x, gamma, _ = _specs(arguments[0], arguments[1], view, lead)
        x, gamma = NamedSharding(mesh, x), NamedSharding(mesh, gamma)
        return mesh, call, (x, x), (x, gamma, gamma)

    def infer(mesh: Any, arguments: Any, results: Any) -> Any:
        x, _, _ = _specs(arguments[0], arguments[1], view, lead)
        return NamedSharding(mesh, x), NamedSharding(mesh, x)

    partitioned = custom_partitioning(call)
    partitioned.def_partition(
        partition, infer_sharding_from_operands=infer, **_rule(view, lead, "xpp->xs")
    )
    return partitioned


@functools.lru_cache(maxsize=1024)
def _partitioned_backward(view: View, lead: int, epsilon: float, centered: bool) -> Any:
    def call(x: Any, gamma: Any, dy: Any, statistics: Any) -> Any:
        options = {"epsilon": epsilon, "centered": centered}
        return _backward_call(x, gamma, dy, statistics, view=view, lead=lead, **options)

    def partition(mesh: Any, arguments: Any, results: Any) -> Any:
        x, gamma, names = _specs(arguments[0], arguments[1], view, lead)

        def local(*operands: Any) -> Any:
            dx, dgamma, dbeta = call(*operands)
            if names:
                dgamma, dbeta = jax.lax.psum((dgamma, dbeta), names)
            return dx, dgamma, dbeta

        x, gamma = NamedSharding(mesh, x), NamedSharding(mesh, gamma)
        return mesh, local, (x, gamma, gamma), (x, gamma, x, x)

    def infer(mesh: Any, arguments: Any, results: Any) -> Any:
        x, gamma, _ = _specs(arguments[0], arguments[1], view, lead)
        return tuple(NamedSharding(mesh, one) for one in (x, gamma, gamma))

    partitioned = custom_partitioning(call)
    partitioned.def_partition(
        partition, infer_sharding_from_operands=infer, **_rule(view, lead, "xpxs->xpp")
    )
    return partitioned


# --- the plain formula of each primitive: other devices, exported programs, higher derivatives


def _plain_forward(x: Any, gamma: Any, beta: Any, *, view: View, lead: int, **options: Any) -> Any:
    _, statistics = _forward_shapes(x, gamma, beta, view=view, lead=lead)
    # Nobody reads them: the plain gradient takes its own.
    return _plain(view, **options)(x, gamma, beta), jnp.zeros(statistics.shape, statistics.dtype)


def _plain_backward(
    x: Any, gamma: Any, dy: Any, statistics: Any, *, view: View, lead: int, **options: Any
) -> Any:
    _, pullback = jax.vjp(_plain(view, **options), x, gamma, jnp.zeros_like(gamma))
    return pullback(dy)


def _plain_tangent(
    x: Any, gamma: Any, statistics: Any, *tangents: Any, view: View, lead: int, **options: Any
) -> Any:
    primals = (x, gamma, jnp.zeros_like(gamma))
    return jax.jvp(_plain(view, **options), primals, tangents)[1]


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


def _bind(primitive: Primitive, *operands: Any, **options: Any) -> Any:
    """Bind a primitive to operands that vary over the same devices, as the rules below have it."""
    return primitive.bind(*_alike(*operands), **options)


def _implement(primitive: Primitive) -> None:
    """Evaluate outside of jit by compiling the call, as JAX's own operations do."""

    @functools.lru_cache(maxsize=1024)
    def compiled(options: tuple[tuple[str, Any], ...]) -> Any:
        return jax.jit(functools.partial(primitive.bind, **dict(options)))

    primitive.def_impl(lambda *operands, **options: compiled(tuple(options.items()))(*operands))


for _primitive in (forward_p, backward_p, tangent_p):
    _implement(_primitive)


@forward_p.def_abstract_eval
def _(x: Any, gamma: Any, beta: Any, *, view: View, lead: int, **options: Any) -> Any:
    _, statistics = _forward_shapes(x, gamma, beta, view=view, lead=lead)
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


def _lowering(plain: Any, native: Any, partitioned: Any) -> Any:
    """The lowering for CPUs: the kernels, or the plain formula in a program that is exported."""

    def on_devices(*operands: Any, **options: Any) -> Any:
        return partitioned(**options)(*operands)

    def lower(context: Any, *operands: Any, **options: Any) -> Any:
        module, devices = context.module_context, context.module_context.axis_context
        if module.lowering_parameters.for_export:
            chosen = plain
        elif getattr(devices, "num_devices", None) == 1:
            chosen = native
        elif getattr(devices, "device_assignment", ()) is None:
            chosen = plain  # partitioning must know the devices, and this JAX does not tell them
        else:
            chosen = on_devices
        return mlir.lower_fun(chosen, multiple_results=True)(context, *operands, **options)

    return lower


mlir.register_lowering(forward_p, mlir.lower_fun(_plain_forward, multiple_results=True))
mlir.register_lowering(backward_p, mlir.lower_fun(_plain_backward, multiple_results=True))
mlir.register_lowering(tangent_p, mlir.lower_fun(_plain_tangent, multiple_results=False))
mlir.register_lowering(
    forward_p, _lowering(_plain_forward, _forward_call, _partitioned_forward), platform="cpu"
)
mlir.register_lowering(
    backward_p, _lowering(_plain_backward, _backward_call, _partitioned_backward), platform="cpu"
)


with contextlib.suppress(ImportError, AttributeError):
    # JAX tells a lowering rule the devices only where it was asked to; there is no public way.
    from jax._src.dispatch import prim_requires_devices_during_lowering

    prim_requires_devices_during_lowering.update({forward_p, backward_p})


# --- derivatives


def _forward_jvp(primals: Any, tangents: Any, **options: Any) -> Any:
    y, statistics = forward_p.bind(*primals, **options)
    x, gamma, _ = primals
    given = (ad.instantiate_zeros(one) for one in tangents)
    dy = _bind(tangent_p, x, gamma, statistics, *given, **options)
    return [y, statistics], [dy, ad.Zero(jax.typeof(statistics).to_tangent_aval())]


def _tangent_jvp(primals: Any, tangents: Any, **options: Any) -> Any:
    def function(*operands: Any) -> Any:
        return _plain_tangent(*operands, **options)

    given = tuple(ad.instantiate_zeros(one) for one in tangents)
    # Linear in the last three operands; in x and gamma the plain formula is differentiated.
    _, dy = jax.jvp(function, tuple(primals), given)
    return tangent_p.bind(*primals, **options), dy


def _tangent_transpose(
    cotangent: Any, x: Any, gamma: Any, statistics: Any, *linear: Any, **options: Any
) -> Any:
    if isinstance(cotangent, ad.Zero):
        return [None] * 3 + [ad.Zero(one.aval) for one in linear]
    found = _bind(backward_p, x, gamma, cotangent, statistics, **options)
    wanted = zip(linear, found, strict=True)
    return [None] * 3 + [one if ad.is_undefined_primal(to) else None for to, one in wanted]


def _backward_jvp(primals: Any, tangents: Any, **options: Any) -> Any:
    def function(*operands: Any) -> Any:
        return _plain_backward(*operands, **options)

    given = tuple(ad.instantiate_zeros(one) for one in tangents)
    _, found = jax.jvp(function, tuple(primals), given)
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


def _forward_batch(operands: Any, axes: Any, *, view: View, lead: int, **options: Any) -> Any:
    parameters = any(axis is not None for axis in axes[1:])
    operands = _stack(operands, axes, (True, parameters, parameters))
    view = view.with_leading_axis()
    view = view.vary_over(0) if parameters else view
    return forward_p.bind(*operands, view=view, lead=lead + 1, **options), (0, 0)


def _backward_batch(operands: Any, axes: Any, *, view: View, lead: int, **options: Any) -> Any:
    # Every entry has a gradient of gamma of its own.
    operands = _stack(operands, axes, (True, True, True, True))
    view = view.with_leading_axis().vary_over(0)
    return backward_p.bind(*operands, view=view, lead=lead + 1, **options), (0, 0, 0)


def _tangent_batch(operands: Any, axes: Any, **options: Any) -> Any:
    function = functools.partial(_plain_tangent, **options)
    axes = tuple(None if axis is None else axis for axis in axes)
    return jax.vmap(function, axes)(*operands), 0


batching.primitive_batchers[forward_p] = _forward_batch
batching.primitive_batchers[backward_p] = _backward_batch
batching.primitive_batchers[tangent_p] = _tangent_batch
