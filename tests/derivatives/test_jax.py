"""Every way JAX differentiates and transforms a call."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import truenorm
from derivatives.expected import CASES, Point, assert_close

pytestmark = pytest.mark.parametrize("case", CASES, ids=str)


def loss(point):
    return lambda inputs: jnp.sum(point.call(*inputs) * point.cotangent)


def test_forward_mode(case):
    point = Point(case)
    inputs, direction = tuple(point.inputs), tuple(point.direction)
    _, tangent = jax.jit(lambda a, b: jax.jvp(point.call, a, b))(inputs, direction)
    assert_close(tangent, point.tangent())
    found = jax.jit(lambda a, b: jax.linearize(point.call, *a)[1](*b))(inputs, direction)
    assert_close(found, point.tangent())


def test_jacobians(case):
    point = Point(case)
    forward = jax.jit(jax.jacfwd(point.call))(*point.inputs)
    reverse = jax.jit(jax.jacrev(point.call))(*point.inputs)
    np.testing.assert_allclose(forward, reverse, atol=2e-5)
    along = jnp.tensordot(forward, point.direction[0], len(case.shape))
    only_x = [point.direction[0], *[np.zeros_like(one) for one in point.direction[1:]]]
    point.direction = only_x
    assert_close(along, point.tangent())


def test_second_derivatives(case):
    point = Point(case)
    inputs, direction = list(point.inputs), list(point.direction)
    gradient = jax.jit(jax.grad(loss(point)))
    forward_over_reverse = jax.jvp(gradient, (inputs,), (direction,))[1]
    reverse_over_reverse = jax.grad(
        lambda inputs: sum(
            jnp.sum(one * by) for one, by in zip(gradient(inputs), direction, strict=True)
        )
    )(inputs)
    for found in (forward_over_reverse, reverse_over_reverse):
        for one, exact in zip(found[:2], point.second()[:2], strict=True):
            assert_close(one, exact)
    hessian = jax.jit(jax.hessian(lambda x: loss(point)([x, *inputs[1:]])))(inputs[0])
    along = jnp.tensordot(hessian, direction[0], len(case.shape))
    point.direction = [direction[0], *[np.zeros_like(one) for one in direction[1:]]]
    assert_close(along, point.second()[0])


@pytest.mark.parametrize("mapped", ["x", "gamma", "all"])
def test_vmap(case, mapped):
    point = Point(case)
    stacked = [np.stack([one, one * 2 + 1, one - 3]) for one in point.inputs]
    axes = [0 if mapped in (name, "all") else None for name in ("x", "gamma", "beta")]
    axes = tuple(axes[: len(stacked)])
    given = [
        s if axis == 0 else one for s, one, axis in zip(stacked, point.inputs, axes, strict=True)
    ]
    rows = [
        [s[i] if axis == 0 else s for s, axis in zip(given, axes, strict=True)] for i in range(3)
    ]
    call = jax.jit(point.call)
    found = jax.jit(jax.vmap(call, in_axes=axes))(*given)
    np.testing.assert_allclose(found, [call(*row) for row in rows], atol=1e-5)
    gradient = jax.jit(jax.grad(lambda *inputs: loss(point)(inputs)))
    found = jax.vmap(gradient, in_axes=axes)(*given)
    np.testing.assert_allclose(found, [gradient(*row) for row in rows], atol=2e-4)
    summed = lambda x: jnp.sum(jax.vmap(lambda *a: loss(point)(a), in_axes=axes)(x, *given[1:]))  # noqa: E731
    total = jax.jit(jax.grad(summed))(given[0])
    expected = [gradient(*row) for row in rows]
    expected = expected if axes[0] == 0 else sum(expected)
    np.testing.assert_allclose(total, expected, atol=2e-4)


def test_gradient_penalty_step(case):
    """The penalty of WGAN-GP differentiates the backward pass with respect to gamma."""
    point = Point(case)

    def penalty(gamma):
        of_x = jax.grad(lambda x: loss(point)([x, gamma, *point.inputs[2:]]))(point.inputs[0])
        return jnp.sum(of_x**2)

    gamma = point.inputs[1]
    found = jax.jit(jax.grad(penalty))(gamma)
    with truenorm.use_implementation("plain"):
        plain = jax.jit(jax.grad(penalty))(gamma)
    np.testing.assert_allclose(found, plain, rtol=1e-5, atol=1e-6 * abs(plain).max())
    # By the chain rule: 2 * (d of_x / d gamma) applied to of_x, from the Hessian along of_x.
    of_x = point.gradient()[0].astype(np.float32)
    point.direction = [of_x, *[np.zeros_like(one) for one in point.inputs[1:]]]
    assert_close(found, 2 * point.second()[1])
