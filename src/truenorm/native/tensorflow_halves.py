"""The halves of a call as operations of TensorFlow, each with a registered gradient.

    TruenormMoments(x) -> statistics
    TruenormApply(x, gamma, beta, statistics) -> y
    TruenormApplyBackward(x, gamma, dy, statistics) -> dx, dgamma, dbeta, dstatistics

`statistics` are three numbers for each group: the mean, its rest, which has its derivative, and the
variance. They are called in eager mode alone. The derivatives of TruenormApplyBackward are the
plain formula's.
"""

import struct
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from truenorm.core.call import Call, Statistics
from truenorm.native.recipe import MERGED, call_of, recipe

_MERGED = call_of(MERGED.factors, MERGED.groups, epsilon=0.0, centered=True)


def attributes(call: Call) -> dict[str, Any]:
    """What the operations are told of a call."""
    how = recipe(call.view)
    # The bits of a double as an integer: an attribute of type float would round it.
    (bits,) = struct.unpack("<q", struct.pack("<d", call.epsilon))
    rest = {"factors": list(how.factors), "groups": how.groups, "centered": call.centered}
    return {"epsilon": bits, **rest}


def call_of_operation(operation: Any) -> Call:
    """The call that an operation was made for."""
    (epsilon,) = struct.unpack("<d", struct.pack("<q", operation.get_attr("epsilon")))
    factors, groups = operation.get_attr("factors"), operation.get_attr("groups")
    return call_of(factors, groups, epsilon, operation.get_attr("centered"))


def gradient(function: Callable[..., Any], operands: tuple[Any, ...], cotangents: Any) -> Any:
    """The gradient of a function in its operands; zero where it does not depend on one."""
    zero = tf.UnconnectedGradients.ZERO
    if not tf.executing_eagerly():  # a tape would record nothing where recording is stopped
        operands = tuple(tf.identity(one) for one in operands)
        return tf.gradients(function(*operands), operands, cotangents, unconnected_gradients=zero)
    with tf.GradientTape() as tape:
        tape.watch(operands)
        results = function(*operands)
    return tape.gradient(results, operands, cotangents, unconnected_gradients=zero)


def moments(operations: Any, call: Call, x: tf.Tensor) -> tuple[Any, Any, Any]:
    """The mean, its rest and the variance of each group."""
    compute = tf.float64 if x.dtype == tf.float64 else tf.float32
    statistics = operations.truenorm_moments(x=x, S=compute, **attributes(call))
    mean, rest, variance = tf.unstack(statistics, 3, axis=1)
    return tf.stop_gradient(mean), rest, variance


def apply(operations: Any, call: Call, *operands: Any) -> tf.Tensor:
    """y of x, gamma, beta, mean, rest and power, the variance with epsilon added."""
    x, gamma, beta, mean, rest, power = operands
    given = tf.stack([mean, rest, power], 1)
    return operations.truenorm_apply(
        x=x, gamma=gamma, beta=beta, statistics=given, **attributes(call)
    )


def register(operations: Callable[[], Any], plain: Callable[[], Any]) -> None:
    """Register the gradients, given functions that return the operations and the plain engine."""

    @tf.RegisterGradient("TruenormMoments")
    def moments_gradient(operation: Any, dstatistics: Any) -> Any:
        # 2 / n * dvariance * (x - mean) + drest / n: x with a mean that is given, a variance of
        # 1, and a gamma and beta for each group.
        (x,), (statistics,) = operation.inputs, operation.outputs
        call = call_of_operation(operation)
        k0, r0, k1, r1 = sizes = call.view.sizes(x.shape)
        _, drest, dvariance = tf.unstack(dstatistics, 3, axis=1)
        drest = drest if call.centered else tf.zeros_like(drest)
        gamma, beta = (
            tf.reshape(one / max(r0 * r1, 1), (k0, k1)) for one in (2 * dvariance, drest)
        )
        given = tf.concat([statistics[:, :2], tf.ones_like(statistics[:, :1])], 1)
        dx = operations().truenorm_apply(
            x=tf.reshape(x, sizes),
            gamma=gamma,
            beta=beta,
            statistics=given,
            **attributes(_MERGED),
        )
        return tf.reshape(dx, x.shape)

    @tf.RegisterGradient("TruenormApply")
    def apply_gradient(operation: Any, dy: Any) -> Any:
        x, gamma, _, statistics = operation.inputs
        dx, dgamma, dbeta, given = operations().truenorm_apply_backward(
            x=x, gamma=gamma, dy=dy, statistics=statistics,
            **attributes(call_of_operation(operation)),
        )  # fmt: skip
        dmean, dpower = tf.unstack(given, 2, axis=1)
        return dx, dgamma, dbeta, tf.stack([dmean, dmean, dpower], 1)

    @tf.RegisterGradient("TruenormApplyBackward")
    def apply_backward_gradient(operation: Any, *cotangents: Any) -> Any:
        call = call_of_operation(operation)

        def backward(x: Any, gamma: Any, dy: Any, statistics: Any) -> Any:
            mean, rest, power = tf.unstack(statistics, 3, axis=1)

            def function(x: Any, gamma: Any, beta: Any, mean: Any, power: Any) -> Any:
                # Without a mask the count says nothing.
                given = Statistics(mean, rest, power, tf.ones_like(power))
                return plain().apply(call, x, given, gamma, beta)

            operands = (x, gamma, tf.zeros_like(gamma), mean, power)
            *found, dmean, dpower = gradient(function, operands, dy)
            return *found, tf.stack([dmean, dpower], 1)

        return gradient(backward, tuple(operation.inputs), cotangents)
