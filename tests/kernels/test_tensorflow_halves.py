"""The halves under TensorFlow: higher derivatives, forward mode, and graphs."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from cases import EPSILON
from truenorm import native
from truenorm.core.call import Call
from truenorm.core.engine import Front, compute
from truenorm.core.plain import Plain
from truenorm.core.view import axes_view, group_view

REASON = native.unavailable("tensorflow")
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))

PLAIN = Plain(keras.ops)
CALLS = {
    "batch": Call(axes_view(4, (0, 2, 3), (1,)), True, EPSILON),
    "group": Call(group_view(4, 1, 3), True, EPSILON),
    "over axes 1 and 3": Call(axes_view(4, (1, 3), (1,)), True, EPSILON),
    "root mean square": Call(axes_view(4, (2, 3), (1,)), False, EPSILON),
}
rng = np.random.default_rng(0)
OPERANDS = [
    tf.constant(one)
    for one in (3 + rng.standard_normal((2, 6, 3, 4)), *rng.standard_normal((2, 6)))
]


def halves(engine, call, x, gamma, beta):
    """A number whose every derivative takes both halves."""
    front = Front(keras.ops, (engine, PLAIN))
    statistics = compute(front, None, "moments", call, x)
    y = compute(front, None, "apply", call, x, statistics, gamma, beta)
    return tf.reduce_sum(y**3) + tf.reduce_sum(
        (statistics.mean + statistics.rest) * statistics.variance
    )


def first(engine, call):
    with tf.GradientTape() as tape:
        tape.watch(OPERANDS)
        number = halves(engine, call, *OPERANDS)
    return tape.gradient(number, OPERANDS)


def second(engine, call):
    with tf.GradientTape() as tape:
        tape.watch(OPERANDS)
        number = sum(tf.reduce_sum(one**2) for one in first(engine, call))
    return tape.gradient(number, OPERANDS)


def forward(engine, call):
    with tf.autodiff.ForwardAccumulator(OPERANDS, [one * one for one in OPERANDS]) as tangents:
        number = halves(engine, call, *OPERANDS)
    return [tangents.jvp(number)]


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("derivative", [first, second, forward])
def test_derivatives(derivative, call):
    found, exact = (derivative(engine, call) for engine in (native.engine("tensorflow"), PLAIN))
    for one, other in zip(found, exact, strict=True):
        size = float(tf.reduce_max(tf.abs(other)))
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9 * size)


def test_forward_mode_takes_the_plain_formula():
    x = OPERANDS[0]
    with tf.autodiff.ForwardAccumulator(x, x):
        assert "forward-mode" in native.engine("tensorflow").moments(CALLS["batch"], x)


def test_graphs_take_the_plain_formula():
    reasons = []

    @tf.function
    def function(x):
        reasons.append(native.engine("tensorflow").moments(CALLS["batch"], x))
        return x

    function(OPERANDS[0])
    assert reasons == ["in a graph the halves are the plain formula's"]
