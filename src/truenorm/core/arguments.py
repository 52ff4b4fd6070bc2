"""What callers pass, checked: every check of an argument, and its message, is here or in `view.py`.

The fronts ask them in the order in which a call meets them: single values, tensors, shapes.
"""

import dataclasses
import operator
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple

from truenorm.core import activation as activations
from truenorm.core.call import Call
from truenorm.core.errors import brief
from truenorm.core.view import View, canonical_axes, check_groups

if TYPE_CHECKING:
    from truenorm.core.kinds import Kind

Shape = tuple[Any, ...]


class Names(NamedTuple):
    """What a front calls the arguments, for the messages."""

    x: str = "x"
    gamma: str = "gamma"
    beta: str = "beta"
    groups: str = "groups"
    epsilon: str = "epsilon"


def check_single_axis(axis: Any) -> int:
    """Return axis as a plain integer, or raise TypeError if it is not one integer."""
    try:
        return operator.index(axis)
    except TypeError:
        raise TypeError(
            f"axis={brief(axis)} must be one integer, the channel axis; for statistics over "
            "several axes use layer normalization, which takes a list."
        ) from None


def check_group_count(groups: Any, name: str = "groups") -> int:
    """Return groups as a plain integer, or raise unless it is positive or -1.

    `name` is what the front calls the argument, here and below.
    """
    try:
        if isinstance(groups, bool):
            raise TypeError
        count = operator.index(groups)
    except TypeError:
        raise TypeError(f"{name}={brief(groups)} must be an integer.") from None
    if count < 1 and count != -1:
        raise ValueError(
            f"{name}={brief(groups)} must be a positive divisor of the number of channels, or -1 "
            "for one group per channel."
        )
    return count


def check_epsilon(epsilon: Any, name: str = "epsilon") -> float:
    """Return epsilon as a plain float, or raise ValueError unless it is finite and >= 0."""
    try:
        number = float(epsilon) if isinstance(epsilon, (float, Real)) else -1.0
    except OverflowError:
        number = float("inf")
    if not 0 <= number < float("inf"):
        raise ValueError(f"{name}={brief(epsilon)} must be a finite number of zero or more.")
    return number


def check_activation(name: Any) -> str | None:
    """Return an activation's name as given, or raise ValueError with those there are."""
    if name is not None and not (isinstance(name, str) and name in activations.NAMES):
        raise ValueError(
            f"activation={brief(name)} is unknown; expected None or one of "
            f"{', '.join(map(repr, activations.NAMES))}. Apply another function to the result."
        )
    return name


def check_dtype(name: str, dtype: str) -> None:
    """Raise TypeError unless a mask is boolean and anything else is floating."""
    if name == "mask" and dtype != "bool":
        raise TypeError(f"mask must be boolean; got {dtype}. Pass mask != 0.")
    if name != "mask" and not dtype.startswith(("float", "bfloat")):
        raise TypeError(f"{name} must be a floating-point tensor; got {dtype}. Cast it first.")


def check_float64(requested: str, given: str) -> None:
    """Raise ValueError where float64 was requested and JAX made something else of it."""
    if requested == "float64" and given != "float64":
        raise ValueError(
            "float64 was passed, but JAX computes in 32 bits unless told otherwise; set the "
            "environment variable JAX_ENABLE_X64=1 (or jax.config.update('jax_enable_x64', True)) "
            "before the first computation, or pass float32."
        )


def is_array(value: Any) -> bool:
    """Whether a value has an array's methods, whoever it belongs to."""
    return hasattr(value, "__array__") or hasattr(value, "__dlpack__")


def refuse_array(name: str, value: Any, running: str, why: str, fix: str) -> None:
    """Raise TypeError for an array of another framework than the one that is `running`.

    It would become a tensor of that one, without a word and without its gradient. The message has
    the front's reason, "Keras runs on jax", and what to write instead.
    """
    kind = type(value)
    framework = kind.__module__.split(".")[0].removesuffix("lib")
    fronts = {"torch": "truenorm.torch", "jax": "truenorm.jax", "tensorflow": "truenorm.ops"}
    other = f", or use {fronts[framework]}, which takes it" if framework in fronts else ""
    raise TypeError(
        f"{name} is a {kind.__name__} of {framework}, but {why}; pass a tensor of {running}, {fix}"
        f"{other}."
    )


def prepare(
    kind: "Kind",
    shape: Shape,
    gamma: Shape | None,
    beta: Shape | None,
    mask: Shape | None,
    axis: Any,
    groups: Any,
    epsilon: Any,
    names: Names = Names(),  # noqa: B008
) -> Call:
    """The call for x of this shape, where those of gamma, beta and mask fit; unknown sizes do.

    Raises:
        ValueError: a shape, the axis, the number of groups or epsilon does not fit.
        TypeError: an axis, or the number of groups, is not an integer.
    """
    epsilon = check_epsilon(epsilon, names.epsilon)
    if kind.axis_is == "channels":
        axis = check_single_axis(axis)
    if kind.groups:
        groups = check_group_count(groups, names.groups)
        (channel,) = canonical_axes(axis, len(shape))
        check_groups(groups, shape[channel], channel, names.groups)
    view = kind.view(shape, axis, groups)
    given = ((names.gamma, gamma), (names.beta, beta))
    ranks = [
        _check_parameter(name, view, shape, one, names.x) for name, one in given if one is not None
    ]
    _check_mask(mask, shape, names.x)
    if any(rank > len(view.parameter_axes) for rank in ranks):
        view = view.vary_over(0)
    return Call(view, kind.centered, epsilon)


def check_moving(
    call: Call,
    shape: Shape,
    mean: Shape | None,
    variance: Shape | None,
    needed: bool,
    names: tuple[str, str],
    x: str = "x",
) -> None:
    """Raise ValueError unless both moving statistics fit x of this shape, or there are none.

    `needed` says that there must be some; `names` are the front's for them.
    """
    given = dict(zip(names, (mean, variance), strict=True))
    missing = [name for name, size in given.items() if size is None]
    if missing and (needed or len(missing) == 1):
        raise ValueError(
            f"{' and '.join(missing)} must not be None where the moving statistics are used; "
            f"expected the shape {brief(call.view.parameter_shape(shape))}."
        )
    for name, size in given.items():
        if size is not None:
            _check_parameter(name, call.view, shape, size, x)


def check_virtual(size: Any, devices: str | None = None) -> int | None:
    """Return the samples of a virtual batch as given, or raise unless None or 1 and more.

    `devices` is the argument that asks for statistics over devices, as it was passed.
    """
    if size is None:
        return None
    try:
        if isinstance(size, bool):
            raise TypeError
        count = operator.index(size)
    except TypeError:
        raise TypeError(f"virtual_batch_size={brief(size)} must be an integer, or None.") from None
    if count < 1:
        raise ValueError(
            f"virtual_batch_size={brief(size)} must be 1 or more, or None for the whole batch."
        )
    if devices is not None:
        raise ValueError(
            f"virtual_batch_size={count} and {devices} contradict each other: statistics are over "
            "less than the batch, or over more; choose one."
        )
    return count


def check_residual(
    shape: Shape, dtype: str, expected: Shape, expected_dtype: str, name: str = "x"
) -> None:
    """Raise unless a residual has the shape and dtype that x has; unknown sizes fit."""
    if len(shape) != len(expected) or not _fits(shape, expected):
        raise ValueError(
            f"residual has the shape {brief(tuple(shape))}, but {name} has "
            f"{brief(tuple(expected))}; expected the same shape: broadcast it first."
        )
    if dtype != expected_dtype:
        raise TypeError(
            f"residual is of dtype {dtype}, but {name} is of {expected_dtype}; expected the same "
            "dtype: cast one of them first."
        )


def surrounded(
    call: Call,
    activation: Any,
    residual: tuple[Shape, str] | None,
    x: tuple[Shape, str],
    name: str = "x",
) -> Call:
    """The call with an activation, and with a residual where that fits x: shapes and dtypes.

    Raises:
        ValueError: the activation is unknown, or the residual has not x's shape.
        TypeError: the residual has not x's dtype.
    """
    check_activation(activation)
    if residual is not None:
        check_residual(*residual, *x, name)
    return dataclasses.replace(call, activation=activation, residual=residual is not None)


def check_broadcast(mask: Shape, shape: Shape, x: str = "x") -> None:
    """Raise ValueError unless a mask of this shape broadcasts to x's by the rules of NumPy."""
    sizes = tuple(shape[len(shape) - len(mask) :]) if len(mask) <= len(shape) else ()
    pairs = zip(mask, sizes, strict=False)
    if len(sizes) == len(mask) and all(one in (1, size) for one, size in pairs):
        return
    fix = (
        "; where it is of the first axes, give it the others: mask[..., None]"
        if len(mask) < len(shape)
        else ""
    )
    raise ValueError(
        f"mask has the shape {brief(tuple(mask))}, which does not broadcast to {x}'s, "
        f"{brief(tuple(shape))}{fix}."
    )


def _fits(given: Shape, expected: Shape) -> bool:
    return all(a is None or b is None or a == b for a, b in zip(given, expected, strict=True))


def _check_parameter(name: str, view: View, shape: Shape, given: Shape, x: str) -> int:
    """The rank of gamma or beta."""
    shared = view.parameter_shape(shape)
    allowed = [shared, (shape[0], *shared)] if view.has_samples else [shared]
    if not any(len(given) == len(one) and _fits(given, one) for one in allowed):
        raise ValueError(
            f"{name} has the shape {brief(tuple(given))}, but {x} of shape "
            f"{brief(tuple(shape))} with parameters over axes "
            f"{brief(list(view.parameter_axes))} needs {brief(shared)}"
            + (f", or {brief(allowed[1])} for one per sample." if view.has_samples else ".")
        )
    return len(given)


def _check_mask(mask: Shape | None, shape: Shape, x: str) -> None:
    if mask is not None and (
        not 1 <= len(mask) <= len(shape) or not _fits(mask, shape[: len(mask)])
    ):
        raise ValueError(
            f"mask has the shape {brief(tuple(mask))}, which is not the beginning of {x}'s shape "
            f"{brief(tuple(shape))}; expected {tuple(shape[:1])}, {tuple(shape[:2])} or longer."
        )
