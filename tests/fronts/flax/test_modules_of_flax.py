"""The modules beside those of flax.nnx: constructors, states, numbers, masks, training."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("flax")
from flax import nnx

import truenorm.flax as tn
from truenorm.core.kinds import KINDS

PAIRS = [
    ("BatchNorm", (8,), {}, (2, 5, 5, 8)),
    ("BatchNorm", (5,), {"axis": 1, "use_bias": False}, (2, 5, 7)),
    ("GroupNorm", (8, 4), {}, (2, 5, 5, 8)),
    ("GroupNorm", (8,), {"num_groups": None, "group_size": 2, "use_bias": False}, (2, 5, 8)),
    ("InstanceNorm", (8,), {}, (2, 5, 5, 8)),
    ("InstanceNorm", (5,), {"feature_axes": 1}, (2, 5, 7, 8)),
    ("LayerNorm", (8,), {}, (2, 5, 8)),
    ("LayerNorm", (8,), {"use_scale": False, "epsilon": 1e-3}, (2, 5, 8)),
    ("LayerNorm", (40,), {"reduction_axes": (1, 2), "feature_axes": (1, 2)}, (2, 5, 8)),
    ("LayerNorm", (5,), {"reduction_axes": (1, 2), "feature_axes": 1}, (2, 5, 8)),
    ("LayerNorm", (8,), {"reduction_axes": 1, "feature_axes": -1}, (2, 5, 8)),
    ("RMSNorm", (8,), {}, (2, 5, 8)),
    ("RMSNorm", (40,), {"reduction_axes": (1, 2), "feature_axes": (1, 2)}, (2, 5, 8)),
]


def made(name, arguments, options, library=tn, seed=0):
    module = getattr(library, name)(*arguments, **options, rngs=nnx.Rngs(0))
    keys = iter(jax.random.split(jax.random.key(seed), 4))
    state = jax.tree.map(lambda one: jax.random.normal(next(keys), one.shape), nnx.state(module))
    nnx.update(module, state)
    return module


@pytest.mark.parametrize(("name", "arguments", "options", "shape"), PAIRS)
def test_beside_flax(name, arguments, options, shape):
    theirs = made(name, arguments, options | {"use_fast_variance": False}, nnx, seed=1)
    ours = made(name, arguments, options)
    nnx.update(ours, nnx.state(theirs))
    nnx.update(theirs, nnx.state(ours))
    assert isinstance(ours, getattr(nnx, name))
    x, cotangent = jax.random.normal(jax.random.key(2), (2, *shape))

    def both(module):
        graph, state = nnx.split(module)
        y, pullback = jax.vjp(lambda state, x: nnx.merge(graph, state)(x), state, x)
        return y, jax.tree.leaves(pullback(cotangent))

    (y, found), (wanted, expected) = both(ours), both(theirs)
    assert y.dtype == wanted.dtype
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", tn.__all__)
def test_the_constructor_is_that_of_flax_and_an_activation(name):
    ours, theirs = (inspect.signature(getattr(one, name).__init__) for one in (tn, nnx))
    count = len(theirs.parameters)
    assert list(ours.parameters.values())[:count] == list(theirs.parameters.values())
    own = {one.name: one.default for one in list(ours.parameters.values())[count:]}
    assert own.pop("activation") is None
    more = {"frozen": False, "virtual_batch_size": None, "unbiased": False}
    assert own == (more if name == "BatchNorm" else {})


def test_every_kind_that_has_a_module_has_it():
    for kind in KINDS.values():
        if kind.flax is not None and kind.name != "batch":  # which is to come
            parameters = inspect.signature(getattr(tn, kind.flax).__init__).parameters
            assert parameters["epsilon"].default == kind.epsilon["flax"]


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("given", [jnp.bfloat16, jnp.float32, jnp.int32])
def test_the_dtype_of_the_result(given, dtype):
    options = {"dtype": dtype}
    x = (10 * jax.random.normal(jax.random.key(0), (2, 5, 8))).astype(given)
    ours, theirs = made("LayerNorm", (8,), options), made("LayerNorm", (8,), options, nnx)
    y, wanted = ours(x), theirs(x)
    assert y.dtype == wanted.dtype
    np.testing.assert_allclose(y.astype("float32"), wanted.astype("float32"), rtol=0.1, atol=0.1)


def test_what_is_large_is_rounded_after_it_is_normalized():
    x = jnp.array([[1e5, 2e5, 3e5, 4e5]])
    y = tn.LayerNorm(4, dtype=jnp.float16, rngs=nnx.Rngs(0))(x)
    np.testing.assert_allclose(y, [[-1.342, -0.447, 0.447, 1.342]], atol=2e-3)


@pytest.mark.parametrize("name", ["GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm"])
def test_masks(name):
    arguments = (8, 2) if name == "GroupNorm" else (8,)
    module = made(name, arguments, {})
    x = jax.random.normal(jax.random.key(0), (3, 6, 8))
    steps = jnp.arange(6) < jnp.array([6, 2, 4])[:, None]
    mask = jnp.broadcast_to(steps[..., None], x.shape)
    y = module(jnp.where(mask, x, jnp.nan), mask=mask)
    for sample, length in enumerate((6, 2, 4)):
        wanted = module(x[sample : sample + 1, :length])[0]
        np.testing.assert_allclose(y[sample, :length], wanted, rtol=1e-5, atol=1e-5)


def test_groups_of_one_sample():
    x = jax.random.normal(jax.random.key(0), (8,))
    module = made("GroupNorm", (8, 4), {})
    np.testing.assert_allclose(module(x), module(x[None])[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("axes", [-1, (-1,), range(2, 3), np.int64(2)], ids=str)
def test_groups_of_the_last_axis_alone(axes):
    """What flax says that reduction_axes=-1 means; there, it repeats the mean along axis 1."""
    module = made("GroupNorm", (8, 4), {"reduction_axes": axes})
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    parts = np.asarray(x).reshape(2, 5, 4, 2)
    wanted = (parts - parts.mean(-1, keepdims=True)) / np.sqrt(parts.var(-1, keepdims=True) + 1e-6)
    wanted = wanted.reshape(x.shape) * module.scale[...] + module.bias[...]
    np.testing.assert_allclose(module(x), wanted, rtol=2e-5, atol=2e-5)


class Model(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(8, 16, rngs=rngs)
        self.norms = nnx.List(
            [tn.LayerNorm(16, rngs=rngs), tn.GroupNorm(16, 4, rngs=rngs), tn.RMSNorm(16, rngs=rngs)]
        )
        self.last = nnx.Linear(16, 1, rngs=rngs)

    def __call__(self, x):
        x = self.first(x)
        for norm in self.norms:
            x = jax.nn.relu(norm(x)) + x
        return self.last(x)


def test_training():
    model = Model(nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (64, 8))
    target = jnp.sin(x[:, :1] + x[:, 1:2])
    before = model.norms[1].scale[...]

    @nnx.jit
    def step(model):
        def error(model):
            return ((model(x) - target) ** 2).mean()

        value, slope = nnx.value_and_grad(error)(model)
        state = jax.tree.map(lambda p, g: p - 0.005 * g, nnx.state(model, nnx.Param), slope)
        nnx.update(model, state)
        return value

    losses = [float(step(model)) for _ in range(20)]
    assert losses[-1] < 0.5 * losses[0]
    assert not np.array_equal(before, model.norms[1].scale[...])


def test_errors():
    x = jnp.ones((2, 6))
    with pytest.raises(
        NotImplementedError, match=r"axis_name='batch': truenorm takes no statistic"
    ):
        tn.LayerNorm(6, axis_name="batch", rngs=nnx.Rngs(0))(x)
    with pytest.raises(ValueError, match=r"num_groups=4 does not divide the 6 channels"):
        tn.GroupNorm(8, 4, rngs=nnx.Rngs(0))(x)
    with pytest.raises(ValueError, match=r"scale has 8 elements, but x of shape \(2, 6\)"):
        tn.LayerNorm(8, rngs=nnx.Rngs(0))(x)
    with pytest.raises(ValueError, match=r"axis=.* names the batch axis"):
        tn.InstanceNorm(8, feature_axes=0, rngs=nnx.Rngs(0))(x)
    with pytest.raises(ValueError, match=r"axis=\(-1,\) is out of range for an input of rank 0"):
        tn.GroupNorm(8, 4, rngs=nnx.Rngs(0))(jnp.float32(1))


def test_errors_in_what_is_passed():
    norm = tn.LayerNorm(6, rngs=nnx.Rngs(0))
    x = jnp.ones((2, 3, 6))
    with pytest.raises(TypeError, match=r"x must be a floating-point tensor; got complex64"):
        norm(x * 1j)
    with pytest.raises(ValueError, match=r"float64 was passed.*JAX_ENABLE_X64=1"):
        norm(np.ones((2, 3, 6)))
    with pytest.raises(ValueError, match=r"mask has the shape \(2, 3\).*mask\[\.\.\., None\]\."):
        norm(x, mask=jnp.ones((2, 3), bool))
    with pytest.raises(TypeError, match=r"mask must be boolean; got float32"):
        norm(x, mask=x)


def test_an_array_of_torch():
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"x is a Tensor of torch, but truenorm\.jax computes"):
        tn.LayerNorm(6, rngs=nnx.Rngs(0))(torch.ones(2, 6))
