"""Activation and residual in the modules for flax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("flax")
from flax import nnx
from test_modules_of_flax import PAIRS

import truenorm.flax as tn

FIRST = {pair[0]: pair for pair in reversed(PAIRS)}


@nnx.jit
def compiled(module, x, mask, residual):
    return module(x, mask=mask, residual=residual)


@pytest.mark.parametrize("name", tn.__all__)
def test_modules(name):
    _, arguments, options, shape = FIRST[name]
    plain = getattr(tn, name)(*arguments, **options, rngs=nnx.Rngs(0))
    activated = getattr(tn, name)(*arguments, **options, rngs=nnx.Rngs(0), activation="gelu")
    assert jax.tree.structure(nnx.state(plain)) == jax.tree.structure(nnx.state(activated))
    x, residual = jax.random.normal(jax.random.key(0), (2, *shape))
    mask = jax.random.bernoulli(jax.random.key(1), 0.7, shape)
    for given in (None, mask):
        y, s = compiled(activated, x, given, residual)
        np.testing.assert_array_equal(s, x + residual)
        wanted = jax.nn.gelu(plain(s, mask=given), approximate=False)
        np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(activated(s, mask=given), wanted, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            plain(x, mask=given, residual=residual)[0], plain(s, mask=given), rtol=1e-5, atol=1e-6
        )
    with pytest.raises(
        ValueError, match="activation='tanh' is unknown; expected None or one of 'r"
    ):
        getattr(tn, name)(*arguments, **options, rngs=nnx.Rngs(0), activation="tanh")
    with pytest.raises(ValueError, match="residual has the shape"):
        plain(x, residual=residual[0])


def test_dtypes():
    x, residual = jax.random.normal(jax.random.key(0), (2, 3, 8), jnp.bfloat16)
    narrow = tn.LayerNorm(8, dtype=jnp.bfloat16, activation="silu", rngs=nnx.Rngs(0))
    y, s = jax.jit(narrow)(x, residual=residual)
    assert y.dtype == s.dtype == jnp.bfloat16
    np.testing.assert_array_equal(s, x + residual)
    wide = tn.LayerNorm(8, activation="silu", rngs=nnx.Rngs(0))
    exact, total = wide(s.astype("float32"), residual=jnp.zeros((3, 8)))
    assert exact.dtype == total.dtype == jnp.float32
    np.testing.assert_array_equal(y, exact.astype(jnp.bfloat16))  # rounded once
    y, s = wide(x, residual=residual)  # the parameters are in float32
    assert y.dtype == s.dtype == jnp.float32
    np.testing.assert_array_equal(s, x.astype("float32") + residual.astype("float32"))
