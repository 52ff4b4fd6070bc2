"""The C++ core against the specification: every case, dtype and instruction set of the machine.

It knows no framework, so the tests run under one backend only.
"""

import ctypes
import os
import subprocess
import sys
import threading

import keras
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cases import CASES, EPSILON, Case
from core import CENTERED, GIVEN, Call, Core, address, array, check, load
from promise import Expected
from truenorm.core import reference
from truenorm.core.view import axes_view, group_view

pytestmark = [
    pytest.mark.skipif(
        keras.backend.backend() not in ("jax", "numpy"), reason="runs once, under JAX"
    ),
    pytest.mark.skipif(load()[0] is None, reason=str(load()[1])),
]

ISAS = load()[0].truenorm_isas().decode().split() if load()[0] else []
NUMPY = {"float32": np.float32, "float64": np.float64, "float16": np.float16,
         "bfloat16": ml_dtypes.bfloat16}  # fmt: skip
UNMASKED = [case for case in CASES if case.mask is None]


@pytest.fixture(params=ISAS)
def isa(request):
    """Each instruction set that the machine can run; afterwards the one that was in use."""
    core = load()[0]
    before = core.truenorm_isa()
    check(core.truenorm_set_isa(request.param.encode()))
    yield request.param
    check(core.truenorm_set_isa(before))


@pytest.fixture
def threads():
    """Sets the number of threads; afterwards it is what it was."""
    core = load()[0]
    before = core.truenorm_threads()
    yield lambda count: check(core.truenorm_set_threads(count))
    check(core.truenorm_set_threads(before))


def draw(case, mean, sd, dtype):
    """x, gamma, beta and a cotangent, as the core takes them."""
    rng = np.random.default_rng(0)
    compute = np.float64 if dtype == "float64" else np.float32
    x = (rng.standard_normal(case.shape) * sd + mean).astype(NUMPY[dtype])
    gamma = rng.uniform(0.5, 1.5, case.parameter_shape).astype(compute)
    beta = rng.standard_normal(case.parameter_shape).astype(compute)
    return x, gamma, beta, rng.standard_normal(case.shape).astype(NUMPY[dtype])


def core_of(case, dtype, offset=0):
    options = {"epsilon": EPSILON, "centered": case.centered, "per_sample": case.per_sample}
    return Core(case.view, case.shape, dtype, offset=offset, **options)


def compute(case, dtype, inputs, offset=0):
    x, gamma, beta, dy = inputs
    core = core_of(case, dtype, offset)
    y, statistics = core.forward(x, gamma, beta if case.has_beta else None)
    return y, statistics, *core.backward(x, gamma, dy, statistics)


@pytest.mark.parametrize("dtype", NUMPY)
@pytest.mark.parametrize("case", UNMASKED, ids=str)
def test_the_promise_and_the_same_bits_however_it_is_cut(case, dtype, isa, threads):
    grid = [(0, 1), (1e4, 1), (1000, 0.1)] if dtype in ("float32", "float64") else [(0, 1), (3, 1)]
    for mean, sd in grid:
        inputs = draw(case, mean, sd, dtype)
        threads(1)
        results = compute(case, dtype, inputs)
        for count, offset in ((2, 1), (5, 3)):
            threads(count)
            for one, other in zip(results, compute(case, dtype, inputs, offset), strict=True):
                assert one.tobytes() == other.tobytes(), (count, offset)
        y, _, dx, dgamma, dbeta = results
        x, gamma, beta, dy = inputs
        assert Expected(case, x, gamma, beta, None, dtype).forward_error(y) < 1
        wide = "float64" if dtype == "float64" else "float32"
        errors = Expected(case, x, gamma, beta, None, wide).gradient_errors(
            dy, dx.astype(y.dtype if wide == dtype else np.float32), dgamma,
            dbeta if case.has_beta else None,
        )  # fmt: skip
        if dtype != wide:
            # dx is rounded to the storage dtype besides: compared with what that allows.
            exact = reference.gradient(
                *(one.astype(np.float64) for one in (x, gamma, beta, dy)), case.view,
                epsilon=EPSILON, centered=case.centered,
            )[0]  # fmt: skip
            digits = {"float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
            np.testing.assert_allclose(
                dx.astype(np.float64), exact, rtol=digits, atol=max(1e-5, 2.0**-24)
            )
            errors.pop("dx", None)
        assert max(errors.values(), default=0) < 1, errors


LARGE = [
    Case("group last, cut in chunks", "group", (2, 300, 150, 12), {"groups": 4}),
    Case("group first, cut in chunks", "group", (1, 6, 400, 300), {"groups": 2, "axis": 1}),
    Case("instance first, many rows", "instance", (40, 8, 33, 47), {"axis": 1}),
    Case("layer over samples, wide gamma", "layer", (5, 60, 70, 11), {"axis": [1, 2, 3]}),
    Case("layer over axis 1, wide", "layer", (3, 40, 5003), {"axis": 1}),
    Case("layer, per sample, wide", "layer", (6, 500, 96), {}, None, True),
    Case("layer over axes 1 and 3, long", "layer", (2, 700, 9, 20), {"axis": (1, 3)}),
    Case("rms, long rows", "rms", (3, 90001)),
    Case("layer, many rows of width 20", "layer", (20011, 20)),
    Case("group of all channels, one sample", "group", (1, 90, 90, 40), {"groups": 1}),
    (FIRST := Case("batch first", "batch", (24, 10, 37, 41), {"axis": 1})),
    (PIECES := Case("batch first, in pieces", "batch", (3, 5, 300, 261), {"axis": 1})),
    Case("batch first, small images", "batch", (60, 30, 7, 9), {"axis": 1}),
    Case("batch last, wide", "batch", (301, 1100)),
    Case("batch last, many rows", "batch", (64, 14, 14, 300)),
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_what_several_threads_share(case, dtype, isa, threads):
    inputs = draw(case, 10, 1, dtype)
    threads(1)
    results = compute(case, dtype, inputs)
    for count, offset in ((2, 1), (5, 0)):
        threads(count)
        for one, other in zip(results, compute(case, dtype, inputs, offset), strict=True):
            assert one.tobytes() == other.tobytes()
    x, gamma, beta, dy = inputs
    expected = Expected(case, x, gamma, beta, None, dtype)
    assert expected.forward_error(results[0]) < 1
    errors = Expected(case, x, gamma, beta).gradient_errors(
        dy, results[2].astype(np.float32), results[3], results[4] if case.has_beta else None
    )
    if dtype == "bfloat16":
        errors.pop("dx")
    assert max(errors.values()) < 1, errors


def test_streamed_outputs_are_the_same_numbers(isa):
    """Large outputs are stored past the cache, where their addresses allow it."""
    for case in (
        Case("rows", "layer", (1500, 768)),
        Case("columns", "group", (2, 112, 112, 64)),
        Case("columns with gamma by row", "layer", (8, 63, 56, 56), {"axis": 1}),
        Case("rows that are segments", "group", (2, 64, 112, 112), {"axis": 1}),
        Case("stretches", "batch", (8, 16, 112, 112), {"axis": 1}),
    ):
        inputs = draw(case, 1, 1, "float32")
        # One element behind a multiple of 64 bytes, nothing can be streamed.
        for one, other in zip(
            compute(case, "float32", inputs), compute(case, "float32", inputs, 1), strict=True
        ):
            assert one.tobytes() == other.tobytes()


COLUMNS = Case("columns, sample by sample", "instance", (16, 40, 40, 64))
FAR = [
    *UNMASKED[:2],
    LARGE[0],
    LARGE[4],
    LARGE[7],
    FIRST,
    PIECES,
    COLUMNS,
    Case("short rows", "layer", (70, 30)),
    Case("rows", "layer", (40, 300)),
]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("case", FAR, ids=str)
def test_a_pivot_far_from_the_mean(case, dtype, isa):
    """The pivot is the mean of four elements: if it lies far out, the moments are taken again."""
    x, gamma, beta, dy = draw(case, 100, 1, dtype)
    flat = x.reshape(case.shape[0], -1)
    flat[:, : flat.shape[1] // 3] = 0
    quarters = [i * flat.shape[1] // 4 for i in range(4)]
    flat[:, range(64) if case is COLUMNS else quarters] = 3e4
    y = compute(case, dtype, (x, gamma, beta, dy))[0]
    assert Expected(case, x, gamma, beta, None, dtype).forward_error(y) < 1


@pytest.mark.parametrize(("dtype", "huge"), [("float16", 65504), ("float32", 1e18),
                                             ("bfloat16", 1e18), ("float64", 1e150)])  # fmt: skip
@pytest.mark.parametrize("case", [UNMASKED[0], UNMASKED[1], Case("layer", "layer", (70, 20)),
                                  Case("long", "layer", (3, 70000)), Case("rms", "rms", (9, 700))],
                         ids=str)  # fmt: skip
def test_huge_inputs_are_finite_and_right(case, dtype, huge, isa):
    x, gamma, beta, dy = draw(case, 0, 1, dtype)
    x = np.where(x > 0, huge, -huge).astype(x.dtype)
    y, _, dx, dgamma, _ = compute(case, dtype, (x, gamma, beta, dy))
    assert Expected(case, x, gamma, beta, None, dtype).forward_error(y) < 1
    assert np.isfinite(dx.astype(np.float64)).all()
    assert np.isfinite(dgamma).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("case", [case for case in UNMASKED if 0 not in case.shape][::3], ids=str)
def test_nan_and_inf_stay_in_their_group(case, bad, isa):
    x, gamma, beta, dy = draw(case, 0, 1, "float32")
    clean = compute(case, "float32", (x, gamma, beta, dy))
    spoilt = x.copy()
    spoilt.reshape(-1)[x.size // 2] = bad
    y, _, dx, _, _ = compute(case, "float32", (spoilt, gamma, beta, dy))
    labels = np.zeros(x.shape, bool)
    labels.reshape(-1)[x.size // 2] = True
    expanded, reduced = reference.expand(labels, case.view)
    touched = np.broadcast_to(expanded.any(reduced, keepdims=True), expanded.shape)
    touched = reference.collapse(touched, x.shape, case.view)
    np.testing.assert_array_equal(y[~touched], clean[0][~touched])
    np.testing.assert_array_equal(dx[~touched], clean[2][~touched])
    assert not np.isfinite(y[touched]).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_half_precision_number_survives(dtype, isa):
    """y = x where the statistics are given as mean 0 and variance 1, for all 65536 numbers."""
    every = np.arange(65536, dtype=np.uint16).view(NUMPY[dtype])
    for shape in ((65536 // 256, 256), (65536 // 8, 8), (1, 256, 256)):
        view = axes_view(len(shape), [1])
        core = Core(view, shape, dtype, epsilon=0.0, centered=True)
        core.call.flags |= GIVEN
        x = every.reshape(shape)
        statistics = np.tile(np.float32([0, 0, 1]), (core.groups, 1))
        y, _ = core.forward(x, None, None, statistics)
        np.testing.assert_array_equal(y.astype(np.float32), x.astype(np.float32))


def test_given_statistics_are_constants(isa, threads):
    for case in (UNMASKED[0], UNMASKED[1], Case("layer", "layer", (70, 20)), LARGE[0], LARGE[3]):
        x, gamma, beta, dy = draw(case, 2, 1, "float32")
        core = core_of(case, "float32")
        core.call.flags |= GIVEN
        rng = np.random.default_rng(1)
        mean, variance = rng.standard_normal(core.groups), rng.uniform(0.5, 2, core.groups)
        statistics = np.stack([mean, 0 * mean, variance], 1).astype(np.float32)
        y, after = core.forward(x, gamma, beta, statistics.copy())
        np.testing.assert_array_equal(after, statistics)
        expanded, reduced = reference.expand(x.astype(np.float64), case.view)
        shape = [1 if i in reduced else n for i, n in enumerate(expanded.shape)]
        mean, variance = (statistics[:, i].astype(np.float64).reshape(shape) for i in (0, 2))
        rstd = 1 / np.sqrt(variance + core.call.epsilon)
        xhat = reference.collapse((expanded - mean) * rstd, x.shape, case.view)
        scale = reference.parameter(gamma.astype(np.float64), 1, x, case.view)
        offset = reference.parameter(beta.astype(np.float64), 0, x, case.view)
        np.testing.assert_allclose(y, xhat * scale + offset, rtol=1e-5, atol=1e-5)
        dx, dgamma, dbeta = core.backward(x, gamma, dy, statistics)
        slope = reference.collapse(np.broadcast_to(rstd, expanded.shape), x.shape, case.view)
        np.testing.assert_allclose(dx, slope * scale * dy, rtol=1e-5, atol=1e-6)
        for found, terms in ((dgamma, dy * xhat), (dbeta, dy.astype(np.float64))):
            expected = reference.sum_to_parameter(terms, gamma, case.view)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_the_statistics_are_the_mean_and_the_variance(isa):
    for case in (UNMASKED[0], UNMASKED[1], Case("layer", "layer", (70, 20)), LARGE[0], LARGE[7]):
        x, gamma, beta, _ = draw(case, 5, 2, "float32")
        core = core_of(case, "float32")
        _, statistics = core.forward(x, gamma, beta)
        mean, rest, variance = statistics.astype(np.float64).T
        expanded, reduced = reference.expand(x.astype(np.float64), case.view)
        exact = expanded.var(reduced) if case.centered else (expanded**2).mean(reduced)
        np.testing.assert_allclose(variance, exact.ravel(), rtol=1e-6)
        center = expanded.mean(reduced).ravel() * case.centered
        # Of numbers with a deviation of 2: 2e-7 of it.
        np.testing.assert_allclose(mean + rest, center, rtol=1e-9, atol=4e-7)


@pytest.mark.parametrize("dtype", NUMPY)
def test_statistics_alone_are_those_of_a_normalization(dtype, isa, threads):
    for case in UNMASKED + LARGE:
        x, gamma, beta, _ = draw(case, 5, 2, dtype)
        core = core_of(case, dtype)
        _, statistics = core.forward(x, gamma, beta)
        for count in (1, 3):
            threads(count)
            assert statistics.tobytes() == core.moments(x).tobytes(), case


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("case", UNMASKED + LARGE, ids=str)
def test_the_gradient_in_given_statistics(case, dtype, isa, threads):
    x, gamma, beta, dy = draw(case, 5, 2, dtype)
    core = core_of(case, dtype)
    _, statistics = core.forward(x, gamma, beta)
    core.call.flags |= GIVEN
    found = []
    for count, parameters in ((1, True), (3, True), (1, False)):
        threads(count)
        dstatistics = np.full((core.groups, 2), np.nan, core.compute)
        results = core.backward(x, gamma, dy, statistics, parameters, dstatistics)
        found.append((*(one.tobytes() for one in results if one is not None), dstatistics))
        np.testing.assert_array_equal(results[0], core.backward(x, gamma, dy, statistics)[0])
    assert found[0][:-1] == found[1][:-1]
    assert found[0][0] == found[2][0]
    for other in found[1:]:
        assert found[0][-1].tobytes() == other[-1].tobytes()

    wide = np.longdouble if dtype == "float64" else np.float64
    scale = reference.parameter(gamma.astype(wide), 1, x, case.view)
    expanded, reduced = reference.expand(x.astype(wide), case.view)
    g, _ = reference.expand(scale * dy.astype(wide), case.view)
    shape = [1 if i in reduced else n for i, n in enumerate(expanded.shape)]
    high, low, variance = (one.reshape(shape) for one in statistics.astype(wide).T)
    rstd = 1 / np.sqrt(variance + wide(core.call.epsilon))
    unit = 2e-14 if dtype == "float64" else 4e-6
    terms = (-rstd * g * case.centered, -0.5 * rstd**3 * g * (expanded - high - low))
    for one, term in zip(dstatistics.T, terms, strict=True):
        norm = np.sqrt((term**2).sum(reduced)).ravel()
        assert (abs(one - term.sum(reduced).ravel()) <= unit * norm).all()


def test_what_the_halves_cannot_take_is_an_error():
    case = Case("layer", "layer", (70, 20))
    x, gamma, beta, dy = draw(case, 0, 1, "float32")
    core = core_of(case, "float32")
    _, statistics = core.forward(x, gamma, beta)
    with pytest.raises(ValueError, match="dstatistics was passed"):
        core.backward(x, gamma, dy, statistics, dstatistics=np.zeros((core.groups, 2), np.float32))
    core.call.flags |= GIVEN
    with pytest.raises(ValueError, match="a null pointer"):
        core.moments(x)


@pytest.mark.parametrize("given", [(True, False), (False, True), (False, False)], ids=str)
@pytest.mark.parametrize("case", UNMASKED[::4], ids=str)
def test_gamma_and_beta_may_be_absent(case, given, isa):
    x, gamma, beta, _ = draw(case, 0, 1, "float32")
    core = core_of(case, "float32")
    absent = (gamma if given[0] else None, beta if given[1] else None)
    full = (gamma if given[0] else np.ones_like(gamma), beta if given[1] else np.zeros_like(beta))
    y, expected = core.forward(x, *absent)[0], core.forward(x, *full)[0]
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)


@st.composite
def problems(draw):
    """A view that `view.py` can make, and a shape for it."""
    rank = draw(st.integers(2, 5))
    shape = [draw(st.integers(0 if draw(st.booleans()) else 1, 9)) for _ in range(rank)]
    channel = draw(st.integers(1, rank - 1))
    if draw(st.booleans()):
        groups = draw(st.integers(1, 4))
        shape[channel] = groups * draw(st.integers(1, 40))
        return group_view(rank, channel, groups), tuple(shape)
    shape[channel] = draw(st.integers(1, 300))
    axes = st.sets(st.integers(1, rank - 1), min_size=1)
    return axes_view(rank, sorted(draw(axes)), sorted(draw(axes))), tuple(shape)


@settings(deadline=None, max_examples=150)
@given(
    problem=problems(),
    dtype=st.sampled_from(["float32", "float64"]),
    centered=st.booleans(),
    per_sample=st.booleans(),
    isa=st.sampled_from(ISAS or [None]),
)
def test_random_views(problem, dtype, centered, per_sample, isa):
    view, shape = problem
    check(load()[0].truenorm_set_isa(isa.encode()))
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, *shape)).astype(dtype)
    size = view.parameter_shape(shape)
    size = (shape[0], *size) if per_sample else size
    gamma, beta = rng.standard_normal((2, *size)).astype(dtype)
    options = {"epsilon": EPSILON, "centered": centered}
    core = Core(view, shape, dtype, per_sample=per_sample, **options)
    y, statistics = core.forward(x, gamma, beta)
    found = core.backward(x, gamma, dy, statistics)
    wide = [one.astype(np.float64) for one in (x, gamma, beta, dy)]
    np.testing.assert_allclose(
        y, reference.normalize(*wide[:3], view, **options), rtol=1e-4, atol=1e-4
    )
    for one, exact in zip(found, reference.gradient(*wide, view, **options), strict=True):
        np.testing.assert_allclose(one, exact, rtol=1e-3, atol=2e-3 * np.sqrt(1 + x.size / 50))
    check(load()[0].truenorm_set_isa(ISAS[0].encode()))


def a_call(**changes):
    """The call of a layer normalization of (2, 4), with fields changed."""
    fields = {
        "dtype": 0, "flags": CENTERED, "epsilon": 1e-3, "groups": -1, "rank": 2,
        "factor_count": 2, "shape": array([2, 4]), "factors": array([0, 0, 2, 0, 1, 0, 3, 1]),
        **changes,
    }  # fmt: skip
    return Call(*(fields[name] for name, _ in Call._fields_))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": 9}, "unknown dtype"),
        ({"rank": 0}, "rank"),
        ({"rank": 99}, "rank"),
        ({"factor_count": 5}, "factors"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"epsilon": float("nan")}, "epsilon"),
        ({"shape": array([2, -4])}, "negative"),
        ({"shape": array([1 << 40, 1 << 40])}, "too many elements"),
        ({"factors": array([0, 0, 2, 0, 0, 0, 3, 1])}, "each axis once"),
        ({"factors": array([0, 0, 3, 0, 1, 0, 2, 1])}, "ascend"),
        ({"factors": array([0, 0, 2, 7, 1, 0, 3, 1])}, "vary"),
        ({"factors": array([0, 0, 2, 0, 1, 1, 3, 1])}, "halves"),
        ({"factor_count": 3, "groups": 3,
          "factors": array([0, 0, 0, 0, 1, 1, 2, 1, 1, 2, 3, 1])}, "divide"),
    ],
)  # fmt: skip
def test_a_wrong_call_is_an_error_not_a_crash(changes, message):
    sizes = ctypes.c_int64(), ctypes.c_int64()
    call = a_call(**changes)
    with pytest.raises(ValueError, match=message):
        check(load()[0].truenorm_sizes(ctypes.byref(call), *map(ctypes.byref, sizes)))


def test_null_and_crooked_pointers_are_errors():
    core, call = load()[0], a_call()
    x, y, statistics = (np.zeros(n, np.float32) for n in (8, 8, 6))
    rest = (address(y), address(statistics), None)
    with pytest.raises(ValueError, match="null pointer"):
        check(core.truenorm_forward(ctypes.byref(call), None, None, None, *rest))
    crooked = ctypes.c_void_p(x.ctypes.data + 1)
    with pytest.raises(ValueError, match="aligned"):
        check(core.truenorm_forward(ctypes.byref(call), crooked, None, None, *rest))
    with pytest.raises(ValueError, match="instruction set 'z80' is none of those"):
        check(core.truenorm_set_isa(b"z80"))
    with pytest.raises(ValueError, match="threads must be 1"):
        check(core.truenorm_set_threads(0))


def test_two_threads_at_once(threads):
    threads(3)
    cases = [LARGE[0], LARGE[1]]
    inputs = [draw(case, 0, 1, "float32") for case in cases]
    expected = [compute(case, "float32", one) for case, one in zip(cases, inputs, strict=True)]
    wrong = []

    def repeat(i):
        for _ in range(10):
            for one, other in zip(
                expected[i], compute(cases[i], "float32", inputs[i]), strict=True
            ):
                if one.tobytes() != other.tobytes():
                    wrong.append(i)

    workers = [threading.Thread(target=repeat, args=(i % 2,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert not any(worker.is_alive() for worker in workers)
    assert wrong == []


SCRIPT = """
import sys, threading
sys.path.insert(0, {tests!r})
import numpy as np
from core import Core, load, check
from truenorm.core.view import group_view

check(load()[0].truenorm_set_threads(3))
shape = (2, 200, 200, 16)
core = Core(group_view(4, 3, 4), shape, "float32", epsilon=1e-3, centered=True)
x = np.random.default_rng(0).standard_normal(shape).astype("float32")
y, _ = core.forward(x, None, None)
{body}
"""

AT_FORK = """
import os, signal
child = os.fork()
if child == 0:
    signal.alarm(60)
    same = np.array_equal(core.forward(x, None, None)[0], y)
    os._exit(0 if same else 3)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
assert code == 0, code
assert np.array_equal(core.forward(x, None, None)[0], y)
print("both computed")
"""

AT_EXIT = """
def forever():
    while True:
        core.forward(x, None, None)

for _ in range(2):
    threading.Thread(target=forever, daemon=True).start()
import time
time.sleep(0.5)
print("leaving")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize(("body", "word"), [(AT_FORK, "both computed"), (AT_EXIT, "leaving")],
                         ids=["fork after first use", "exit while calls run"])  # fmt: skip
def test_processes_end(body, word):
    script = SCRIPT.format(tests=os.path.dirname(os.path.dirname(__file__)), body=body)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120,
        env=os.environ | {"KERAS_BACKEND": "numpy"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert word in done.stdout


def test_environment_variables():
    code = (
        "from truenorm.native import library; library.load();"
        "print(library.isa(), library.threads())"
    )

    def run(**variables):
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=120,
            env=os.environ | {"KERAS_BACKEND": "numpy"} | variables,
        ).stdout.split()  # fmt: skip

    assert run(TRUENORM_NUM_THREADS="7")[-1] == "7"
    for name in ISAS:
        assert run(TRUENORM_ISA=name)[-2] == name
