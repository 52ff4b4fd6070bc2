"""Activation and residual in the functions for JAX."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_numbers_of_jax import call

import truenorm.jax as tn
from surrounded import ACTIVATIONS, TRIALS


@pytest.mark.parametrize("trial", TRIALS, ids=str)
def test_the_promise(trial):
    inputs = x, gamma, beta, residual, mask, dy, ds = trial.draw()
    given = [x, gamma, beta if trial.case.has_beta else None, residual]
    there = [one is not None for one in given]

    def function(*tensors):
        tensors = iter(tensors)
        x, scale, bias, residual = (next(tensors) if one else None for one in there)
        return call(
            trial.case, x, scale, bias, mask, activation=trial.activation, residual=residual,
            implementation=trial.implementation,
        )  # fmt: skip

    @jax.jit
    def both(tensors, cotangents):
        result, pullback = jax.vjp(function, *tensors)
        return result, pullback(cotangents)

    with jax.enable_x64(True) if trial.dtype == "float64" else contextlib.nullcontext():
        tensors = [jnp.asarray(one) for one in given if one is not None]
        cotangents = jnp.asarray(dy) if residual is None else (jnp.asarray(dy), jnp.asarray(ds))
        result, gradients = both(tensors, cotangents)
    y, s = (result, None) if residual is None else map(np.asarray, result)
    gradients = iter(map(np.asarray, gradients))
    found = [next(gradients) if one else None for one in there]
    trial.check(inputs, np.asarray(y), s, found)


@pytest.mark.parametrize("activation", ACTIVATIONS[1:])
def test_far_out(activation):
    """No overflow, in the values or in the first two derivatives; NaN stays."""
    bias = jnp.asarray([-1e30, -1e3, -50.0, 0.0, 50.0, 1e3, 1e30])

    def value(bias):
        return tn.layer_norm(jnp.zeros((2, 7)), bias=bias, activation=activation)

    y, slope = value(bias), jax.grad(lambda bias: value(bias).sum())(bias)
    assert np.isfinite(y).all()
    np.testing.assert_array_equal(y[0, 4:], bias[4:])
    assert abs(y[0, 1]) == y[0, 3] == 0
    assert np.isfinite(slope).all()
    assert slope[3] == (0 if activation == "relu" else 1)
    np.testing.assert_array_equal(slope[jnp.asarray([1, 5])], [0.0, 2.0])
    assert np.isfinite(jax.hessian(lambda bias: value(bias).sum())(bias)).all()
    nan = tn.layer_norm(jnp.full((2, 7), jnp.nan), activation=activation)
    assert np.isnan(nan).all()


def test_under_transforms():
    x, residual = jax.random.normal(jax.random.key(0), (2, 4, 3, 6))

    def function(x, residual):
        return tn.layer_norm(x, residual=residual, activation="gelu")

    wanted = function(x, residual)
    for found in (jax.vmap(function)(x, residual), jax.jit(function)(x, residual)):
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    _, tangents = jax.jvp(function, (x, residual), (residual, x))
    _, pullback = jax.vjp(function, x, residual)
    dx, dresidual = pullback(tangents)
    forward = sum(jnp.vdot(one, one) for one in tangents)
    np.testing.assert_allclose(jnp.vdot(dx, residual) + jnp.vdot(dresidual, x), forward, rtol=1e-4)


def test_what_does_not_fit_is_refused():
    x = jnp.ones((3, 5))
    with pytest.raises(ValueError, match=r"residual has the shape \(5,\), but x has \(3, 5\)"):
        tn.layer_norm(x, residual=x[0])
    with pytest.raises(TypeError, match="residual is of dtype bfloat16, but x is of float32"):
        tn.layer_norm(x, residual=x.astype("bfloat16"))
    with pytest.raises(TypeError, match="residual must be a floating-point tensor"):
        tn.layer_norm(x, residual=x.astype("int32"))
    with pytest.raises(
        ValueError, match="activation='tanh' is unknown; expected None or one of 'r"
    ):
        tn.layer_norm(x, activation="tanh")
