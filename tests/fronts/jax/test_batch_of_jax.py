"""Batch normalization for JAX."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batch_definition
import truenorm.jax as tn
from truenorm.core.batch import Renorm

IMPLEMENTATIONS = [None, "plain", "native"]
EPSILON = 1e-5


defined = functools.partial(batch_definition.defined, epsilon=EPSILON)


def numbers(shape, axes, mean=0.0, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    sizes = tuple(shape[one] for one in axes)
    x = (2 * jax.random.normal(keys[0], shape) + mean).astype(dtype)
    cotangent = jax.random.normal(keys[1], shape).astype(dtype)
    return x, cotangent, jax.random.normal(keys[2], sizes), jax.random.normal(keys[3], sizes)


def close(found, wanted, unit=2e-6):
    scale = np.maximum(1, abs(np.asarray(wanted, np.float64)).max())
    np.testing.assert_allclose(np.asarray(found, np.float64), wanted, rtol=0, atol=unit * scale)


CASES = [
    ((6, 4, 3, 5), (3,)),
    ((6, 5, 4, 3), (1,)),
    ((300, 16), (1,)),
    ((2, 40, 30, 70), (3,)),
    ((3, 4, 5, 6), (1, 3)),
]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("mean", [0.0, 2e4])
@pytest.mark.parametrize(("shape", "axes"), CASES, ids=str)
def test_training_is_the_definition(shape, axes, mean, implementation):
    x, cotangent, scale, bias = numbers(shape, axes, mean)
    old = jnp.full(scale.shape, 0.5), jnp.full(scale.shape, 2.0)
    axis = axes[0] if len(axes) == 1 else axes

    def function(x, scale, bias):
        return tn.batch_norm(
            x, scale, bias, *old, axis=axis, momentum=0.7, implementation=implementation
        )

    y, pullback, new = jax.vjp(function, x, scale, bias, has_aux=True)
    wanted, m, v = defined(x, scale, bias, axes)
    sizes = [n if i in axes else 1 for i, n in enumerate(shape)]
    offset = np.asarray(bias).reshape(sizes)
    allowed = 2e-6 * np.maximum(1, abs(wanted - offset) + abs(offset))
    assert (abs(np.asarray(y, np.float64) - wanted) <= allowed).all()
    dx, dscale, dbias, rstd = batch_definition.gradients(x, scale, cotangent, axes, EPSILON)
    found = pullback(cotangent)
    g = (abs(np.asarray(cotangent)) * abs(np.asarray(scale)).reshape(sizes)).max()
    assert (abs(np.asarray(found[0]) - dx) <= 4e-6 * g * rstd).all()
    close(found[1], dscale, 1e-5)
    close(found[2], dbias, 1e-5)
    np.testing.assert_allclose(new[0], 0.35 + 0.3 * m, rtol=3e-7, atol=3e-7)
    np.testing.assert_allclose(new[1], 1.4 + 0.3 * v, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_keeps_float32_statistics(dtype):
    x, _, scale, bias = numbers((6, 4, 3, 5), (3,), 5.0, dtype)
    y, (mean, var) = tn.batch_norm(x, scale, bias)
    wanted, m, v = defined(x, scale, bias, (3,))
    assert y.dtype == dtype
    assert mean.dtype == var.dtype == jnp.float32
    last = 2.0 ** -(10 if dtype == jnp.float16 else 7)
    np.testing.assert_allclose(np.asarray(y, np.float64), wanted, rtol=last, atol=1e-5)
    np.testing.assert_allclose(mean, m, rtol=1e-6)
    np.testing.assert_allclose(var, v, rtol=1e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_inference_returns_the_running_statistics_as_they_are(implementation):
    x, cotangent, scale, bias = numbers((6, 4, 5), (2,), 3.0)
    old = jnp.linspace(1, 5, 5), jnp.linspace(0.5, 3, 5)
    y, new = tn.batch_norm(
        x, scale, bias, *old, use_running_average=True, implementation=implementation
    )
    rstd = 1 / np.sqrt(np.asarray(old[1], np.float64) + EPSILON)
    wanted = (np.asarray(x, np.float64) - np.asarray(old[0])) * rstd * np.asarray(scale)
    close(y, wanted + np.asarray(bias))
    assert all((one == other).all() for one, other in zip(new, old, strict=True))

    def total(x):
        return (tn.batch_norm(x, scale, bias, *old, use_running_average=True)[0] * cotangent).sum()

    close(jax.grad(total)(x), np.asarray(cotangent) * rstd * np.asarray(scale))


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 1, 5)])
def test_what_a_mask_hides_stays_out(shape):
    x, _, scale, bias = numbers((4, 3, 5), (2,), 10.0)
    mask = np.random.default_rng(1).random(shape) < 0.6
    mask[0] = True
    full = np.broadcast_to(mask.reshape(shape + (1,) * (3 - len(shape))), x.shape)
    wanted, m, v = defined(x, scale, bias, (2,), full)
    hidden = jnp.where(full, x, jnp.nan)
    y, (mean, var) = tn.batch_norm(hidden, scale, bias, mask=jnp.asarray(mask))
    close(y[full], wanted[full], 4e-6)
    close(mean, m)
    close(var, v)


def test_a_batch_without_anything_real_moves_nothing():
    old = jnp.array([1.0, 2.0, 3.0]), jnp.array([4.0, 5.0, 6.0])
    x = jnp.full((4, 3), jnp.nan)
    y, new = tn.batch_norm(x, None, jnp.ones(3), *old, mask=jnp.zeros(4, bool))
    assert (y == 1).all()
    assert all((one == other).all() for one, other in zip(new, old, strict=True))
    y, new = tn.batch_norm(x[:0], None, None, *old)
    assert y.shape == (0, 3)
    assert all((one == other).all() for one, other in zip(new, old, strict=True))


@pytest.mark.parametrize("rows", [8, 10, 3])
def test_virtual_batches_have_statistics_of_their_own(rows):
    x, _, scale, bias = numbers((rows, 5, 3), (2,), 5.0)
    y, (mean, var) = tn.batch_norm(x, scale, bias, virtual_batch_size=4)
    parts = [defined(x[i : i + 4], scale, bias, (2,)) for i in range(0, rows, 4)]
    close(y, np.concatenate([one[0] for one in parts]), 4e-6)
    shares = [one[0].shape[0] / rows for one in parts]
    close(mean, sum(one[1] * share for one, share in zip(parts, shares, strict=True)))
    close(var, sum(one[2] * share for one, share in zip(parts, shares, strict=True)))


@pytest.mark.parametrize("shape", [(0, 4, 3), (10, 0, 3), (10, 4, 0), (0, 0, 0)])
@pytest.mark.parametrize("virtual", [None, 4])
@pytest.mark.parametrize("corrected", [False, True])
def test_axes_that_are_empty(shape, virtual, corrected):
    old = jnp.full(shape[-1:], 0.8), jnp.full(shape[-1:], 1.7)
    renorm = Renorm(*old, 0.9, 1.2, 0.1) if corrected else None

    def training(x):
        y, new = tn.batch_norm(x, None, None, *old, virtual_batch_size=virtual, renorm=renorm)
        return y.sum(), (y, new)

    gradient, (y, new) = jax.grad(training, has_aux=True)(jnp.zeros(shape))
    assert y.shape == gradient.shape == shape
    assert all((one == other).all() for one, other in zip(new, old, strict=True))


def test_accumulated_gradients_are_those_of_virtual_batches():
    """Each small batch moves the running statistics, and the one of virtual ones does so once."""
    x, cotangent, scale, bias = numbers((12, 4, 3), (2,), 5.0)
    start = jnp.zeros(3), jnp.ones(3)

    def loss(parameters, x, cotangent, old, **options):
        y, new = tn.batch_norm(x, *parameters, *old, momentum=0.9, **options)
        return (y * cotangent).sum(), new

    gradient = jax.grad(loss, has_aux=True)
    wanted, once = gradient((scale, bias), x, cotangent, start, virtual_batch_size=4)

    def accumulated(carry, batch):
        total, old = carry
        found, new = gradient((scale, bias), *batch, old)
        return (jax.tree.map(jnp.add, total, found), new), None

    zero = jax.tree.map(jnp.zeros_like, wanted)
    batches = [one.reshape(3, 4, 4, 3) for one in (x, cotangent)]
    (total, moved), _ = jax.lax.scan(accumulated, (zero, start), batches)
    mean, variance = np.zeros(3), np.ones(3)
    for one in np.asarray(batches[0], np.float64):
        mean, variance = 0.9 * mean + 0.1 * one.mean((0, 1)), 0.9 * variance + 0.1 * one.var((0, 1))
    close(moved[0], mean)
    close(moved[1], variance)
    close(once[0], 0.1 * np.asarray(x, np.float64).mean((0, 1)))
    for one, other in zip(total, wanted, strict=True):
        close(one, other, 1e-5)


def test_renorm_is_its_paper():
    x, _, scale, bias = numbers((10, 4, 3), (2,), 1.0)
    moving = Renorm(jnp.full(3, 0.8), jnp.full(3, 1.7), 0.9, 1.2, 0.1)
    y, _ = tn.batch_norm(x, scale, bias, renorm=moving)
    xhat, m, v = defined(x, jnp.ones(3), jnp.zeros(3), (2,))
    r = np.clip(np.sqrt(v + EPSILON) / 1.7, 0.9, 1.2)
    d = np.clip((m - 0.8) / 1.7, -0.1, 0.1)
    close(y, (xhat * r + d) * np.asarray(scale) + np.asarray(bias))


def test_under_jit_vmap_and_second_derivatives():
    x, cotangent, scale, bias = numbers((6, 4, 5), (2,))

    def total(x):
        return (tn.batch_norm(x, scale, bias)[0] ** 3 * cotangent).sum()

    close(jax.jit(jax.grad(total))(x), jax.grad(total)(x))
    stacked = jnp.stack([x, 2 * x + 1])
    y, _ = jax.vmap(lambda x: tn.batch_norm(x, scale, bias))(stacked)
    for one, other in zip(y, stacked, strict=True):
        close(one, defined(other, scale, bias, (2,))[0])
    tangent = jax.random.normal(jax.random.key(7), x.shape)
    hessian = jax.jvp(jax.grad(total), (x,), (tangent,))[1]
    step = 1e-2
    ends = [jax.grad(total)(x + sign * step * tangent) for sign in (1, -1)]
    close(hessian, (ends[0] - ends[1]) / (2 * step), 1e-2)
    close(jax.grad(lambda x: (jax.grad(total)(x) * tangent).sum())(x), hessian, 1e-4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"use_running_average": True}, ValueError, "mean and var must not be None where the mov"),
        ({"mean": jnp.ones(3)}, ValueError, "var must not be None"),
        ({"mean": jnp.ones(2), "var": jnp.ones(2)}, ValueError, r"mean has the shape \(2,\)"),
        ({"virtual_batch_size": 0}, ValueError, "virtual_batch_size=0 must be 1 or more"),
        ({"virtual_batch_size": 2, "axis_name": "d"}, ValueError, "contradict each other"),
        ({"axis": 7}, ValueError, "axis=7 is out of range"),
        ({"scale": jnp.ones(2)}, ValueError, r"scale has the shape \(2,\)"),
    ],
    ids=str,
)
def test_errors(options, error, message):
    with pytest.raises(error, match=message):
        tn.batch_norm(jnp.ones((4, 3)), **options)


def test_four_devices():
    """In a process of its own: `four_devices_of_batch.py`."""
    flags = "--xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("four_devices_of_batch.py")],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["mapped", "masked", "pmap", "groups", "sharded", "explicit"], (
        done.stderr
    )
