"""The halves of a normalization, `moments` and `apply`, on the engines of the backend that runs."""

import contextlib

import keras
import numpy as np
import pytest
from keras import ops

from cases import CASES, Case
from gradients import value_and_gradients
from halves import DTYPES, Point
from promise import Expected
from truenorm import native
from truenorm.core.call import Statistics
from truenorm.core.plain import Plain

BACKEND = keras.backend.backend()
NATIVE = native.engine(BACKEND)
REASON = native.unavailable(BACKEND)
WITHOUT = pytest.mark.skipif(REASON is not None, reason=str(REASON))
ENGINES = [
    pytest.param(Plain(keras.ops), id="plain"),
    pytest.param(NATIVE, id="native", marks=WITHOUT),
]
UNMASKED = [case for case in CASES if case.mask is None]

pytestmark = [
    pytest.mark.parametrize("engine", ENGINES),
    pytest.mark.skipif(BACKEND not in ("jax", "tensorflow", "torch"), reason="it has no gradients"),
]


@pytest.fixture(autouse=True)
def wide_floats(request):
    """On JAX, float64 must be switched on."""
    dtype = getattr(request.node, "callspec", None) and request.node.callspec.params.get("dtype")
    context = contextlib.nullcontext()
    if BACKEND == "jax" and dtype == "float64":
        import jax

        context = jax.enable_x64(True)
    with context:
        yield


def numbers(one):
    return ops.convert_to_numpy(one)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_statistics_and_y_of_them(case, dtype, engine):
    if case.mask and engine.name == "native":
        pytest.skip("it takes none")
    wide = dtype in ("float32", "float64")
    for mean, sd in [(0, 1), (1e4, 1), (1000, 0.1)] if wide else [(0, 1), (3, 1)]:
        point = Point(case, dtype, mean, sd)
        x = ops.convert_to_tensor(point.x)
        mask = () if point.mask is None else (ops.convert_to_tensor(point.mask),)
        statistics = engine.moments(point.call, x, *mask)
        point.check_statistics([numbers(one) for one in statistics])
        gamma, beta = map(ops.convert_to_tensor, (point.gamma, point.beta))
        beta = beta if case.has_beta else None
        y = engine.apply(point.call, x, statistics, gamma, beta, *mask)
        assert keras.backend.standardize_dtype(y.dtype) == dtype
        expected = Expected(case, point.x, point.gamma, point.beta, point.mask, dtype)
        # Not the bits of `normalize`, whose variance is not rounded before its root.
        assert expected.forward_error(numbers(y)) < 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [case for case in CASES if case.mask != "empty group"], ids=str)
def test_gradient_of_the_statistics(case, dtype, engine):
    if case.mask and engine.name == "native":
        pytest.skip("it takes none")
    point = Point(case, dtype)

    def function(x):
        mask = () if point.mask is None else (ops.convert_to_tensor(point.mask),)
        mean, rest, variance, _ = engine.moments(point.call, x, *mask)
        return ops.concatenate([mean, rest, variance])

    cotangent = point.rng.standard_normal((3, point.mean.size)).astype(point.compute)
    _, (dx,) = value_and_gradients(function, [point.x], cotangent.ravel())
    assert dx.dtype == DTYPES[dtype]
    point.check_gradient_of_statistics(dx, *cotangent[1:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", UNMASKED, ids=str)
def test_y_of_other_statistics_and_its_gradient(case, dtype, engine):
    point = Point(case, dtype)
    given = mean, rest, variance, count = point.other()
    differentiated = [point.x, point.gamma, *([point.beta] if case.has_beta else []), variance]
    if case.centered:
        differentiated += [mean, rest]

    def function(x, *tensors):
        gamma, beta, (variance, *means) = point.parameters(*tensors)
        means = means or map(ops.convert_to_tensor, (mean, rest))
        statistics = Statistics(*means, variance, ops.convert_to_tensor(count))
        return engine.apply(point.call, x, statistics, gamma, beta)

    y, (dx, *found) = value_and_gradients(function, differentiated, point.dy)
    assert dx.dtype == DTYPES[dtype]
    if point.x.size == 0:
        assert all((one == 0).all() for one in found)
        return
    point.check_y_of(given, y, dx, found)


def test_gamma_and_beta_may_be_absent(engine):
    point = Point(UNMASKED[0])
    x = ops.convert_to_tensor(point.x)
    statistics = engine.moments(point.call, x)
    ones, zeros = (ops.convert_to_tensor(one) for one in (point.gamma * 0 + 1, point.beta * 0))
    y = numbers(engine.apply(point.call, x, statistics, ones, zeros))
    for gamma, beta in ((None, None), (ones, None), (None, zeros)):
        found = numbers(engine.apply(point.call, x, statistics, gamma, beta))
        np.testing.assert_array_equal(found, y)


def test_a_variance_that_rounding_took_below_zero(engine):
    """Below -epsilon / 2 it counts as zero, and has no derivative."""
    point = Point(Case("layer", "layer", (3, 8)))
    mean, rest, _, count = map(ops.convert_to_tensor, point.other())

    def function(variance):
        statistics = Statistics(mean, rest, variance, count)
        return engine.apply(point.call, ops.convert_to_tensor(point.x), statistics, None, None)

    below = np.float32([-2e-3, -0.6e-3, -0.4e-3])
    y, (dvariance,) = value_and_gradients(function, [below], point.dy)
    zero, _ = value_and_gradients(function, [np.float32([0, 0, -0.4e-3])], point.dy)
    np.testing.assert_array_equal(y, zero)
    assert (dvariance[:2] == 0).all()
    assert dvariance[2] != 0


def test_a_mask_is_a_reason(engine):
    if engine.name != "native":
        pytest.skip("the plain formula takes it")
    point = Point(UNMASKED[0])
    x, mask = ops.convert_to_tensor(point.x), ops.ones(point.x.shape[:1], "bool")
    statistics = engine.moments(point.call, x)
    assert "mask" in engine.moments(point.call, x, mask)
    assert "mask" in engine.apply(point.call, x, statistics, None, None, mask)
