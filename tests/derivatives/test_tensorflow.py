"""Every way TensorFlow differentiates and transforms a call."""

import numpy as np
import pytest
import tensorflow as tf

from derivatives.expected import CASES, Point, assert_agree, assert_close

pytestmark = pytest.mark.parametrize("case", CASES, ids=str)


def tensors(arrays):
    return [tf.constant(one) for one in arrays]


def gradients(point, inputs):
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        loss = tf.reduce_sum(point.call(*inputs) * point.cotangent)
    return tape.gradient(loss, inputs)


def test_forward_mode(case):
    point = Point(case)
    inputs = tensors(point.inputs)
    with tf.autodiff.ForwardAccumulator(inputs, tensors(point.direction)) as accumulator:
        y = point.call(*inputs)
    assert_close(accumulator.jvp(y), point.tangent())


def test_forward_over_reverse(case):
    point = Point(case)
    inputs = tensors(point.inputs)
    with tf.autodiff.ForwardAccumulator(inputs, tensors(point.direction)) as accumulator:
        found = gradients(point, inputs)
    for one, exact in zip(found[:2], point.second()[:2], strict=True):
        assert_close(accumulator.jvp(one), exact)


@pytest.mark.parametrize("traced", [False, True], ids=["eager", "graph"])
def test_reverse_over_reverse(case, traced):
    point = Point(case)

    def second(*inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            found = zip(gradients(point, inputs), point.direction, strict=True)
            along = tf.add_n([tf.reduce_sum(one * by) for one, by in found])
        return tape.gradient(along, inputs)

    found = (tf.function(second) if traced else second)(*tensors(point.inputs))
    for one, exact in zip(found[:2], point.second()[:2], strict=True):
        assert_close(one, exact)


@pytest.mark.parametrize("compiled", [False, True], ids=["graph", "xla"])
def test_functions(case, compiled):
    point = Point(case)
    function = tf.function(lambda *inputs: gradients(point, list(inputs)), jit_compile=compiled)
    for one, exact in zip(function(*tensors(point.inputs)), point.gradient(), strict=True):
        assert_close(one, exact)


def test_jacobian_and_vectorized_map(case):
    point = Point(case)
    inputs = tensors(point.inputs)
    with tf.GradientTape() as tape:
        tape.watch(inputs[0])
        y = point.call(*inputs)
    jacobian = tape.jacobian(y, inputs[0])
    along = tf.tensordot(jacobian, point.direction[0], len(case.shape))
    point.direction = [point.direction[0], *[np.zeros_like(one) for one in point.direction[1:]]]
    assert_close(along, point.tangent())
    stacked = tf.stack([inputs[0], inputs[0] * 2 + 1])
    found = tf.vectorized_map(lambda x: point.call(x, *inputs[1:]), stacked)
    rows = tf.stack([point.call(one, *inputs[1:]) for one in tf.unstack(stacked)])
    assert_agree(found, rows, 1e-5)
