"""The promise on numbers: every case, mean, spread and dtype against float64 or longdouble."""

import contextlib

import keras
import ml_dtypes
import numpy as np
import pytest
from keras import ops

import truenorm
from cases import CASES, EPSILON, Case
from gradients import value_and_gradients
from promise import Expected
from truenorm.core import reference

# |mean| / sd up to 1e4; the last is a decade beyond the promise, and beyond what longdouble, the
# yardstick of float64, resolves.
SPREADS = [(0, 1), (100, 1), (1000, 0.1), (1e4, 1), (-1e4, 1), (1e4, 0.1)]
DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}


@pytest.fixture(params=[None, "plain"], ids=["fastest", "plain"], autouse=True)
def implementation(request):
    """Every test holds both: what a call on a CPU takes, and what GPUs, XLA and exports take."""
    case = request.node.callspec.params.get("case")
    if request.param is None and case is not None and case.mask:
        pytest.skip("masks take the plain path either way")
    with truenorm.use_implementation(request.param):
        yield


def wide_floats():
    """On JAX, float64 must be switched on."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.enable_x64(True)
    return contextlib.nullcontext()


def draw(case: Case, mean, sd, dtype, seed=0):
    rng = np.random.default_rng(seed)
    x = (mean + sd * rng.standard_normal(case.shape)).astype(dtype)
    parameter_dtype = np.float64 if dtype == np.float64 else np.float32
    gamma, beta = rng.standard_normal((2, *case.parameter_shape)).astype(parameter_dtype)
    cotangent = rng.standard_normal(case.shape).astype(dtype)
    return x, gamma, beta, cotangent, case.make_mask(rng)


def calls(case: Case, mask=None):
    """The case as a function of its tensors: x, gamma, and beta where there is one."""

    def function(x, gamma, beta=None):
        return case.call(x, gamma, beta, mask)

    return function


def check(case: Case, spreads, dtype, name):
    function = None
    for mean, sd in spreads:
        x, gamma, beta, cotangent, mask = draw(case, mean, sd, dtype)
        arguments = [x, gamma, beta] if case.has_beta else [x, gamma]
        function = function or calls(case, mask)  # the mask is the same for all spreads
        y, gradients = value_and_gradients(function, arguments, cotangent)
        expected = Expected(case, x, gamma, beta, mask, name)
        assert y.shape == case.shape
        errors = {"y": expected.forward_error(y)}
        if name in ("float32", "float64"):
            errors |= expected.gradient_errors(cotangent, *gradients)
        allowed = {key: error for key, error in errors.items() if error < 1}
        assert errors == allowed, f"mean {mean}, sd {sd}: times what is promised"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32(case):
    check(case, SPREADS, np.float32, "float32")


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_half_precision(case, name):
    check(case, SPREADS, DTYPES[name], name)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float64(case):
    with wide_floats():
        check(case, SPREADS[:-1], np.float64, "float64")


def test_two_parts_of_the_mean():
    """Rounding the mean to float32 once would miss the promise in backward by up to 60 times."""
    case = Case("rows", "layer", (4096, 20))
    check(case, [(1e4, 1)], np.float32, "float32")
    x, _, _, cotangent, _ = draw(case, 1e4, 1, np.float32)
    mean = x.astype(np.float64).mean(1, keepdims=True)
    rounded = mean.astype(np.float32).astype(np.float64)
    rstd = 1 / np.sqrt(x.astype(np.float64).var(1, keepdims=True) + EPSILON)
    terms = cotangent * (x - mean) * rstd
    error = abs((cotangent * (x - rounded) * rstd).sum(0) - terms.sum(0))
    # The check is sharp enough to see the difference.
    assert np.max(error / (4e-6 * np.sqrt((terms**2).sum(0)))) > 1


@pytest.mark.parametrize("name", ["float32", "float64"])
@pytest.mark.parametrize("axis", [1, 3])
def test_a_pivot_far_from_the_mean(axis, name):
    """The pivot is the mean of a quarter of the group; this quarter lies as far out as it can."""
    shape = (2, 8, 64, 64) if axis == 1 else (2, 64, 64, 8)
    case = Case("far", "group", shape, {"groups": 8, "axis": axis})
    with wide_floats() if name == "float64" else contextlib.nullcontext():
        x, gamma, beta, cotangent, _ = draw(case, 1000, 0.01, np.dtype(name))
        pixels = np.moveaxis(x, axis, -1).reshape(2, 64 * 64, 8)
        first = np.arange(64 * 64) < 64 * 64 / 4
        pixels = pixels + np.where(first, 3, -1)[:, None].astype(name)
        x = np.ascontiguousarray(np.moveaxis(pixels.reshape(2, 64, 64, 8), -1, axis))
        y, gradients = value_and_gradients(calls(case), [x, gamma, beta], cotangent)
        expected = Expected(case, x, gamma, beta, None, name)
        assert expected.forward_error(y) < 1
        assert max(expected.gradient_errors(cotangent, *gradients).values()) < 1


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("function", ["group", "layer", "rms"])
@pytest.mark.parametrize("length", [96, 6272, 1009])
def test_huge_inputs_are_finite_and_right(function, name, length):
    options = {"group": {"groups": 2, "axis": 1}, "layer": {}, "rms": {}}[function]
    case = Case(f"huge {function}", function, (4, length * 2), options)
    scale = 65504 if name == "float16" else 1e18
    rng = np.random.default_rng(0)
    x = rng.choice([-1, 1], case.shape) * rng.uniform(0.5, 1, case.shape) * scale
    x = x.astype(DTYPES[name])
    gamma, beta = rng.standard_normal((2, *case.parameter_shape)).astype(np.float32)
    cotangent = rng.standard_normal(case.shape).astype(DTYPES[name])
    arguments = [x, gamma, beta] if case.has_beta else [x, gamma]
    y, gradients = value_and_gradients(calls(case), arguments, cotangent)
    expected = Expected(case, x, gamma, beta, None, name)
    assert expected.forward_error(y) < 1
    assert all(np.isfinite(one.astype(np.float32)).all() for one in gradients)


@pytest.mark.parametrize("value", [0.0, 3.0, 1e4, -777.7])
@pytest.mark.parametrize("function", ["group", "instance", "layer"])
def test_constant_groups_yield_beta(function, value):
    options = {"groups": 2} if function == "group" else {}
    case = Case("constant", function, (2, 300, 6), options)
    x = np.full(case.shape, value, np.float32)
    gamma, beta = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)
    y = ops.convert_to_numpy(case.call(x, gamma, beta))
    np.testing.assert_allclose(y, np.broadcast_to(beta, y.shape), atol=2e-6)


def test_huge_constant_groups_are_finite():
    for value in (1e9, 1e12, 1e18):
        x = np.full((2, 1000, 4), value, np.float32)
        y = ops.convert_to_numpy(truenorm.ops.group_normalization(x, groups=2))
        assert np.isfinite(y).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.mask is None and 1 < np.prod(case.shape) < 1e4],
    ids=str,
)
def test_nan_and_inf_stay_in_their_group(case, bad):
    x, gamma, beta, cotangent, _ = draw(case, 1, 1, np.float32)
    arguments = [x, gamma, beta] if case.has_beta else [x, gamma]
    function = calls(case)
    clean, _ = value_and_gradients(function, arguments, cotangent)
    arguments[0] = x.copy()
    arguments[0][(0,) * x.ndim] = bad
    y, gradients = value_and_gradients(function, arguments, cotangent)
    marked = np.zeros(case.shape)
    marked[(0,) * x.ndim] = 1
    expanded, reduced = reference.expand(marked, case.view)
    group = np.broadcast_to(expanded.sum(reduced, keepdims=True), expanded.shape)
    group = reference.collapse(group, case.shape, case.view) > 0
    np.testing.assert_array_equal(y[~group], clean[~group])
    assert np.isfinite(gradients[0][~group]).all()
    assert not np.isfinite(y[group]).any() or not case.centered


@pytest.mark.parametrize("case", [case for case in CASES if case.mask], ids=str)
def test_masked_nan_and_inf_reach_nothing_else(case):
    x, gamma, beta, cotangent, mask = draw(case, 10, 1, np.float32)
    full = np.broadcast_to(mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim)), x.shape)
    arguments = [x, gamma, beta] if case.has_beta else [x, gamma]
    function = calls(case, mask)
    cotangent = np.where(full, cotangent, 0).astype(np.float32)
    y, gradients = value_and_gradients(function, arguments, cotangent)
    for bad in (np.nan, np.inf):
        dirty = np.where(full, x, np.float32(bad))
        y2, gradients2 = value_and_gradients(function, [dirty, *arguments[1:]], cotangent)
        np.testing.assert_array_equal(y2[full], y[full])
        for one, two in zip(gradients, gradients2, strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("case", [case for case in CASES if np.prod(case.shape) < 1e4], ids=str)
def test_keras_agrees_where_it_is_accurate(case):
    """Keras' own layers, |mean| / sd < 1, same defaults, within 1e-5."""
    kind, axis = case.function, case.options.get("axis", -1)
    if case.mask or case.per_sample or 0 in case.shape or kind == "filter_response":
        pytest.skip("Keras has no such case")
    if kind in ("group", "instance") and axis == 0:
        pytest.skip("Keras takes axis 0 for the batch axis")
    if kind in ("rms", "layer") and axis not in (-1, 3, [1, 2, 3]):
        pytest.skip("Keras' layers differ between backends away from the last axes")
    options = {**case.options, "epsilon": EPSILON}
    layer = {
        "group": keras.layers.GroupNormalization,
        "instance": lambda **more: keras.layers.GroupNormalization(groups=-1, **more),
        "layer": keras.layers.LayerNormalization,
        "rms": keras.layers.RMSNormalization,
    }[kind](**options)
    x, gamma, beta, _, _ = draw(case, 0.5, 1, np.float32)
    layer.build(case.shape)
    layer.set_weights([gamma, beta] if case.centered else [gamma])
    theirs = ops.convert_to_numpy(layer(ops.convert_to_tensor(x)))
    ours = ops.convert_to_numpy(case.call(x, gamma, beta))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
