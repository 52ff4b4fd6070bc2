"""The native kernels under TensorFlow: two operations, each with a registered gradient.

The gradient of the forward operation is the backward operation; that of the backward operation,
which second derivatives and forward mode need, is the plain formula's. In eager calls the
operations are called as they are. A graph may be frozen, saved or converted at any later time, to
run where truenorm is not installed, and nothing tells when it is made. So it calls functions of the
plain formula, for which TensorFlow puts in the operations when it runs the graph in this process.
"""

import ctypes
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import forwardprop_util
from tensorflow.python.ops import control_flow_util
from tensorflow.python.saved_model import save_context

from truenorm.core.call import Call, Statistics
from truenorm.core.plain import Plain
from truenorm.native import library, tensorflow_halves
from truenorm.native.recipe import Recipe, recipe
from truenorm.native.tensorflow_halves import attributes, call_of_operation, gradient

name = "native"

_DTYPES = (tf.float32, tf.float64, tf.bfloat16, tf.float16)


@functools.cache
def _operations() -> tuple[Any, str | None]:
    """The module of the two operations, or why there is none."""
    file = library.path("libtruenorm_tensorflow")
    if file is None:
        return None, "this build of truenorm has no native kernels for TensorFlow"
    try:
        # TensorFlow loads it first: it takes note of the operations that are defined meanwhile.
        operations = tf.load_op_library(str(file))
        binding = ctypes.CDLL(str(file))
    except (OSError, tf.errors.OpError) as error:
        return None, f"the native kernels for TensorFlow do not load: {error}"
    binding.truenorm_tensorflow_missing.restype = ctypes.c_char_p
    missing = binding.truenorm_tensorflow_missing()
    if missing:
        return None, f"TensorFlow {tf.__version__} lacks what they need: {missing.decode()}"
    return operations, None


def unavailable() -> str | None:
    """Why no call at all can be computed on TensorFlow, or None."""
    return _operations()[1]


# The formula that graphs have, in the functions that the front has handed down.
_plain: Plain


def hand_down(arrays: Any) -> None:
    """Take the functions of the plain formula from the front: TensorFlow has no others here."""
    global _plain
    _plain = Plain(arrays)


def _reason(x: Any, gamma: Any, beta: Any, mask: Any) -> str | None:
    """Why the kernels cannot compute this call, or None if they can."""
    if mask is not None:
        return "mask: the native kernels take none"
    if x.dtype not in _DTYPES:
        names = ", ".join(one.name for one in _DTYPES)
        return f"x is of dtype {x.dtype.name}; the native kernels take {names}"
    if tf.executing_eagerly():
        for one in (x, gamma, beta):
            device = "" if one is None else getattr(one, "device", "") or ""
            if device and "CPU:" not in device.upper():
                return f"a tensor is on {device}; the native kernels serve CPU tensors"
        return None
    if control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()):
        return "XLA compiles this function, and does not know the native operations"
    if save_context.in_save_context():
        return "the function is being saved, to run where truenorm is not installed"
    if tf.config.list_logical_devices("GPU"):
        return "TensorFlow places graphs on the GPU; the native kernels serve CPU tensors"
    return None


def with_whole_groups(x: tf.Tensor, axis: int, groups: int) -> tf.Tensor:
    """X, with a check when it runs that the groups divide the channels of this axis."""
    checked = tf.debugging.assert_equal(
        tf.shape(x)[axis] % groups,
        0,
        message=f"groups={groups} does not divide the channels of axis {axis}; choose a "
        "divisor of their number, or groups=-1 for one group per channel.",
    )
    with tf.control_dependencies([checked]):
        return tf.identity(x)


def normalize(
    call: Call,
    x: tf.Tensor,
    gamma: tf.Tensor | None,
    beta: tf.Tensor | None,
    mask: tf.Tensor | None = None,
    epsilon: tf.Tensor | None = None,
) -> tf.Tensor | str:
    """As `Plain.normalize`, through the native operations, or why not."""
    reason = _reason(x, gamma, beta, mask)
    if reason is None and epsilon is not None:
        reason = "epsilon is learned: the native kernels take a number"
    if reason is not None:
        return reason
    return _both(call, x, gamma, beta)[0]


def _both(
    call: Call, x: tf.Tensor, gamma: tf.Tensor | None, beta: tf.Tensor | None
) -> tuple[tf.Tensor, tf.Tensor]:
    """y, and the three statistics of each group."""
    how = recipe(call.view)
    gamma, beta = _parameters(call, x, gamma, beta, how)
    call, x = _ordered(call, x, how)
    compute = _forward if tf.executing_eagerly() else _in_graph
    y, statistics = compute(call, x, gamma, beta)
    return tf.transpose(y, how.inverse) if how.permutes else y, statistics


def moments(call: Call, x: tf.Tensor, mask: tf.Tensor | None = None) -> Statistics | str:
    """As `Plain.moments`, or why not."""
    reason = _reason(x, None, None, mask) or _elsewhere(x)
    if reason is not None:
        return reason
    ordered = _ordered(dataclasses.replace(call, epsilon=0.0), x, recipe(call.view))
    return _with_count(call, x, *tensorflow_halves.moments(_operations()[0], *ordered))


def measure(
    call: Call,
    x: tf.Tensor,
    gamma: tf.Tensor | None,
    beta: tf.Tensor | None,
    mask: tf.Tensor | None = None,
) -> tuple[tf.Tensor, Statistics] | str:
    """As `Plain.measure`, through the native operations, or why not."""
    reason = _reason(x, gamma, beta, mask)
    if reason is not None:
        return reason
    y, statistics = _both(call, x, gamma, beta)
    return y, _with_count(call, x, *tf.unstack(tf.stop_gradient(statistics), 3, axis=1))


def _with_count(
    call: Call, x: tf.Tensor, mean: tf.Tensor, rest: tf.Tensor, variance: tf.Tensor
) -> Statistics:
    """The statistics with the number of elements that each group has."""
    _, r0, _, r1 = call.view.sizes(_plain.arrays.shape(x))
    count = tf.fill(tf.shape(variance), tf.cast(r0 * r1, variance.dtype))
    return Statistics(mean, rest, variance, count)


def apply(
    call: Call,
    x: tf.Tensor,
    statistics: Statistics,
    gamma: tf.Tensor | None,
    beta: tf.Tensor | None,
    mask: tf.Tensor | None = None,
) -> tf.Tensor | str:
    """As `Plain.apply`, or why not."""
    given = [one for one in (x, gamma, beta, *statistics) if one is not None]
    reason = _reason(x, gamma, beta, mask) or _elsewhere(*given)
    if reason is not None:
        return reason
    how = recipe(call.view)
    gamma, beta = _parameters(call, x, gamma, beta, how)
    mean, rest, variance = (tf.cast(one, _compute_dtype(x)) for one in statistics[:3])
    power = variance + call.epsilon
    if call.centered:
        # As in the plain formula: rounding can take it below zero.
        power = tf.where(power < 0.5 * call.epsilon, tf.cast(call.epsilon, power.dtype), power)
    else:
        mean = rest = tf.zeros_like(power)
    call, x = _ordered(dataclasses.replace(call, epsilon=0.0), x, how)
    operands = (x, gamma, beta, mean, rest, power)
    y = tensorflow_halves.apply(_operations()[0], call, *operands)
    return tf.transpose(y, how.inverse) if how.permutes else y


def _elsewhere(*tensors: tf.Tensor) -> str | None:
    """A reason where the operations of the halves would not serve."""
    if not tf.executing_eagerly():
        return "in a graph the halves are the plain formula's"
    if forwardprop_util.pack_tangents(tensors).tangents:
        return "forward-mode differentiation is active, whose derivatives the plain formula has"
    return None


def _compute_dtype(x: tf.Tensor) -> tf.DType:
    return tf.float64 if x.dtype == tf.float64 else tf.float32


def _parameters(
    call: Call, x: tf.Tensor, gamma: tf.Tensor | None, beta: tf.Tensor | None, how: Recipe
) -> tuple[tf.Tensor, tf.Tensor]:
    """gamma and beta, or ones and zeros, in the compute dtype and in the recipe's order."""
    compute = _compute_dtype(x)
    if gamma is None or beta is None:
        sizes = tf.shape(x)
        shape = [
            x.shape[axis] if x.shape[axis] is not None else sizes[axis]
            for axis in call.view.parameter_axes
        ]
        gamma = tf.ones(shape, compute) if gamma is None else gamma
        beta = tf.zeros(shape, compute) if beta is None else beta
    gamma, beta = (tf.cast(one, compute) for one in (gamma, beta))
    if how.permutes:
        gamma, beta = (tf.transpose(one, how.parameter_order) for one in (gamma, beta))
    return gamma, beta


def _ordered(call: Call, x: tf.Tensor, how: Recipe) -> tuple[Call, tf.Tensor]:
    """The call and x in the recipe's order."""
    if not how.permutes:
        return call, x
    ordered = dataclasses.replace(call, view=call.view.permuted(how.order))
    return ordered, tf.transpose(x, how.order)


# --- the two operations, and both in the plain formula


def _forward(call: Call, x: Any, gamma: Any, beta: Any) -> Any:
    """y and the statistics."""
    operations, _ = _operations()
    return operations.truenorm_forward(x=x, gamma=gamma, beta=beta, **attributes(call))


def _backward(call: Call, x: Any, gamma: Any, dy: Any, statistics: Any) -> Any:
    """The gradients of x, gamma and beta."""
    operations, _ = _operations()
    return operations.truenorm_backward(
        x=x, gamma=gamma, dy=dy, statistics=statistics, **attributes(call)
    )


def _plain_forward(call: Call, x: Any, gamma: Any, beta: Any) -> Any:
    """As `_forward`."""
    y, statistics = _plain.measure(call, x, gamma, beta)
    return y, tf.stack(statistics[:3], 1)


def _plain_backward(call: Call, x: Any, gamma: Any, dy: Any, statistics: Any) -> Any:
    """As `_backward`, without the statistics."""
    normalized = functools.partial(_plain.normalize, call)
    return gradient(normalized, (x, gamma, tf.zeros_like(gamma)), dy)


def _second(call: Call, x: Any, gamma: Any, dy: Any, cotangents: Any) -> Any:
    """The gradient of `_backward` in x, gamma, dy and the statistics, which are a part of x."""

    def backward(x: Any, gamma: Any, dy: Any) -> Any:
        return _plain_backward(call, x, gamma, dy, None)

    return (*gradient(backward, (x, gamma, dy), cotangents), None)


@tf.RegisterGradient("TruenormForward")
def _forward_gradient(operation: Any, dy: Any, _: Any) -> Any:
    x, gamma, _ = operation.inputs
    return _backward(call_of_operation(operation), x, gamma, dy, operation.outputs[1])


@tf.RegisterGradient("TruenormBackward")
def _backward_gradient(operation: Any, *cotangents: Any) -> Any:
    x, gamma, dy, _ = operation.inputs
    return _second(call_of_operation(operation), x, gamma, dy, cotangents)


tensorflow_halves.register(lambda: _operations()[0], lambda: _plain)


# --- graphs
#
# A graph calls a function of the plain formula. One with the native operation and the same
# interface (`api_implements`) is known to this process alone: where TensorFlow places the call on a
# CPU, its optimizer (the implementation selector) puts that one in. What leaves the process has the
# plain formula only.


def _in_graph(call: Call, x: Any, gamma: Any, beta: Any) -> Any:
    if forwardprop_util.pack_tangents([x, gamma, beta]).tangents:
        # Forward mode inside of a graph knows no custom gradient.
        return _plain_forward(call, x, gamma, beta)

    @tf.custom_gradient
    def forward(x: Any, gamma: Any, beta: Any) -> Any:
        y, statistics = _selected(call, "forward", x, gamma, beta)

        def gradient(dy: Any, _: Any) -> Any:
            # Tensors of the graph of the gradient, for its own derivative to be one of them.
            return backward(*(tf.identity(one) for one in (x, gamma, dy, statistics)))

        return (y, statistics), gradient

    @tf.custom_gradient
    def backward(x: Any, gamma: Any, dy: Any, statistics: Any) -> Any:
        gradients = _selected(call, "backward", x, gamma, dy, statistics)
        return gradients, lambda *cotangents: _second(call, x, gamma, dy, cotangents)

    return forward(x, gamma, beta)


def _selected(call: Call, name: str, *operands: Any) -> Any:
    """Call the plain function of that name, for which the native one may be put in."""
    # Constants to every derivative, which would be asked of the function instead.
    operands = tuple(tf.stop_gradient(one) for one in operands)
    x, gamma, *_ = operands
    shapes = {"forward": [x.shape, (None, 3)], "backward": [x.shape, gamma.shape, gamma.shape]}
    results = tf.raw_ops.PartitionedCall(
        args=operands,
        Tout=[x.dtype, *(gamma.dtype for _ in shapes[name][1:])],
        f=_function(call, name, tuple((tuple(one.shape), one.dtype) for one in operands)),
    )
    for result, shape in zip(results, shapes[name], strict=True):
        result.set_shape(shape)
    return tuple(tf.stop_gradient(one) for one in results)


# One for each shape: the plain formula is laid out by the sizes that are known.
@functools.lru_cache(maxsize=256)
def _function(call: Call, name: str, signature: tuple[Any, ...]) -> Any:
    """The plain function for operands of these shapes and dtypes; it keeps the native one alive."""
    interface = {"api_implements": f"truenorm_{name} {call} {signature}"}
    operands = [tf.TensorSpec(*one) for one in signature]

    def made(function: Callable[..., Any], **attributes: str) -> Any:
        bound = functools.partial(function, call)
        traced = tf.function(bound, autograph=False, experimental_attributes=attributes)
        return traced.get_concrete_function(*operands)

    functions: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
        "forward": (_plain_forward, _forward),
        "backward": (_plain_backward, _backward),
    }
    plain, native = functions[name]
    with tf.init_scope():  # outside of the graph that is being made
        chosen = made(plain, **interface)
        chosen.native = made(native, **interface, api_preferred_device="CPU")
    return chosen
