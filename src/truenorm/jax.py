"""truenorm for JAX: the normalizations as pure functions of arrays.

Each computes

    y = scale * (x - mean) / sqrt(variance + epsilon) + bias

with statistics over the part of x that `core/kinds.py` says, under jit, grad, vmap, scan, shard_map
and their kin. It needs jax and NumPy, and no Keras; `truenorm.flax` has modules of flax.nnx.
"""

import functools
import numbers
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, auto_axes

from truenorm import native, triton
from truenorm.arrays import jax as arrays
from truenorm.core import arguments, batch, engine
from truenorm.core import tlu as thresholded
from truenorm.core.call import Call
from truenorm.core.kinds import KINDS
from truenorm.core.plain import Plain

__all__ = [
    "batch_norm",
    "filter_response_norm",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "rms_norm",
    "tlu",
]

Array: TypeAlias = jax.Array
Result: TypeAlias = Array | Any  # an Array, or with a residual a pair of them

FRONT = engine.Front(arrays, (triton.engine("jax"), native.engine("jax"), Plain(arrays)))
_NAMES = arguments.Names(gamma="scale", beta="bias", groups="num_groups")


def _placed_by_the_compiler(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let the compiler place what is between on a mesh with explicit axes, as `jax.make_mesh`'s.

    Otherwise each reshape of a sharded axis would be refused. Results are sharded as x is, the
    statistics as mean is, or whole on each device where there is none.
    """

    @functools.wraps(function)
    def run(x: Array, *args: Any, **kwargs: Any) -> Any:
        sharding = jax.typeof(x).sharding if isinstance(x, jax.Array) else None
        if sharding is None or not sharding.mesh.explicit_axes:
            return function(x, *args, **kwargs)
        leaves, tree = jax.tree.flatten(((x, *args), kwargs))
        where = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]

        def on_arrays(*given: Array) -> Any:
            all_of_them = list(leaves)
            for i, array in zip(where, given, strict=True):
                all_of_them[i] = array
            args, kwargs = jax.tree.unflatten(tree, all_of_them)
            return function(*args, **kwargs)

        out: Any = sharding
        if function.__name__ == "batch_norm":
            mean = kwargs.get("mean", args[2] if len(args) > 2 else None)
            of_mean = jax.typeof(mean).sharding if isinstance(mean, jax.Array) else sharding
            known = isinstance(mean, jax.Array) and of_mean.mesh.explicit_axes
            out = sharding, of_mean if known else NamedSharding(sharding.mesh, PartitionSpec())
        return auto_axes(on_arrays, axes=sharding.mesh.explicit_axes, out_sharding=out)(
            *(leaves[i] for i in where)
        )

    return run


@_placed_by_the_compiler
def group_norm(
    x: Array,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    num_groups: int = 32,
    axis: int = -1,
    epsilon: float = 1e-6,
    mask: Array | None = None,
    activation: str | None = None,
    residual: Array | None = None,
    implementation: str | None = None,
) -> Result:
    """Normalize each sample's channels in groups (Wu and He, 2018, arXiv:1803.08494).

    Args:
        x: float array (N, ..., C).
        scale: (C,), or (N, C) with one row per sample; None is one.
        bias: shaped like scale; None is zero.
        num_groups: a divisor of C, or -1 for one group per channel.
        axis: the channel axis: 1 for (N, C, H, W). With 0, or rank 1, x is one sample.
        epsilon: added to the variance, in units of x squared; not negative.
        mask: boolean. Its shape is the beginning of x's, (N,), (N, T), ..., or has x's rank and
            broadcasts to it. Elements where it is False stay out of the statistics, but are
            normalized with them.
        activation: None, "relu", "silu", "gelu" (exact) or "gelu_tanh", applied to the result
            before it is rounded; a name, and so static under jit.
        residual: added to x before; of x's shape and dtype.
        implementation: None, "plain", "native" or "triton"; see `truenorm.use_implementation`.

    Returns:
        An array of x's shape and dtype; with a residual the pair of it and of x + residual, rounded
        to their dtype, which is normalized in the place of x. Statistics and math are in float64
        for float64 and in float32 otherwise. A group with one element, or with none that the mask
        leaves, yields bias.

    Raises:
        ValueError: a shape, axis, number of groups, epsilon or name does not fit, or float64 was
            passed while JAX computes in 32 bits.
        TypeError: x is not floating or of another framework, the residual not of its dtype, the
            mask not boolean, or axis or num_groups not an integer.
        NotImplementedError: the named implementation does not support the call.
    """
    return _compute(
        "group",
        x,
        scale,
        bias,
        mask,
        axis,
        num_groups,
        epsilon,
        implementation,
        activation,
        residual,
    )


@_placed_by_the_compiler
def batch_norm(
    x: Array,
    scale: Array | None = None,
    bias: Array | None = None,
    mean: Array | None = None,
    var: Array | None = None,
    *,
    axis: int | Sequence[int] = -1,
    use_running_average: bool = False,
    momentum: float | Array = 0.99,
    epsilon: float = 1e-5,
    axis_name: Any = None,
    axis_index_groups: Any = None,
    virtual_batch_size: int | None = None,
    renorm: batch.Renorm | None = None,
    unbiased: bool = False,
    mask: Array | None = None,
    activation: str | None = None,
    residual: Array | None = None,
    implementation: str | None = None,
) -> tuple[Result, tuple[Array, Array]]:
    """Normalize each channel over the batch (Ioffe and Szegedy, 2015, arXiv:1502.03167).

    In a sharded jit the statistics are those of the whole array, whatever devices hold of it.

    Args:
        x: float array (N, ..., C).
        scale: (C,); None is one.
        bias: (C,); None is zero.
        mean, var: (C,), the running statistics; inference needs them.
        axis: the channel axis, or several, of whose sizes all these then are.
        use_running_average: normalize with mean and var; else with the batch's own statistics.
        momentum: the share of mean and var in the new ones, a number or an array of one.
        epsilon: added to the variance, in units of x squared; not negative.
        axis_name: of a map over devices, or of several, such as `jax.shard_map` or `jax.pmap` have:
            statistics are taken over all of them, whose masks may hide different numbers.
        axis_index_groups: lists of the indices of those devices that share statistics.
        virtual_batch_size: take statistics over so many samples in turn, and over what is left;
            the running ones move by their average (Hoffer et al., 2017, arXiv:1705.08741).
        renorm: the correction of batch renormalization (Ioffe, 2017, arXiv:1702.03275).
        unbiased: move var by the variance with n - 1 in the denominator.
        mask, activation, residual, implementation: as in `group_norm`; a batch that the mask hides
            whole moves nothing. With use_running_average a mask changes the derivatives alone, of
            what it hides and is not finite.

    Returns:
        What `group_norm` returns, and the pair of the new mean and var: momentum * old +
        (1 - momentum) * batch, constant to every derivative; where none are given, the batch's own;
        with use_running_average, as they were.

    Raises: as `group_norm`; and
        ValueError: mean and var are needed and missing, or of another shape, or virtual batches
            are asked for of all devices.
    """
    x, scale, bias, mask, residual, call = _checked(
        "batch", x, scale, bias, mask, axis, None, epsilon, activation, residual
    )
    mean, var = (
        None if one is None else _array(name, one) for name, one in (("mean", mean), ("var", var))
    )
    shapes = [None if one is None else one.shape for one in (mean, var)]
    arguments.check_moving(
        call, x.shape, shapes[0], shapes[1], use_running_average, ("mean", "var")
    )
    if use_running_average:
        assert mean is not None
        assert var is not None
        y = batch.infer(FRONT, implementation, call, x, mean, var, scale, bias, residual, mask)
        return y, (mean, var)
    devices = None if axis_name is None else f"axis_name={axis_name!r}"
    virtual = arguments.check_virtual(virtual_batch_size, devices)
    gather = functools.partial(_gather, axis_name, axis_index_groups) if axis_name else None
    y, statistics = batch.train(
        FRONT, implementation, call, x, scale, bias, mask, residual,
        gather=gather, virtual=virtual, renorm=renorm,
    )  # fmt: skip
    if mean is None or var is None:
        shape = call.view.parameter_shape(x.shape)
        mean = var = jnp.zeros(shape, statistics.variance.dtype)
        momentum = 0.0
    return y, batch.moved(arrays, mean, var, statistics, 1.0 - momentum, unbiased)


def _gather(axis_name: Any, groups: Any, t: Array) -> Array:
    """The stack of every device's t, the same on all; zeros for those of other groups.

    A sum over devices rather than `jax.lax.all_gather`, whose result counts as another on each.
    """
    place = jnp.arange(jax.lax.axis_size(axis_name)) == jax.lax.axis_index(axis_name)
    mine = jnp.where(place.reshape(-1, *(1,) * t.ndim), t, jnp.zeros((), t.dtype))
    return jax.lax.psum(mine, axis_name, axis_index_groups=groups)


@_placed_by_the_compiler
def instance_norm(
    x: Array,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-6,
    mask: Array | None = None,
    activation: str | None = None,
    residual: Array | None = None,
    implementation: str | None = None,
) -> Result:
    """Normalize each channel of each sample by itself (Ulyanov et al., 2016, arXiv:1607.08022).

    This is `group_norm` with one group per channel, and takes its other arguments.
    """
    return _compute(
        "instance", x, scale, bias, mask, axis, None, epsilon, implementation, activation, residual
    )


@_placed_by_the_compiler
def layer_norm(
    x: Array,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    axis: int | Sequence[int] = -1,
    epsilon: float = 1e-6,
    mask: Array | None = None,
    activation: str | None = None,
    residual: Array | None = None,
    implementation: str | None = None,
) -> Result:
    """Normalize over some axes, at each place of the others (Ba et al., 2016, arXiv:1607.06450).

    Args:
        x: float array of rank 1 or more.
        scale: of the sizes of the normalized axes in ascending order, or that shape after a
            leading N with one entry per sample; None is one.
        bias: shaped like scale; None is zero.
        axis: the normalized axis, or a sequence of them. With 0 among them samples are mixed.
        epsilon: added to the variance, in units of x squared; not negative.
        mask, activation, residual, implementation: as in `group_norm`.

    Returns, raises: as `group_norm`.
    """
    return _compute(
        "layer", x, scale, bias, mask, axis, None, epsilon, implementation, activation, residual
    )


@_placed_by_the_compiler
def rms_norm(
    x: Array,
    scale: Array | None = None,
    *,
    axis: int | Sequence[int] = -1,
    epsilon: float = 1e-6,
    mask: Array | None = None,
    activation: str | None = None,
    residual: Array | None = None,
    implementation: str | None = None,
) -> Result:
    """Divide by the root mean square over some axes (Zhang and Sennrich, arXiv:1910.07467).

    y = scale * x / sqrt(mean(x**2) + epsilon). The arguments, the result and the errors are those
    of `layer_norm`, without bias.
    """
    return _compute(
        "rms", x, scale, None, mask, axis, None, epsilon, implementation, activation, residual
    )


@_placed_by_the_compiler
def filter_response_norm(
    x: Array,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    axis: int | Sequence[int] | None = None,
    epsilon: float | Array = 1e-6,
    mask: Array | None = None,
    activation: str | None = None,
    residual: Array | None = None,
    implementation: str | None = None,
) -> Result:
    """Divide each channel of each sample by its root mean square (arXiv:1911.09737).

    After Singh and Krishnan, 2019: y = scale * x / sqrt(mean(x**2) + epsilon) + bias.

    Args:
        x: float array (N, ..., C), rank 2 or more.
        scale: (C,), or (N, C) with one row per sample; None is one.
        bias: shaped like scale; None is zero.
        axis: the axes over which the mean is taken: all but the batch axis and the channel axis;
            None is all but the first and the last. (2, 3) for (N, C, H, W).
        epsilon: added to the mean square; an array of one number where it is learned.
        mask, activation, residual, implementation: as in `group_norm`.

    Returns, raises: as `group_norm`.
    """
    x = _array("x", x)
    axis = KINDS["frn"].default_axis(x.ndim) if axis is None else axis
    number, learned = epsilon, None
    if not isinstance(epsilon, numbers.Real):
        number, learned = 0.0, _array("epsilon", epsilon)
        if learned.size != 1:
            raise ValueError(f"epsilon has the shape {learned.shape}; it must be one number.")
        learned = learned.reshape(())
    return _compute(
        "frn", x, scale, bias, mask, axis, None, number, implementation, activation, residual,
        learned,
    )  # fmt: skip


@_placed_by_the_compiler
def tlu(x: Array, tau: Array, alpha: Array | None = None, *, axis: int = -1) -> Array:
    """Thresholded linear unit, max(x, tau), with a tau for each channel (arXiv:1911.09737).

    After Singh and Krishnan, 2019. With alpha the threshold is alpha * x + tau.

    Args:
        x: float array (N, ..., C).
        tau, alpha: (C,).
        axis: the channel axis.

    Returns:
        An array of x's shape and dtype, computed in float32 at least. Where x equals its threshold
        the gradient is that of x.

    Raises:
        ValueError: tau or alpha has not the size of the channel axis.
    """
    x = _array("x", x)
    tau = _array("tau", tau)
    alpha = None if alpha is None else _array("alpha", alpha)
    shapes = {"tau": tau.shape, "alpha": None if alpha is None else alpha.shape}
    sizes = thresholded.sizes(x.shape, axis, shapes)
    compute = jnp.promote_types(x.dtype, jnp.float32)
    wide = [None if one is None else one.astype(compute).reshape(sizes) for one in (tau, alpha)]
    return thresholded.compute(arrays, x.astype(compute), *wide).astype(x.dtype)


def _compute(
    name: str,
    x: Array,
    scale: Array | None,
    bias: Array | None,
    mask: Array | None,
    axis: int | Sequence[int],
    groups: int | None,
    epsilon: Any,
    implementation: str | None,
    activation: str | None,
    residual: Array | None,
    learned: Array | None = None,
) -> Result:
    """Check the arguments, prepare the call, and compute it."""
    x, scale, bias, mask, residual, call = _checked(
        name, x, scale, bias, mask, axis, groups, epsilon, activation, residual
    )
    return engine.normalize(FRONT, implementation, call, x, scale, bias, mask, learned, residual)


def _checked(
    name: str,
    x: Array,
    scale: Array | None,
    bias: Array | None,
    mask: Array | None,
    axis: int | Sequence[int],
    groups: int | None,
    epsilon: Any,
    activation: str | None,
    residual: Array | None,
) -> tuple[Array, Array | None, Array | None, Array | None, Array | None, Call]:
    """The arrays as JAX', once they are checked, and the call."""
    x = _array("x", x)
    scale = None if scale is None else _array("scale", scale)
    bias = None if bias is None else _array("bias", bias)
    if mask is not None:
        mask = _array("mask", mask)
        if mask.ndim == x.ndim:
            mask = full_mask(mask, x)
    shapes = [None if one is None else one.shape for one in (scale, bias, mask)]
    call = arguments.prepare(
        KINDS[name], x.shape, shapes[0], shapes[1], shapes[2], axis, groups, epsilon, _NAMES
    )
    call, residual = surrounded(call, activation, residual, x)
    return x, scale, bias, mask, residual, call


def surrounded(
    call: Call, activation: str | None, residual: Any, x: Array
) -> tuple[Call, Array | None]:
    """The call with these, and the residual as an array, once they are checked."""
    if activation is None and residual is None:
        return call, None
    added = None
    if residual is not None:
        residual = _array("residual", residual)
        added = residual.shape, residual.dtype.name
    call = arguments.surrounded(call, activation, added, (x.shape, x.dtype.name))
    return call, residual


def as_array(name: str, value: Any) -> Array:
    """JAX' array of a value that jax.numpy takes, but not of another framework's array.

    Nor of float64 where JAX would make float32 of it.
    """
    known = isinstance(value, (jax.Array, np.ndarray, np.generic, numbers.Number, list, tuple))
    if not known and arguments.is_array(value) and not hasattr(value, "__jax_array__"):
        why, fix = "truenorm.jax computes with jax", f"jax.numpy.asarray({name})"
        arguments.refuse_array(name, value, "jax", why, fix)
    if isinstance(value, (np.ndarray, np.generic)):
        kept = jax.dtypes.canonicalize_dtype(value.dtype)
        arguments.check_float64(value.dtype.name, kept.name)
    return value if isinstance(value, jax.Array) else jnp.asarray(value)


def _array(name: str, value: Any) -> Array:
    """JAX' array of a dtype that fits this argument."""
    array = as_array(name, value)
    arguments.check_dtype(name, array.dtype.name)
    return array


def full_mask(mask: Array, x: Array) -> Array:
    """The mask broadcast to x, by the rules of NumPy."""
    arguments.check_broadcast(mask.shape, x.shape)
    return jnp.broadcast_to(mask, x.shape)
