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
import struct
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from keras import ops
from tensorflow.python.eager import forwardprop_util
from tensorflow.python.ops import control_flow_util
from tensorflow.python.saved_model import save_context

from truenorm.kernels import library
from truenorm.kernels.recipe import recipe, view_of
from truenorm.view import View

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


def unsupported(x: Any, gamma: Any, beta: Any, view: View) -> str | None:
    """Why the kernels cannot compute this call, or None if they can."""
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


def with_whole_groups(x: tf.Tensor, view: View) -> tf.Tensor:
    """X, with a check when it runs that the view's groups divide the channels."""
    (axis,) = view.parameter_axes
    channels = tf.shape(x)[axis]
    checked = tf.debugging.assert_equal(
        channels % view.groups,
        0,
        message=f"groups={view.groups} does not divide the channels of axis {axis}; choose a "
        "divisor of their number, or groups=-1 for one group per channel.",
    )
    with tf.control_dependencies([checked]):
        return tf.identity(x)


def normalize(
    x: tf.Tensor,
    gamma: tf.Tensor | None,
    beta: tf.Tensor | None,
    view: View,
    *,
    epsilon: float,
    centered: bool,
) -> tf.Tensor:
    """Normalize as `plain.normalize` does, through the native operations."""
    per_sample = any(
        one is not None and len(one.shape) > len(view.parameter_axes) for one in (gamma, beta)
    )
    compute = tf.float64 if x.dtype == tf.float64 else tf.float32
    how = recipe(view, per_sample)
    if gamma is None or beta is None:
        sizes = tf.shape(x)
        axes = ((0,) if per_sample else ()) + view.parameter_axes
        shape = [x.shape[axis] if x.shape[axis] is not None else sizes[axis] for axis in axes]
        gamma = tf.ones(shape, compute) if gamma is None else gamma
        beta = tf.zeros(shape, compute) if beta is None else beta
    gamma, beta = (tf.cast(one, compute) for one in (gamma, beta))
    if how.permutes:
        gamma, beta = (tf.transpose(one, how.parameter_order) for one in (gamma, beta))
        x = tf.transpose(x, how.order)
    call = _Call(how.factors, how.groups, epsilon, centered)
    y = (
        call.forward(x, gamma, beta).y
        if tf.executing_eagerly()
        else _in_graph(call, x, gamma, beta)
    )
    return tf.transpose(y, how.inverse) if how.permutes else y


@dataclasses.dataclass(frozen=True)
class _Call:
    """What the two operations are told of a call, and both by the plain formula."""

    factors: tuple[int, ...]
    groups: int
    epsilon: float
    centered: bool

    @classmethod
    def of(cls, operation: Any) -> "_Call":
        """The call that an operation was made for."""
        (epsilon,) = struct.unpack("<d", struct.pack("<q", operation.get_attr("epsilon")))
        factors = tuple(operation.get_attr("factors"))
        centered = operation.get_attr("centered")
        return cls(factors, operation.get_attr("groups"), epsilon, centered)

    @property
    def attributes(self) -> dict[str, Any]:
        # The bits of a double as an integer: an attribute of type float would round it.
        (bits,) = struct.unpack("<q", struct.pack("<d", self.epsilon))
        rest = {"factors": list(self.factors), "groups": self.groups, "centered": self.centered}
        return {"epsilon": bits, **rest}

    def forward(self, x: Any, gamma: Any, beta: Any) -> Any:
        """y and the statistics."""
        operations, _ = _operations()
        return operations.truenorm_forward(x=x, gamma=gamma, beta=beta, **self.attributes)

    def backward(self, x: Any, gamma: Any, dy: Any, statistics: Any) -> Any:
        """The gradients of x, gamma and beta."""
        operations, _ = _operations()
        return operations.truenorm_backward(
            x=x, gamma=gamma, dy=dy, statistics=statistics, **self.attributes
        )

    def plain(self, x: Any, gamma: Any, beta: Any) -> Any:
        """y."""
        from truenorm import plain

        view = view_of(self.factors, self.groups)
        options: dict[str, Any] = {"epsilon": self.epsilon, "centered": self.centered}
        return plain.normalize(x, gamma, beta, view, **options)

    def plain_forward(self, x: Any, gamma: Any, beta: Any) -> Any:
        """As `forward`; where the statistics are zero, `backward` takes them itself."""
        k0, _, k1, _ = view_of(self.factors, self.groups).sizes(ops.shape(x))
        return self.plain(x, gamma, beta), tf.zeros((k0 * k1, 3), gamma.dtype)

    def plain_backward(self, x: Any, gamma: Any, dy: Any, statistics: Any) -> Any:
        """As `backward`, without the statistics."""
        return _gradient(self.plain, (x, gamma, tf.zeros_like(gamma)), dy)

    def second(self, x: Any, gamma: Any, dy: Any, cotangents: Any) -> Any:
        """The gradient of `backward` in x, gamma, dy and the statistics, which are a part of x."""

        def backward(x: Any, gamma: Any, dy: Any) -> Any:
            return self.plain_backward(x, gamma, dy, None)

        return (*_gradient(backward, (x, gamma, dy), cotangents), None)


def _gradient(function: Callable[..., Any], operands: tuple[Any, ...], cotangents: Any) -> Any:
    """The gradient of a function in its operands; zero where it does not depend on one."""
    zero = tf.UnconnectedGradients.ZERO
    if not tf.executing_eagerly():  # a tape would record nothing where recording is stopped
        operands = tuple(tf.identity(one) for one in operands)
        return tf.gradients(function(*operands), operands, cotangents, unconnected_gradients=zero)
    with tf.GradientTape() as tape:
        tape.watch(operands)
        results = function(*operands)
    return tape.gradient(results, operands, cotangents, unconnected_gradients=zero)


@tf.RegisterGradient("TruenormForward")
def _forward_gradient(operation: Any, dy: Any, _: Any) -> Any:
    x, gamma, _ = operation.inputs
    return _Call.of(operation).backward(x, gamma, dy, operation.outputs[1])


@tf.RegisterGradient("TruenormBackward")
def _backward_gradient(operation: Any, *cotangents: Any) -> Any:
    x, gamma, dy, _ = operation.inputs
    return _Call.of(operation).second(x, gamma, dy, cotangents)


# --- graphs
#
# A graph calls a function of the plain formula. One with the native operation and the same
# interface (`api_implements`) is known to this process alone: where TensorFlow places the call on a
# CPU, its optimizer (the implementation selector) puts that one in. What leaves the process has the
# plain formula only.


def _in_graph(call: _Call, x: Any, gamma: Any, beta: Any) -> Any:
    if forwardprop_util.pack_tangents([x, gamma, beta]).tangents:
        return call.plain(x, gamma, beta)  # forward mode inside of a graph knows no custom gradient

    @tf.custom_gradient
    def forward(x: Any, gamma: Any, beta: Any) -> Any:
        y, statistics = _selected(call, "forward", x, gamma, beta)

        def gradient(dy: Any) -> Any:
            # Tensors of the graph of the gradient, for its own derivative to be one of them.
            return backward(*(tf.identity(one) for one in (x, gamma, dy, statistics)))

        return y, gradient

    @tf.custom_gradient
    def backward(x: Any, gamma: Any, dy: Any, statistics: Any) -> Any:
        gradients = _selected(call, "backward", x, gamma, dy, statistics)
        return gradients, lambda *cotangents: call.second(x, gamma, dy, cotangents)

    return forward(x, gamma, beta)


def _selected(call: _Call, name: str, *operands: Any) -> Any:
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
def _function(call: _Call, name: str, signature: tuple[Any, ...]) -> Any:
    """The plain function for operands of these shapes and dtypes; it keeps the native one alive."""
    interface = {"api_implements": f"truenorm_{name} {call} {signature}"}
    operands = [tf.TensorSpec(*one) for one in signature]

    def made(method: str, **attributes: str) -> Any:
        function = getattr(call, method)
        function = tf.function(function, autograph=False, experimental_attributes=attributes)
        return function.get_concrete_function(*operands)

    with tf.init_scope():  # outside of the graph that is being made
        plain = made(f"plain_{name}", **interface)
        plain.native = made(name, **interface, api_preferred_device="CPU")
    return plain
