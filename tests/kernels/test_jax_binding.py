"""The primitives under JAX: transformations, lowering, and arrays that are split over devices."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from truenorm import native, ops
from truenorm.core.call import Call
from truenorm.core.kinds import KINDS
from truenorm.native import jax as kernels

REASON = native.unavailable("jax")
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))


def group(x, gamma=None, beta=None, **options):
    return ops.group_normalization(x, gamma, beta, **{"groups": 3, **options})


def inputs(*shape):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(one), jnp.float32) for one in (shape, 6, 6)]


def loss(implementation):
    return lambda *inputs: (group(*inputs, implementation=implementation) ** 3).sum()


TRANSFORMS = {
    "jit grad": lambda f: jax.jit(jax.grad(f, (0, 1, 2))),
    "jacfwd": lambda f: jax.jacfwd(f, (0, 1, 2)),
    "hessian": lambda f: jax.hessian(f, (0, 1)),
    "third derivative": lambda f: jax.grad(
        lambda x, g, b: (jax.hessian(f)(x, g, b).reshape(-1) * jnp.cos(jnp.arange(36.0**2))).sum()
    ),
    "linearize": lambda f: lambda x, g, b: jax.linearize(f, x, g, b)[1](x, g + 1, b),
    "remat": lambda f: jax.grad(jax.checkpoint(f), (0, 1, 2)),
    "scan": lambda f: (
        lambda x, g, b: jax.grad(
            lambda x: jax.lax.scan(lambda c, _: (c + f(c, g, b) * 1e-3, None), x, None, 2)[0].sum()
        )(x)
    ),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_derivatives_match_plain(transform):
    arguments = inputs(1, 2, 3, 6)
    found, plain = (TRANSFORMS[transform](loss(one))(*arguments) for one in ("native", "plain"))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5 * np.abs(other).max())


@pytest.mark.parametrize("axes", [(0, None, None), (None, 0, None), (None, None, 0), (1, 0, 1),
                                  (3, None, 0)], ids=str)  # fmt: skip
def test_vmap_folds_the_mapped_axis(axes):
    x, gamma, beta = inputs(3, 2, 5, 6)
    stacked = [
        one if axis is None else jnp.stack([one, 2 * one + 1, one - 3], axis)
        for one, axis in zip((x, gamma, beta), axes, strict=True)
    ]
    for function in (lambda f: f, lambda f: jax.grad(lambda *a: (f(*a) ** 2).sum(), (0, 1, 2))):
        mapped = [
            jax.vmap(function(lambda *a, one=one: group(*a, implementation=one)), axes)(*stacked)
            for one in ("native", "plain")
        ]
        for one, other in zip(*map(jax.tree.leaves, mapped), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    text = jax.jit(jax.vmap(group, axes)).lower(*stacked).as_text()
    assert text.count("@truenorm_forward") == 1
    assert "while" not in text


def test_one_call_forward_and_one_backward():
    x, gamma, beta = inputs(4, 5, 7, 6)
    text = jax.jit(jax.grad(loss(None), (0, 1, 2))).lower(x, gamma, beta).compile().as_text()
    assert text.count('custom_call_target="truenorm_forward"') == 1
    assert text.count('custom_call_target="truenorm_backward"') == 1


def test_an_exported_program_is_plain():
    x, gamma, beta = inputs(4, 5, 7, 6)
    exported = jax.export.export(jax.jit(jax.grad(loss(None))))(x, gamma, beta)
    assert "@truenorm" not in exported.mlir_module()
    again = jax.export.deserialize(exported.serialize())
    np.testing.assert_allclose(
        again.call(x, gamma, beta), jax.grad(loss("plain"))(x, gamma, beta), rtol=1e-4, atol=1e-4
    )


def test_other_platforms_are_lowered_to_plain():
    x, *_ = inputs(4, 5, 7, 6)
    exported = jax.export.export(jax.jit(group), platforms=["cuda"])(x)
    assert "@truenorm" not in exported.mlir_module()


def test_reasons():
    view = KINDS["group"].view((2, 6), axis=1, groups=3)
    x = jnp.zeros((2, 6), jnp.float8_e5m2)
    assert "dtype float8" in kernels.normalize(Call(view, True, 1e-3), x, None, None)


@pytest.mark.parametrize("found", [(0, 0), (9, 0)])
def test_an_older_jax_is_told_and_never_gets_the_kernels(monkeypatch, found):
    monkeypatch.setattr(kernels, "_interface", lambda: found)
    monkeypatch.setattr(
        jax.ffi, "register_ffi_target", lambda *_, **__: pytest.fail("registered all the same")
    )
    reason = kernels.unavailable.__wrapped__()
    assert "this JAX has {}.{}".format(*found) in reason


def test_nothing_of_x_s_size_is_kept_besides_x():
    x, gamma, beta = inputs(32, 5, 7, 6)
    _, pullback = jax.vjp(lambda *a: group(*a, implementation="native"), x, gamma, beta)
    kept = [one for one in jax.tree.leaves(pullback) if one.size >= x.size]
    assert all(np.array_equal(one, x) for one in kept)


SHARDED = """
import numpy as np, jax, jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from truenorm import ops

assert jax.device_count() == 4
mesh = Mesh(np.array(jax.devices()), ("batch",))
rng = np.random.default_rng(0)
x = jnp.asarray(rng.standard_normal((8, 5, 4, 6)), jnp.float32)
gamma, beta = jnp.asarray(rng.standard_normal((2, 6)), jnp.float32)
put = lambda one, *spec: jax.device_put(one, NamedSharding(mesh, P(*spec)))
call = lambda x, g, b: ops.group_normalization(x, g, b, groups=3, implementation="native")
loss = lambda x, g, b: (call(x, g, b) ** 3).sum()
close = lambda a, b: [np.testing.assert_allclose(p, q, rtol=1e-4, atol=1e-3)
                      for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]
split, whole = put(x, "batch"), (put(gamma), put(beta))

def check(function, arguments, plain_arguments, gathers):
    compiled = jax.jit(function).lower(*arguments).compile()
    text = compiled.as_text()
    assert "truenorm" in text
    assert ("all-gather" in text) == gathers, text
    close(compiled(*arguments), jax.jit(function)(*plain_arguments))
    return text

check(call, (split, *whole), (x, gamma, beta), False)
assert jax.jit(call)(split, *whole).sharding.spec[0] == "batch"
text = check(jax.grad(loss, (0, 1, 2)), (split, *whole), (x, gamma, beta), False)
assert "all-reduce" in text
# a mapped axis in front of the split one, and the gradient of that
stack = jnp.stack([x, 2 * x + 1])
split_stack = put(stack, None, "batch")
mapped = jax.vmap(call, (0, None, None))
check(mapped, (split_stack, *whole), (stack, gamma, beta), False)
summed = lambda x, g, b: (mapped(x, g, b) ** 3).sum()
check(jax.grad(summed, (0, 1, 2)), (split_stack, *whole), (stack, gamma, beta), False)
# a reduced axis is split: right, whatever must be moved
long = jnp.asarray(rng.standard_normal((2, 8, 4, 6)), jnp.float32)
for function in (call, jax.grad(loss, (0, 1, 2))):
    found = jax.jit(function)(put(long, None, "batch"), *whole)
    close(found, jax.jit(function)(long, gamma, beta))
# per-sample parameters are split with the samples
rows = jnp.asarray(rng.standard_normal((8, 6)), jnp.float32)
check(jax.grad(loss, (0, 1, 2)), (split, put(rows, "batch"), put(rows, "batch")),
      (x, rows, rows), False)
local = jax.shard_map(call, mesh=mesh, in_specs=(P("batch"), P(), P()), out_specs=P("batch"))
close(jax.jit(local)(split, *whole), call(x, gamma, beta))
print("all right")
"""


# Functions of shards, whose gradients in what is not split are sums over the devices.
SHARD_MAPPED = """
import numpy as np, jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from truenorm import ops

line = jax.make_mesh((4,), ("b",), axis_types=(AxisType.Auto,))
square = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
rng = np.random.default_rng(0)
draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
x, gamma, beta = draw(8, 6), draw(6), draw(6)
every = (0, 1, 2)

def loss(x, gamma, beta, implementation="native", call=ops.layer_normalization):
    return (call(x, gamma, beta, implementation=implementation) ** 3 * jnp.sin(x)).sum()

def plain(*arguments, **options):
    return loss(*arguments, "plain", **options)

def close(found, expected):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4 * np.abs(other).max())

def sharded(function, names, mesh, *specs, **options):
    local = lambda *arguments: jax.lax.psum(function(*arguments), names)
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P(), **options)

# The gradient outside of shard_map, with and without its check, over one or two mesh axes.
whole = jax.grad(plain, every)(x, gamma, beta)
for mesh, names, options in (
    (line, "b", {}),
    (line, "b", {"check_vma": False}),
    (square, ("a", "b"), {}),
    (square, "a", {}),
    (square, "a", {"axis_names": {"a"}}),
):
    split = sharded(loss, names, mesh, P(names), P(), P(), **options)
    close(jax.jit(jax.grad(split, every))(x, gamma, beta), whole)
# The gradient inside.
local = jax.grad(lambda *a: jax.lax.psum(loss(*a), "b"), every)
inside = jax.shard_map(local, mesh=line, in_specs=(P("b"), P(), P()), out_specs=(P("b"), P(), P()))
close(jax.jit(inside)(x, gamma, beta), whole)
# Parameters that are split while x is or is not, and none at all.
rows = draw(8, 6), draw(8, 6)
split = sharded(loss, "b", line, P("b"), P("b"), P("b"))
close(jax.jit(jax.grad(split, every))(x, *rows), jax.grad(plain, every)(x, *rows))
split = sharded(lambda x, g, b: loss(x, g[0], b[0]), "b", line, P(), P("b"), P("b"))
each = lambda x, g, b: sum(plain(x, g[i], b[i]) for i in range(0, 8, 2))
close(jax.jit(jax.grad(split, every))(x, *rows), jax.grad(each, every)(x, *rows))
split = sharded(lambda x: loss(x, None, None), "b", line, P("b"))
close(jax.jit(jax.grad(split))(x), jax.grad(lambda x: plain(x, None, None))(x))
images, channels = draw(4, 5, 8), (draw(8), draw(8))
instance = {"call": ops.instance_normalization}
split = sharded(lambda *a: loss(*a, **instance), "b", line, P(None, None, "b"), P("b"), P("b"))
exact = jax.grad(lambda *a: plain(*a, **instance), every)(images, *channels)
close(jax.jit(jax.grad(split, every))(images, *channels), exact)
# Under and inside vmap, forward mode, second derivatives.
split = sharded(loss, "b", line, P("b"), P(), P())
stack, stacks = draw(3, 8, 6), (draw(3, 6), draw(3, 6))
for arguments, axes in (((stack, gamma, beta), (0, None, None)), ((stack, *stacks), 0)):
    mapped = lambda one: lambda *a: jax.vmap(one, axes)(*a).sum()
    exact = jax.grad(mapped(plain), every)(*arguments)
    close(jax.jit(jax.grad(mapped(split), every))(*arguments), exact)
    inside = sharded(mapped(loss), "b", line, P(None, "b"), P(), P())
    close(jax.jit(jax.grad(inside, every))(*arguments), exact)
tangents = draw(8, 6), draw(6), draw(6)
arguments = x, gamma, beta
forward = lambda one: jax.jvp(one, arguments, tangents)
close(jax.jit(forward, static_argnums=0)(split), forward(plain))
in_gamma = lambda one: jax.jvp(lambda g: one(x, g, beta), (gamma,), tangents[1:2])
close(in_gamma(split), in_gamma(plain))
close(jax.jacfwd(split)(*arguments), whole[0])
close(jax.jit(jax.hessian(split, 1))(*arguments), jax.hessian(plain, 1)(*arguments))
# Shardings that are a part of the type.
typed = jax.make_mesh((4,), ("b",), axis_types=(AxisType.Explicit,))
with jax.set_mesh(typed):
    for x_spec, spec in ((P("b"), P()), (P(None, None, "b"), P("b")), (P(None, None, "b"), P())):
        put = lambda one, spec: jax.device_put(one, NamedSharding(typed, spec))
        given = put(images, x_spec), put(channels[0], spec), put(channels[1], spec)
        found = jax.jit(jax.grad(lambda *a: loss(*a, **instance), every))(*given)
        close(found, jax.grad(lambda *a: plain(*a, **instance), every)(images, *channels))
print("all right")
"""


@pytest.mark.parametrize("program", [SHARDED, SHARD_MAPPED], ids=["jit", "shard_map"])
def test_arrays_split_over_four_devices(program):
    flags = "--xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=500,
        env=os.environ | {"XLA_FLAGS": flags, "KERAS_BACKEND": "jax"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert "all right" in done.stdout
