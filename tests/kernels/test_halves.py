"""The halves of a normalization, `moments` and `apply`, on the engines of the backend that runs.

Held against the formula in float64 (longdouble for float64), with the bounds that the promise
implies: what errors of the statistics may do to y, y itself, and each gradient.
"""

import contextlib

import keras
import ml_dtypes
import numpy as np
import pytest
from keras import ops

from cases import CASES, EPSILON, Case
from gradients import value_and_gradients
from promise import BACKWARD, DIGITS, FORWARD, Expected
from truenorm import native
from truenorm.core import reference
from truenorm.core.call import Call, Statistics
from truenorm.core.plain import Plain

BACKEND = keras.backend.backend()
NATIVE = native.engine(BACKEND)
REASON = native.unavailable(BACKEND)
WITHOUT = pytest.mark.skipif(REASON is not None, reason=str(REASON))
ENGINES = [
    pytest.param(Plain(keras.ops), id="plain"),
    pytest.param(NATIVE, id="native", marks=WITHOUT),
]
DTYPES = {"float32": np.float32, "float64": np.float64, "float16": np.float16,
          "bfloat16": ml_dtypes.bfloat16}  # fmt: skip
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


class Point:
    """A case at random tensors, with the exact statistics of x and others to apply."""

    def __init__(self, case: Case, dtype="float32", mean=5.0, sd=1.0):
        rng = np.random.default_rng(0)
        view = case.view.vary_over(0) if case.per_sample else case.view
        self.case, self.dtype, self.rng = case, dtype, rng
        self.call = Call(view, case.centered, EPSILON)
        self.compute = np.float64 if dtype == "float64" else np.float32
        self.wide = np.longdouble if dtype == "float64" else np.float64
        self.x, self.dy = ((mean + sd * rng.standard_normal(case.shape)).astype(DTYPES[dtype]),
                           rng.standard_normal(case.shape).astype(DTYPES[dtype]))  # fmt: skip
        self.gamma, self.beta = rng.standard_normal((2, *case.parameter_shape)).astype(self.compute)
        self.mask = case.make_mask(rng)
        x, self.reduced = reference.expand(self.x.astype(self.wide), case.view)
        self.real = np.ones(x.shape, bool)
        if self.mask is not None:
            mask = self.mask.reshape(self.mask.shape + (1,) * (self.x.ndim - self.mask.ndim))
            self.real = reference.expand(np.broadcast_to(mask, self.x.shape), case.view)[0]
        self.groups = tuple(1 if i in self.reduced else n for i, n in enumerate(x.shape))
        self.expanded = x
        self.count = self.total(np.ones(x.shape))
        n = np.maximum(self.count, 1)
        self.mean = self.total(x) / n * case.centered
        # Long sums lose digits here too.
        self.mean = self.mean + self.total(x - self.mean) / n * case.centered
        self.variance = self.total((x - self.mean) ** 2) / n

    def total(self, terms):
        """The sum over the real elements of each group."""
        return np.where(self.real, terms, 0).sum(self.reduced, keepdims=True)

    def other(self):
        """Statistics that are not those of x, in the compute dtype, and flat."""
        size = int(np.prod(self.groups))
        mean, rest = self.rng.standard_normal((2, size)) * [[1], [1e-4]] * self.case.centered
        variance, count = self.rng.uniform(0.5, 2, size), np.full(size, self.count.max(initial=0))
        return [one.astype(self.compute) for one in (5 * (mean != 0) + mean, rest, variance, count)]

    def parameters(self, *tensors):
        """Gamma, and beta where there is one, of the tensors that begin with them; the others."""
        return (
            (*tensors[:2], tensors[2:]) if self.case.has_beta else (tensors[0], None, tensors[1:])
        )


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
        exact = point.mean, point.variance, point.count
        for one in statistics:
            assert numbers(one).shape == (point.mean.size,)
            assert numbers(one).dtype == point.compute
        found = [numbers(one).astype(point.wide).reshape(point.groups) for one in statistics]
        unit, spread = FORWARD[dtype], np.sqrt(point.variance + EPSILON)
        assert (abs(found[0] + found[1] - exact[0]) <= unit * spread).all()
        assert (abs(found[2] - exact[1]) <= 2 * unit * spread**2).all()
        np.testing.assert_array_equal(found[3], exact[2])

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
    """The mean is a constant, and has its derivative in the rest."""
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
    _, drest, dvariance = cotangent.astype(point.wide).reshape(3, *point.groups)
    n = np.maximum(point.count, 1)
    terms = (2 * dvariance / n * (point.expanded - point.mean), drest / n * case.centered)
    exact = np.where(point.real, sum(terms), 0)
    size = sum(abs(one) for one in terms).max(point.reduced, keepdims=True, initial=0)
    allowed = 4e-6 * size if dtype in DIGITS else BACKWARD[dtype] * size
    if dtype in DIGITS:
        allowed = allowed + abs(exact) * 2.0 ** -DIGITS[dtype] + 2.0**-24
    found = reference.expand(dx.astype(point.wide), case.view)[0]
    assert (abs(found - exact) <= allowed).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", UNMASKED, ids=str)
def test_y_of_other_statistics_and_its_gradient(case, dtype, engine):
    point = Point(case, dtype)
    mean, rest, variance, count = point.other()
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
    wide, groups = point.wide, point.groups
    one_mean = (mean.astype(wide) + rest).reshape(groups)
    rstd = (1 / np.sqrt(variance.astype(wide) + EPSILON)).reshape(groups)
    xhat = reference.collapse((point.expanded - one_mean) * rstd, case.shape, case.view)
    scale = reference.parameter(point.gamma.astype(wide), 1, xhat, case.view)
    shift = reference.parameter(point.beta.astype(wide) * case.has_beta, 0, xhat, case.view)
    exact, dy = scale * xhat + shift, point.dy.astype(wide)
    allowed = FORWARD[dtype] * np.maximum(1, abs(scale * xhat) + abs(shift))
    if dtype in DIGITS:
        allowed += 2.0 ** (np.floor(np.log2(np.maximum(abs(exact), 2.0**-14))) - DIGITS[dtype] + 1)
    assert (abs(y.astype(wide) - exact) <= allowed).all()

    unit = BACKWARD.get(dtype, 4e-6)
    g = reference.expand(scale * dy, case.view)[0]
    exact = g * rstd
    allowed = unit * abs(exact).max(point.reduced, keepdims=True)
    if dtype in DIGITS:
        allowed = allowed + abs(exact) * 2.0 ** -DIGITS[dtype] + 2.0**-24
    assert (abs(reference.expand(dx.astype(wide), case.view)[0] - exact) <= allowed).all()

    def to_parameter(terms):
        return reference.sum_to_parameter(terms, point.gamma, case.view)

    def to_groups(terms):
        return terms.sum(point.reduced).ravel()

    # A sum of one term has the error of xhat itself, as y has it.
    size = np.maximum(1, abs(xhat))
    expected = [(to_parameter, dy * xhat, dy * size)]
    if case.has_beta:
        expected.append((to_parameter, dy, dy))
    size = reference.expand(size, case.view)[0]
    terms = -0.5 * rstd**2 * g * reference.expand(xhat, case.view)[0]
    expected.append((to_groups, terms, 0.5 * rstd**2 * g * size))
    if case.centered:
        expected += 2 * [(to_groups, -rstd * g, rstd * g)]
    for one, (total, terms, size) in zip(found, expected, strict=True):
        assert one.dtype == point.compute
        assert (abs(one - total(terms)) <= unit * np.sqrt(total(size**2))).all()


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
