"""Batch normalization as a module of flax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from truenorm import flax as tn


def made(cls, **options):
    module = cls(6, momentum=0.8, rngs=nnx.Rngs(0), **options)
    module.scale[...] = jnp.linspace(0.5, 2, 6)
    return module


def numbers(seed=0, mean=3.0):
    return 2 * jax.random.normal(jax.random.key(seed), (8, 4, 6)) + mean


def test_state_and_numbers_are_those_of_flax_both_ways():
    theirs, ours = made(nnx.BatchNorm), made(tn.BatchNorm)
    nnx.update(ours, nnx.state(theirs))
    for seed in range(3):
        x = numbers(seed)
        np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours.mean[...], theirs.mean[...], rtol=1e-6)
    np.testing.assert_allclose(ours.var[...], theirs.var[...], rtol=1e-5)
    nnx.update(theirs, nnx.state(ours))
    ours.eval()
    theirs.eval()
    kept = ours.mean[...]
    np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    assert (ours.mean[...] == kept).all()


def model(cls):
    rngs = nnx.Rngs(0)
    return nnx.Sequential(
        nnx.Linear(5, 16, rngs=rngs), cls(16, rngs=rngs), nnx.relu, nnx.Linear(16, 1, rngs=rngs)
    )


def trained(module, steps):
    x = jax.random.normal(jax.random.key(1), (64, 5))
    target = (x[:, :1] * x[:, 1:2]) > 0

    @nnx.jit
    def step(module):
        value, slopes = nnx.value_and_grad(lambda m: ((m(x) - target) ** 2).mean())(module)
        state = nnx.state(module, nnx.Param)
        nnx.update(module, jax.tree.map(lambda p, g: p - 0.1 * g, state, slopes))
        return value

    return [float(step(module)) for _ in range(steps)]


def test_a_training_of_200_steps_is_that_of_flax():
    theirs, ours = trained(model(nnx.BatchNorm), 200), trained(model(tn.BatchNorm), 200)
    assert theirs[-1] < 0.7 * theirs[0]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


def test_frozen_statistics_keep_their_bits_while_the_rest_learns():
    module = model(tn.BatchNorm)
    trained(module, 2)
    module.layers[1].frozen = True

    def bits():
        return {path: np.array(one[...]) for path, one in nnx.to_flat_state(nnx.state(module))}

    kept = bits()
    trained(module, 50)
    for path, now in bits().items():
        assert (now == kept[path]).all() == (path[-1] in ("mean", "var")), path


def test_remat_and_masks():
    module, other = made(tn.BatchNorm), made(tn.BatchNorm)
    x = numbers()
    mask = jnp.arange(8)[:, None, None] < 5
    found = nnx.grad(lambda m: (nnx.remat(lambda m, x: m(x))(m, x) ** 2).sum())(module)
    wanted = nnx.grad(lambda m: (m(x) ** 2).sum())(other)
    for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)
    assert (module.mean[...] == other.mean[...]).all()
    assert (module.mean[...] != 0).all()
    hidden = jnp.where(mask, x, jnp.nan)
    masked = made(tn.BatchNorm)
    np.testing.assert_allclose(masked(hidden, mask=mask)[:5], made(tn.BatchNorm)(x[:5]), atol=1e-5)
    assert jnp.isfinite(masked.mean[...]).all()


@pytest.mark.parametrize("options", [{}, {"activation": "gelu"}, {"frozen": True}], ids=str)
def test_nan_behind_a_mask_stays_out_of_the_gradients(options):
    """They are those of zeros in its place, where the loss does not look either."""
    x = 1 + jax.random.normal(jax.random.key(0), (6, 4, 3))
    there = jax.random.bernoulli(jax.random.key(1), 0.6, (6, 4, 1))

    def loss(module, x):
        y = module(x, use_running_average=False, mask=there)
        return (jnp.where(there, y, 0) ** 3).sum()

    found, wanted = (
        nnx.grad(loss, argnums=(0, 1))(
            tn.BatchNorm(3, rngs=nnx.Rngs(0), **options), jnp.where(there, x, hidden)
        )
        for hidden in (jnp.nan, 0.0)
    )
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_an_activation_a_residual_and_virtual_batches():
    x, other = numbers(), numbers(1)
    y, total = made(tn.BatchNorm, activation="relu")(x, residual=other)
    np.testing.assert_allclose(total, x + other)
    np.testing.assert_allclose(y, jax.nn.relu(made(tn.BatchNorm)(x + other)), atol=1e-5)
    parts = made(tn.BatchNorm, virtual_batch_size=4)(x)
    np.testing.assert_allclose(parts[:4], made(tn.BatchNorm)(x[:4]), atol=1e-5)


def test_it_must_know_whether_it_trains():
    module = made(tn.BatchNorm, use_running_average=None)
    with pytest.raises(ValueError, match="use_running_average is given neither to the call nor"):
        module(numbers())
    with pytest.raises(TypeError, match=r"virtual_batch_size=2\.5 must be an integer"):
        made(tn.BatchNorm, virtual_batch_size=2.5)
