"""truenorm for flax: the normalizations as modules of flax.nnx.

Each is a subclass of the module of its name in flax.nnx: its constructor, its parameters `scale`
and `bias`, and its state are that one's. The variance is always that of x less its mean, whatever
`use_fast_variance` says, and a group that the mask hides whole yields bias, where flax' is NaN.
`dtype` and `promote_dtype` decide the result's dtype as in flax; only the result is rounded to it.

Each takes one argument more, `activation`: None, "relu", "silu", "gelu" (exact) or "gelu_tanh",
which is applied before that rounding. The calls take a `residual` of x's shape and dtype; the
result is then the pair (y, s), where s = x + residual, in x's dtype or in the result's where that
is wider, is normalized in the place of x.
"""

import functools
import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax.numpy as jnp
from flax import nnx

from truenorm.core import arguments, engine
from truenorm.core.call import Call
from truenorm.core.view import View, axes_view, canonical_axes, check_groups, group_view
from truenorm.jax import FRONT, Result, as_array, batch_norm, full_mask, surrounded

__all__ = ["BatchNorm", "GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm"]


_OPTIONS: dict[str, tuple[Any, Any, Callable[[Any], Any]]] = {
    # name: default, annotation, check
    "activation": (None, str | None, arguments.check_activation),
    "frozen": (False, bool, bool),
    "virtual_batch_size": (None, int | None, arguments.check_virtual),
    "unbiased": (False, bool, bool),
}


def _with(init: Callable[..., None], *names: str) -> Callable[..., None]:
    """A constructor of flax.nnx with these options more, also in its signature."""

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        for name in names:
            default, _, check = _OPTIONS[name]
            setattr(self, name, check(kwargs.pop(name, default)))
        init(self, *args, **kwargs)

    known = inspect.signature(init)
    more = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=_OPTIONS[name][0],
            annotation=_OPTIONS[name][1],
        )
        for name in names
    ]  # fmt: skip
    __init__.__signature__ = known.replace(  # type: ignore[attr-defined]
        parameters=[*known.parameters.values(), *more]
    )
    return __init__


class BatchNorm(nnx.BatchNorm):
    """Batch normalization (Ioffe and Szegedy, 2015, arXiv:1502.03167), as `flax.nnx.BatchNorm`.

    With `axis_name` the statistics are those of all devices of that axis, in one exchange each way;
    in a sharded jit they are without it. The running variance is the biased one, as flax has it. A
    batch that the mask hides whole moves nothing. After flax' arguments the constructor takes

    Args:
        activation: as the other modules.
        frozen: use the running statistics also in training, and do not move them; may be set at
            any time.
        virtual_batch_size: take statistics over so many samples in turn (ghost batch normalization,
            Hoffer et al., 2017, arXiv:1705.08741).
        unbiased: move the running variance by that with n - 1 in the denominator.
    """

    activation: str | None = None
    frozen: bool = False
    virtual_batch_size: int | None = None
    unbiased: bool = False

    __init__ = _with(nnx.BatchNorm.__init__, *_OPTIONS)

    def __call__(
        self,
        x: Any,
        use_running_average: bool | None = None,
        *,
        mask: Any = None,
        residual: Any = None,
    ) -> Result:
        """The normalized x, of its shape; with a residual also the sum."""
        if use_running_average is None:
            use_running_average = self.use_running_average
        if use_running_average is None:
            raise ValueError(
                "use_running_average is given neither to the call nor to the constructor; pass "
                "True for inference or False for training, or call model.train() or model.eval()."
            )
        running = use_running_average or self.frozen
        x, scale, bias, dtype, residual = _operands(self, x, residual, True)
        if mask is not None:
            mask = full_mask(as_array("mask", mask), x)
        axis = tuple(self.axis) if isinstance(self.axis, Iterable) else self.axis
        result, (mean, var) = batch_norm(
            x, scale, bias, self.mean[...], self.var[...],
            axis=axis, use_running_average=running, momentum=self.momentum, epsilon=self.epsilon,
            axis_name=self.axis_name, axis_index_groups=self.axis_index_groups,
            virtual_batch_size=self.virtual_batch_size, unbiased=self.unbiased,
            mask=None if use_running_average else mask, activation=self.activation,
            residual=residual,
        )  # fmt: skip
        if not running:
            self.mean[...], self.var[...] = mean, var
        return _rounded(result, dtype, residual)


class GroupNorm(nnx.GroupNorm):
    """Group normalization (Wu and He, 2018, arXiv:1803.08494), as `flax.nnx.GroupNorm`.

    The channels are the last axis. Called with x (N, ..., C) and a boolean mask that broadcasts to
    it; elements where it is False stay out of the statistics.
    """

    activation: str | None = None  # of modules that were made before there was one
    __init__ = _with(nnx.GroupNorm.__init__, "activation")

    def __call__(self, x: Any, *, mask: Any = None, residual: Any = None) -> Result:
        """The normalized x, of its shape; with a residual also the sum."""
        rank = jnp.ndim(x)
        axes = [*range(1, rank - 1), -1] if self.reduction_axes is None else self.reduction_axes
        reduced = _axes(axes, rank)
        if rank - 1 not in reduced:
            raise ValueError(
                f"reduction_axes={self.reduction_axes} must name the last axis, the channels."
            )
        check_groups(self.num_groups, x.shape[-1], rank - 1, "num_groups")
        view = group_view(rank, rank - 1, self.num_groups, reduced)
        return _normalized(self, x, view, mask, residual)


class InstanceNorm(nnx.InstanceNorm):
    """Instance normalization (Ulyanov et al., 2016, arXiv:1607.08022), as `flax.nnx.InstanceNorm`.

    The statistics run over all axes but the first and `feature_axes`. The call is `GroupNorm`'s.
    """

    activation: str | None = None  # of modules that were made before there was one
    __init__ = _with(nnx.InstanceNorm.__init__, "activation")

    def __call__(self, x: Any, *, mask: Any = None, residual: Any = None) -> Result:
        """The normalized x, of its shape; with a residual also the sum."""
        rank = jnp.ndim(x)
        features = _axes(self.feature_axes, rank, first=1)
        reduced = [one for one in range(1, rank) if one not in features]
        return _normalized(self, x, axes_view(rank, reduced, features), mask, residual)


class LayerNorm(nnx.LayerNorm):
    """Layer normalization (Ba, Kiros and Hinton, 2016, arXiv:1607.06450), as `flax.nnx.LayerNorm`.

    The statistics run over `reduction_axes`, and scale and bias vary over `feature_axes`. The call
    is `GroupNorm`'s.
    """

    activation: str | None = None  # of modules that were made before there was one
    __init__ = _with(nnx.LayerNorm.__init__, "activation")

    def __call__(self, x: Any, *, mask: Any = None, residual: Any = None) -> Result:
        """The normalized x, of its shape; with a residual also the sum."""
        return _normalized(self, x, _view(self, jnp.ndim(x)), mask, residual)


class RMSNorm(nnx.RMSNorm):
    """RMS normalization (Zhang and Sennrich, 2019, arXiv:1910.07467), as `flax.nnx.RMSNorm`.

    The statistics run over `reduction_axes`, and scale varies over `feature_axes`. The call is
    `GroupNorm`'s.
    """

    activation: str | None = None  # of modules that were made before there was one
    __init__ = _with(nnx.RMSNorm.__init__, "activation")

    def __call__(self, x: Any, mask: Any = None, residual: Any = None) -> Result:
        """The normalized x, of its shape; with a residual also the sum."""
        return _normalized(self, x, _view(self, jnp.ndim(x)), mask, residual, centered=False)


def _axes(axes: Any, rank: int, first: int = 0) -> tuple[int, ...]:
    """One axis or several, as flax takes them, in ascending order."""
    return canonical_axes(tuple(axes) if isinstance(axes, Iterable) else axes, rank, first)


def _view(module: Any, rank: int) -> View:
    """The view of reduction_axes and feature_axes, each one axis or several."""
    return axes_view(rank, _axes(module.reduction_axes, rank), _axes(module.feature_axes, rank))


def _normalized(
    module: Any, x: Any, view: View, mask: Any, residual: Any, centered: bool = True
) -> Result:
    """The module's result: computed from x as it comes, then rounded to the module's dtype."""
    if module.axis_name is not None:
        raise NotImplementedError(
            f"axis_name={module.axis_name!r}: truenorm takes no statistics over devices here; in a "
            "sharded jit they are global without it, and elsewhere use flax' module."
        )
    x, scale, bias, dtype, residual = _operands(module, x, residual, centered)
    shape = view.parameter_shape(x.shape)
    for name, one in (("scale", scale), ("bias", bias)):
        if one is not None and one.size != math.prod(shape):
            raise ValueError(
                f"{name} has {one.size} elements, but x of shape {x.shape} with features in axes "
                f"{list(view.parameter_axes)} needs {shape}."
            )
    scale, bias = (None if one is None else one.reshape(shape) for one in (scale, bias))
    if mask is not None:
        mask = full_mask(as_array("mask", mask), x)
        arguments.check_dtype("mask", mask.dtype.name)
    call = Call(view, centered, arguments.check_epsilon(module.epsilon))
    call, residual = surrounded(call, module.activation, residual, x)
    result = engine.normalize(FRONT, None, call, x, scale, bias, mask, None, residual)
    return _rounded(result, dtype, residual)


def _operands(module: Any, x: Any, residual: Any, centered: bool) -> tuple[Any, Any, Any, Any, Any]:
    """x, scale and bias, the dtype of the result, and the residual, x and it not narrower."""
    x = as_array("x", x)
    scale = None if module.scale is None else module.scale[...]
    bias = None if not centered or module.bias is None else module.bias[...]
    learned = (scale, bias) if centered else (scale,)
    dtype = module.promote_dtype((x, *learned), dtype=module.dtype)[0].dtype
    x = x.astype(jnp.promote_types(x.dtype, dtype))
    arguments.check_dtype("x", x.dtype.name)  # flax takes complex numbers
    if residual is not None:
        residual = as_array("residual", residual)
        residual = residual.astype(jnp.promote_types(residual.dtype, dtype))
    return x, scale, bias, dtype, residual


def _rounded(result: Any, dtype: Any, residual: Any) -> Result:
    """The result in the module's dtype; the sum stays as it is."""
    if residual is None:
        return result.astype(dtype)
    y, s = result
    return y.astype(dtype), s
