"""Batch normalization over four devices is that of one, as `test_batch_of_jax.py` runs it."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import truenorm.jax as tn

mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
split, whole = PartitionSpec("data"), PartitionSpec()
keys = jax.random.split(jax.random.key(0), 3)
x = 2 * jax.random.normal(keys[0], (8, 5, 6)) + 30
cotangent = jax.random.normal(keys[1], x.shape)
scale, bias = jax.random.normal(keys[2], (2, 6))
old = jnp.zeros(6), jnp.ones(6)


def loss(x, scale, bias, cotangent, mask=None, **options):
    """The loss, and the new statistics."""
    y, new = tn.batch_norm(x, scale, bias, *old, momentum=0.5, mask=mask, **options)
    return (y * cotangent).sum(), new


def derivative(function):
    return jax.value_and_grad(function, argnums=(0, 1, 2), has_aux=True)


def same(found, wanted):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        scale = max(1, float(abs(other).max()))
        np.testing.assert_allclose(one, other, rtol=0, atol=4e-6 * scale)


wanted = derivative(loss)(x, scale, bias, cotangent)
for implementation in (None, "plain", "native"):

    def local(x, scale, bias, cotangent, implementation=implementation):
        value, new = loss(
            x, scale, bias, cotangent, axis_name="data", implementation=implementation
        )
        return jax.lax.psum(value, "data"), new

    mapped = jax.shard_map(
        local, mesh=mesh, in_specs=(split, whole, whole, split), out_specs=(whole, whole)
    )
    same(jax.jit(derivative(mapped))(x, scale, bias, cotangent), wanted)
print("mapped")

mask = jnp.array([1, 0, 0, 0, 1, 1, 1, 0], bool)  # the second device has nothing
shown = cotangent * mask[:, None, None]


def masked(x, scale, bias, cotangent, mask):
    value, new = loss(x, scale, bias, cotangent, mask, axis_name="data")
    return jax.lax.psum(value, "data"), new


mapped = jax.shard_map(
    masked, mesh=mesh, in_specs=(split, whole, whole, split, split), out_specs=(whole, whole)
)
same(
    derivative(mapped)(x, scale, bias, shown, mask),
    derivative(loss)(x, scale, bias, shown, mask),
)
print("masked")

pieces = x.reshape(4, 2, 5, 6)
y, new = jax.pmap(
    lambda x: tn.batch_norm(x, scale, bias, *old, momentum=0.5, axis_name="d"), axis_name="d"
)(pieces)
same(y.reshape(x.shape), tn.batch_norm(x, scale, bias)[0])
same((new[0][3], new[1][3]), wanted[0][1])
print("pmap")

y, _ = jax.pmap(
    lambda x: tn.batch_norm(x, scale, bias, axis_name="d", axis_index_groups=[[0, 1], [2, 3]]),
    axis_name="d",
)(pieces)
for half in (slice(0, 4), slice(4, 8)):
    same(y.reshape(x.shape)[half], tn.batch_norm(x[half], scale, bias)[0])
print("groups")

on_devices = [jax.device_put(one, NamedSharding(mesh, split)) for one in (x, cotangent)]
compiled = jax.jit(derivative(loss)).lower(on_devices[0], scale, bias, on_devices[1]).compile()
same(compiled(on_devices[0], scale, bias, on_devices[1]), wanted)
assert "all-gather" not in compiled.as_text()  # sums are exchanged, never x
print("sharded")

explicit = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))


def both(x, scale, bias, cotangent):
    """The loss of batch normalization and of group normalization, with the first's statistics."""
    value, new = loss(x, scale, bias, cotangent, activation="silu")
    y, total = tn.group_norm(x, scale, bias, num_groups=3, residual=x)
    return value + (y * cotangent).sum() + (total * cotangent).sum(), new


both = derivative(both)
unsharded = both(x[:, :4], scale, bias, cotangent[:, :4])
with jax.set_mesh(explicit):
    for spec in (split, PartitionSpec(None, "data")):
        arrays = [
            jax.device_put(one[:, :4], NamedSharding(explicit, spec)) for one in (x, cotangent)
        ]
        for function in (both, jax.jit(both)):
            found = function(arrays[0], scale, bias, arrays[1])
            same(found, unsharded)
            assert jax.typeof(found[1][0]).sharding.spec == jax.typeof(arrays[0]).sharding.spec
print("explicit")
