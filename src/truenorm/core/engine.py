"""Which engine computes a call: the plain formula, or fused kernels for CPUs or for GPUs.

An engine is an object, or a module, with a `name` and four functions of a `Call` and tensors:

    normalize(call, x, gamma, beta, mask, epsilon)      y
    moments(call, x, mask)                              `Statistics`
    apply(call, x, statistics, gamma, beta, mask)       y, of these statistics
    measure(call, x, gamma, beta, mask)                 y, and the `Statistics` it was made with

`normalize` is the two halves in one. `measure` is that too, for who needs the numbers besides:
its statistics are constant to every derivative.

An engine either computes what it is asked, or returns the reason why it does not, a str.
`implementation=None` takes the fastest engine that has no reason; a name takes exactly that one,
or raises with its reason.

What a call has around the normalization, a residual and an activation, is done here, before and
after the engine, except what its `fuses` names (an engine need not have it): for the name of a
function a frozenset of "residual" and of activations. That function gets a call with these, and a
residual as one more argument:

    normalize(call, x, gamma, beta, mask, epsilon, residual)     y, or (y, s) with a residual

`moments` never gets such a call, nor `measure` a residual.
"""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from truenorm.core.activation import HALF, activate, add
from truenorm.core.call import Call, Statistics
from truenorm.core.errors import brief

Tensor = Any

NAMES = ("native", "triton", "plain")  # fastest first


class Front(NamedTuple):
    """What a front hands down: the functions of its framework, and its engines.

    Attributes:
        arrays: a module, or an object, with the functions that `truenorm.arrays` lists.
        engines: fastest first; the last one computes every call.
    """

    arrays: Any
    engines: Sequence[Any]


class _Default(threading.local):
    """The implementation that this thread's `with` blocks ask for.

    Not a context variable, nor a class attribute: torch.compile cannot trace the one, and does not
    see when an instance hides the other.
    """

    def __init__(self) -> None:
        self.name: str | None = None


_default = _Default()


def check(name: str | None) -> str | None:
    """Return an implementation's name as given, or raise ValueError with those there are."""
    if name is not None and name not in NAMES:
        raise ValueError(
            f"implementation={brief(name)} is unknown; expected None (the fastest that supports "
            f"the call) or one of {', '.join(map(repr, NAMES))}."
        )
    return name


@contextlib.contextmanager
def use_implementation(name: str | None) -> Iterator[None]:
    """Make `name` the implementation of every call inside the `with` block that names none.

    An explicit `implementation=` argument wins. A function that TensorFlow or JAX compiles keeps
    what was chosen when it was traced; torch.compile traces it again.

    Args:
        name: "plain", "native", "triton", or None for the fastest that supports each call.

    Raises:
        ValueError: the name is unknown.
    """
    outer, _default.name = _default.name, check(name)
    try:
        yield
    finally:
        _default.name = outer


def normalize(
    front: Front,
    implementation: str | None,
    call: Call,
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    mask: Tensor | None = None,
    epsilon: Tensor | None = None,
    residual: Tensor | None = None,
) -> Any:
    """Compute a call with the first of the front's engines that has no reason against it.

    Args:
        front: the arrays and the engines.
        implementation: the name of an engine, or None.
        call: what `arguments.prepare` made of the shapes and options.
        x: float tensor.
        gamma, beta: of the parameter shape, or after a leading N; None: one and zero.
        mask: boolean, its shape a prefix of x's.
        epsilon: a tensor of one number in the place of the call's, where it is learned.
        residual: of x's shape and dtype, where the call has one; the result is then (y, s).

    Raises:
        ValueError: the name is unknown.
        NotImplementedError: the named implementation does not support the call; says why.
    """
    if gamma is not None and beta is not None and gamma.ndim != beta.ndim:
        # One is per sample: repeat the other for every sample.
        rank, rows = len(call.view.parameter_axes), front.arrays.shape(x)[0]
        gamma, beta = (
            one
            if len(one.shape) == rank
            else front.arrays.broadcast_to(one, (rows, *front.arrays.shape(one)))
            for one in (gamma, beta)
        )
    if call.alone is None:  # it has neither a residual nor an activation
        return compute(front, implementation, "normalize", call, x, gamma, beta, mask, epsilon)
    around = _Around(front.arrays, "normalize", call, x, residual, mask is not None)
    return _completed(front, implementation, around, gamma, beta, mask, epsilon)


def apply(
    front: Front,
    implementation: str | None,
    call: Call,
    x: Tensor,
    statistics: Statistics,
    gamma: Tensor | None,
    beta: Tensor | None,
    mask: Tensor | None = None,
    residual: Tensor | None = None,
) -> Any:
    """As `normalize`, with statistics that are given: one number for each group, flat.

    gamma and beta are of the same rank.
    """
    if call.alone is None:
        operands = (statistics, gamma, beta, mask)
        return compute(front, implementation, "apply", call, x, *operands)
    around = _Around(front.arrays, "apply", call, x, residual, mask is not None)
    return _completed(front, implementation, around, statistics, gamma, beta, mask)


def measure(
    front: Front,
    implementation: str | None,
    call: Call,
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    mask: Tensor | None = None,
) -> Any:
    """As `normalize` without a residual: the pair of y and the statistics of x.

    These are constant to every derivative. gamma and beta are of the same rank.
    """
    if call.alone is None:
        return compute(front, implementation, "measure", call, x, gamma, beta, mask)
    around = _Around(front.arrays, "measure", call, x, None, mask is not None)
    return _completed(front, implementation, around, gamma, beta, mask)


def _completed(front: Front, implementation: str | None, around: Any, *operands: Any) -> Any:
    front = Front(front.arrays, [_Completed(engine, around) for engine in front.engines])
    return compute(front, implementation, "computed", *operands)


def compute(front: Front, implementation: str | None, step: str, *operands: Any) -> Any:
    """What the first engine without a reason computes of a call and tensors.

    `step` is the name of its function.
    """
    name = _default.name if implementation is None else check(implementation)
    reason = "there are no such kernels for this framework"
    for engine in front.engines:
        if name is None or engine.name == name:
            result = getattr(engine, step)(*operands)
            if not isinstance(result, str):
                return result
            reason = result
    raise NotImplementedError(
        f"implementation={name!r} cannot compute this call: {reason}. "
        "Pass implementation='plain', or None to let truenorm choose."
    )


class _Around:
    """A call with a residual or an activation, and its x; each step is taken at most once.

    `step` is the name of the engine's function that stands between them.
    """

    def __init__(
        self,
        arrays: Any,
        step: str,
        call: Call,
        x: Tensor,
        residual: Tensor | None,
        masked: bool,
    ) -> None:
        self.arrays = arrays
        self.step = step
        self.call = call
        self.x = x
        self.residual = residual
        self.masked = masked
        self.sum: Tensor | None = None
        self.wide: Tensor | None = None
        self.dtype: str = arrays.dtype(x)

    def summed(self) -> Tensor:
        """X + residual, or x where there is none."""
        if self.residual is None:
            return self.x
        if self.sum is None:
            self.sum = add(self.arrays, self.x, self.residual)
        return self.sum

    def widened(self) -> Tensor:
        """The same in float32."""
        if self.wide is None:
            self.wide = self.arrays.cast(self.summed(), "float32")
        return self.wide


class _Completed:
    """An engine with what it does not fuse: one step after the other, around its own."""

    def __init__(self, engine: Any, around: _Around) -> None:
        self.engine = engine
        self.around = around
        self.name = engine.name

    def computed(self, *operands: Any) -> Any:
        """The result of the whole call, or the engine's reason."""
        around = self.around
        fuses = getattr(self.engine, "fuses", {}).get(around.step, ())
        compute = getattr(self.engine, around.step)
        arrays, call, x, s = around.arrays, around.call, around.x, around.residual
        activation = None if call.activation in fuses else call.activation
        # An activation that follows in half precision needs a y, and so an x, in float32.
        widened = activation is not None and around.dtype in HALF
        adds = s is not None and "residual" in fuses and not widened
        if not adds:
            x = s = around.summed()
        if not adds and activation is call.activation:  # it fuses nothing here
            x = around.widened() if widened else x
            result = compute(call.alone, x, *operands)
        else:
            asked = Call(
                call.view, call.centered, call.epsilon,
                None if activation is not None else call.activation, adds,
            )  # fmt: skip
            result = compute(asked, x, *operands, *((around.residual,) if adds else ()))
        if isinstance(result, str):
            return result
        measures = around.step == "measure"
        result, statistics = result if measures else (result, None)
        y, s = result if adds else (result, s)
        if activation is not None:
            y = activate(arrays, activation, y, around.masked)
            y = arrays.cast(y, around.dtype) if widened else y
        if measures:
            return y, statistics
        return y if around.residual is None else (y, s)
