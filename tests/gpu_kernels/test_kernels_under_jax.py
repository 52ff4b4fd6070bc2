"""What the primitives of JAX become on a GPU, with jax-triton's place taken by the interpreter.

The stand-in gives a kernel its parameters as jax-triton does: by place what it reads and then what
it writes, by name all else. That the real one accepts the kernels shows only where it can be
imported, which takes a JAX for GPUs; `make gpu` runs it.
"""

import functools
import importlib
import sys
import types

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch

import truenorm.jax
from cases import EPSILON
from gpu_kernels.running import BATCH, WAYS
from halves import Point
from promise import Expected
from truenorm.core import engine as choice
from truenorm.core.call import Call, Statistics
from truenorm.native import jax_halves, jax_primitives
from truenorm.triton import jax as engine
from truenorm.triton import jax_fused, jax_kernels

pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")
started = []


def as_torch(a):
    if a.dtype != ml_dtypes.bfloat16:
        return torch.from_numpy(a)
    return torch.from_numpy(a.view(np.int16)).view(torch.bfloat16)


def as_numpy(t):
    if t.dtype is not torch.bfloat16:
        return t.numpy()
    return t.view(torch.int16).numpy().view(ml_dtypes.bfloat16)


def triton_call(*inputs, kernel, out_shape, grid, num_warps, **constants):
    started.append(kernel.__name__)
    names = kernel.arg_names[: len(inputs) + len(out_shape)]
    # What is given by name must be given exactly once.
    assert not set(names) & set(constants)
    assert set(names) | set(constants) == set(kernel.arg_names)

    def run(*arrays):
        read = [as_torch(np.array(one)) for one in arrays]
        written = [
            torch.zeros(one.shape, dtype=getattr(torch, str(one.dtype))) for one in out_shape
        ]
        kernel[(grid,)](*read, *written, **constants)
        return [as_numpy(one) for one in written]

    return jax.pure_callback(run, out_shape, *inputs)


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    module = types.ModuleType("jax_triton")
    module.triton_call = triton_call
    monkeypatch.setitem(sys.modules, "jax_triton", module)
    jax_kernels.unavailable.cache_clear()
    started.clear()
    yield
    jax_kernels.unavailable.cache_clear()


@pytest.mark.parametrize("split", [False, True], ids=["", "split"])
@pytest.mark.parametrize("way", WAYS)
def test_forward_and_backward(way, split, request):
    case = WAYS[way]
    if split:
        request.getfixturevalue("small_samples_are_split")
    rng = np.random.default_rng(0)
    view = case.view.vary_over(0) if case.per_sample else case.view
    call = Call(view, case.centered, EPSILON)
    x, dy = (5 * (i == 0) + rng.standard_normal(case.shape).astype("float32") for i in range(2))
    gamma, beta = (rng.standard_normal(case.parameter_shape).astype("float32") for _ in range(2))
    if not case.has_beta:
        beta = np.zeros_like(beta)
    y, statistics = engine._forward(*map(jnp.asarray, (x, gamma, beta)), call=call, lead=1)
    shape = jax_primitives.forward_shapes(jnp.asarray(x), jnp.asarray(gamma), call, 1)[1].shape
    assert statistics.shape == shape
    operands = map(jnp.asarray, (x, gamma, dy))
    dx, dgamma, dbeta = engine._backward(*operands, statistics, call=call, lead=1)
    assert started  # not the plain formula
    expected = Expected(case, x, gamma, beta)
    errors = {"y": expected.forward_error(np.asarray(y))}
    given = (dx, dgamma, dbeta if case.has_beta else None)
    errors |= expected.gradient_errors(dy, *(None if a is None else np.asarray(a) for a in given))
    assert all(one <= 1 for one in errors.values()), errors


def test_what_the_kernels_do_not_read_is_plain():
    case = next(one for one in importlib.import_module("cases").CASES if "1 and 3" in one.name)
    x = jnp.ones(case.shape)
    gamma = jnp.ones(case.parameter_shape)
    call = Call(case.view, True, EPSILON)
    y, _ = engine._forward(x, gamma, 0 * gamma, call=call, lead=1)
    assert not started
    assert y.shape == x.shape


def test_reasons():
    x, call = jnp.ones((3, 4)), Call(WAYS["rows"].view, True, EPSILON)
    assert "serve arrays on GPUs" in engine.normalize(call, x, None, None)
    reasons = []

    @functools.partial(jax.jit)
    def traced(x):
        reasons.append(engine.normalize(call, x, None, None, jnp.ones(3, bool)))
        return x

    traced(x)
    assert "mask" in reasons[0]


@pytest.fixture
def cpu_is_a_gpu():
    """XLA's CPU takes what is lowered for GPUs: this process has no other use for it."""
    jax_primitives.lower_for("cpu", engine._forward, engine._backward)
    jax_fused.lower_for("cpu")
    jax_halves.lower_for("cpu", *engine.HALVES)


def front(way, activation=None, residual=False, implementation=None):
    """A function of (x, gamma, beta, residual) that calls the front as its users do."""
    case = WAYS[way]
    call = Call(case.view, case.centered, EPSILON, activation, residual)
    name = implementation

    def function(x, gamma, beta, other):
        more = (None, None, other) if residual else ()
        return choice.normalize(truenorm.jax.FRONT, name, call, x, gamma, beta, *more)

    return function


def operands(way, dtype="float32"):
    case, rng = (WAYS | BATCH)[way], np.random.default_rng(0)
    x, other, dy = (jnp.asarray(rng.standard_normal(case.shape), dtype) for _ in range(3))
    gamma, beta = (
        jnp.asarray(rng.standard_normal(case.parameter_shape), "float32") for _ in range(2)
    )
    return x, gamma, beta, other, dy


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("activation", [None, "silu", "gelu"])
@pytest.mark.parametrize("way", ["rows", "pixels", "columns"])
def test_the_front_under_jit(way, activation, residual, dtype, cpu_is_a_gpu):
    """y, and every gradient, are the plain formula's: which has been held against float64."""
    *given, dy = operands(way, dtype)

    def both(function):
        def run(*given):
            y, pullback = jax.vjp(function, *given)
            return y, pullback((dy, dy) if residual else dy)

        return jax.jit(run)(*given)

    found = both(front(way, activation, residual))
    names = set(started)
    wanted = both(front(way, activation, residual, "plain"))
    kind = "looped" if way == "columns" else "held"
    assert names == {f"{kind}_sum" if residual else f"{kind}_forward", f"{kind}_backward"}
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype
        close = {"rtol": 2e-5, "atol": 2e-5} if dtype == "float32" else {"rtol": 0.03, "atol": 0.06}
        np.testing.assert_allclose(np.float32(a), np.float32(b), **close)


@pytest.mark.parametrize("way", ["columns", "wide rows"])
def test_a_residual_of_split_samples(way, small_samples_are_split, cpu_is_a_gpu):
    x, gamma, beta, other, _ = operands(way)
    found = jax.jit(front(way, "silu", True))(x, gamma, beta, other)
    assert started == ["chunk_statistics", "combine_statistics", "looped_apply"]
    wanted = front(way, "silu", True, "plain")(x, gamma, beta, other)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("way", ["rows", "columns"])
def test_other_derivatives_of_what_is_fused(way, residual, cpu_is_a_gpu):
    """Forward mode, the gradient of the gradient, and vmap are the plain formula's."""
    x, gamma, beta, other, dy = operands(way)
    fused, plain = (front(way, "silu", residual, name) for name in (None, "plain"))

    def each(function):
        def y(x, gamma, beta):
            found = function(x, gamma, beta, other * 2 * x if residual else None)
            return found[0] * (1 + found[1]) if residual else found

        def squared(x, gamma, beta):
            dx = jax.grad(lambda x: (y(x, gamma, beta) * dy).sum())(x)
            return (dx**2).sum()

        tangents = jax.jit(lambda *p: jax.jvp(y, p, (dy, gamma, beta))[1])(x, gamma, beta)
        second = jax.jit(jax.grad(squared, (0, 1, 2)))(x, gamma, beta)
        stacked = jnp.stack([x, 2 * x + 1])
        mapped = jax.jit(jax.vmap(jax.grad(lambda x: (y(x, gamma, beta) * dy).sum())))(stacked)
        return tangents, second, mapped

    for a, b in zip(jax.tree.leaves(each(fused)), jax.tree.leaves(each(plain)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.max(jnp.abs(b))))


HALVED = ["rows", "pixels, per sample", "columns", "wide rows", "rms", *BATCH]


@pytest.mark.parametrize("split", [False, True], ids=["", "split"])
@pytest.mark.parametrize("way", HALVED)
def test_halves(way, split, cpu_is_a_gpu, request):
    """What sums over groups is by kernels: the statistics, and the gradient of given ones."""
    if split:
        request.getfixturevalue("small_samples_are_split")
    point = Point((WAYS | BATCH)[way])
    other = point.other()
    drest, dvariance = point.rng.standard_normal((2, point.mean.size)).astype("float32")
    x, gamma, beta, dy = map(jnp.asarray, (point.x, point.gamma, point.beta, point.dy))
    beta = beta if point.case.has_beta else None

    @jax.jit
    def moments(x):
        found, pullback = jax.vjp(functools.partial(engine.moments, point.call), x)
        zero = jnp.zeros_like(found.mean)
        return found, *pullback(type(found)(zero, drest, dvariance, zero))

    @jax.jit
    def apply(*operands):
        def y(x, gamma, beta, variance, mean, rest):
            statistics = Statistics(mean, rest, variance, other[3])
            return engine.apply(point.call, x, statistics, gamma, beta)

        found, pullback = jax.vjp(y, *operands)
        return found, pullback(dy)

    found, dx = moments(x)
    point.check_statistics(list(map(np.asarray, found)))
    point.check_gradient_of_statistics(np.asarray(dx), drest, dvariance)
    assert set(started) in ({"chunk_statistics"}, {"chunk_statistics", "combine_statistics"})
    started.clear()
    mean, rest, variance, _ = map(jnp.asarray, other)
    y, (dx, *gradients) = apply(x, gamma, beta, variance, mean, rest)
    gradients = [np.asarray(one) for one in gradients if one is not None]
    if not point.case.centered:
        gradients = gradients[:-2]
    point.check_y_of(other, np.asarray(y), np.asarray(dx), gradients)
    assert started[0] == "given_backward"


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("split", [False, True], ids=["", "split"])
@pytest.mark.parametrize("way", BATCH)
def test_batch_normalization(way, split, activation, cpu_is_a_gpu, request):
    """Training, as users call it, is the plain formula's, with the moving statistics."""
    if split:
        request.getfixturevalue("small_samples_are_split")
    case, (x, gamma, beta, _, dy) = BATCH[way], operands(way)
    moving = jnp.zeros_like(gamma), jnp.ones_like(gamma)

    def both(implementation):
        def y(x, gamma, beta):
            return truenorm.jax.batch_norm(
                3 + x, gamma, beta, *moving, axis=case.options.get("axis", -1),
                activation=activation, implementation=implementation,
            )  # fmt: skip

        def run(*given):
            found, pullback, after = jax.vjp(y, *given, has_aux=True)
            return found, after, pullback(dy)

        return jax.jit(run)(x, gamma, beta)

    found = both(None)
    assert started
    assert not set(started) & {"given_backward"}
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(both("plain")), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=3e-5)


def test_the_gpu_comes_first_where_jax_computes_on_one():
    names = [one.name for one in truenorm.jax.FRONT.engines]
    assert names == ["triton", "native", "plain"]
