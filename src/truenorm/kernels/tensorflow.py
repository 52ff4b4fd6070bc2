"""The native kernels under TensorFlow: two operations, each with a registered gradient.

The gradient of the forward operation is the backward operation; that of the backward operation,
which second derivatives and forward mode need, is the plain formula's. Inside a function that XLA
compiles (`jit_compile=True`), and in a SavedModel, which must run where truenorm is not installed,
`unsupported` sends the call to the plain formula when it is traced. A function that was traced
before one with `jit_compile=True` calls it keeps the operations, which XLA does not know: trace it
inside `truenorm.use_implementation("plain")`.
"""

import ctypes
import functools
import struct
from typing import Any

import tensorflow as tf
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
    operations, _ = _operations()
    y = operations.truenorm_forward(
        x=x,
        gamma=gamma,
        beta=beta,
        factors=list(how.factors),
        groups=how.groups,
        epsilon=_bits(epsilon),
        centered=centered,
    ).y
    return tf.transpose(y, how.inverse) if how.permutes else y


def _bits(number: float) -> int:
    """The bits of a double as an integer; an attribute of type float would round it."""
    return int(struct.unpack("<q", struct.pack("<d", number))[0])


def _attributes(operation: Any) -> dict[str, Any]:
    names = ("factors", "groups", "epsilon", "centered")
    return {name: operation.get_attr(name) for name in names}


@tf.RegisterGradient("TruenormForward")
def _forward_gradient(operation: Any, dy: Any, _: Any) -> Any:
    x, gamma, _ = operation.inputs
    statistics = operation.outputs[1]
    operations, _ = _operations()
    return operations.truenorm_backward(
        x=x, gamma=gamma, dy=dy, statistics=statistics, **_attributes(operation)
    )


@tf.RegisterGradient("TruenormBackward")
def _backward_gradient(operation: Any, *cotangents: Any) -> Any:
    """The gradient in x, gamma and dy by the plain formula; the statistics are a part of x."""
    from truenorm import plain

    attributes = _attributes(operation)
    view = view_of(attributes["factors"], attributes["groups"])
    epsilon = struct.unpack("<d", struct.pack("<q", attributes["epsilon"]))[0]
    centered = attributes["centered"]
    x, gamma, dy, _ = operation.inputs
    with tf.GradientTape() as outer:
        outer.watch((x, gamma, dy))
        beta = tf.zeros_like(gamma)
        with tf.GradientTape() as inner:
            inner.watch((x, gamma, beta))
            y = plain.normalize(x, gamma, beta, view, epsilon=epsilon, centered=centered)
        found = inner.gradient(
            y, (x, gamma, beta), dy, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
    gradients = outer.gradient(
        found, (x, gamma, dy), cotangents, unconnected_gradients=tf.UnconnectedGradients.ZERO
    )
    return (*gradients, None)
