"""Under what JAX does to functions: derivatives, batching, loops, devices, export."""

import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import truenorm.jax as tn

FUNCTIONS = {
    "group": lambda x, scale, bias: tn.group_norm(x, scale, bias, num_groups=2),
    "instance": lambda x, scale, bias: tn.instance_norm(x, scale, bias),
    "layer": lambda x, scale, bias: tn.layer_norm(x, scale, bias),
    "rms": lambda x, scale, bias: tn.rms_norm(x, scale) + bias,
    "frn": lambda x, scale, bias: tn.filter_response_norm(x, scale, bias, epsilon=jnp.exp(-9.0)),
}


@pytest.fixture(params=FUNCTIONS)
def function(request):
    return FUNCTIONS[request.param]


@pytest.fixture
def inputs():
    shapes = [(3, 5, 6), (6,), (6,)]
    keys = jax.random.split(jax.random.key(0), 3)
    return tuple(map(jax.random.normal, keys, shapes))


def loss(function):
    return lambda x, scale, bias: (function(x, scale, bias) ** 3).sum()


def close(found, wanted, tolerance=1e-4):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def test_jit_and_grad(function, inputs):
    close(jax.jit(function)(*inputs), function(*inputs))
    close(
        jax.jit(jax.grad(loss(function), (0, 1, 2)))(*inputs),
        jax.grad(loss(function), (0, 1, 2))(*inputs),
    )


def test_forward_mode_and_second_derivatives(function, inputs):
    x, scale, bias = inputs
    tangent = jax.random.normal(jax.random.key(7), x.shape)

    def of_x(x):
        return loss(function)(x, scale, bias)

    _, slope = jax.jvp(of_x, (x,), (tangent,))
    close(slope, jnp.vdot(jax.grad(of_x)(x), tangent), 1e-3)
    small = x[:1, :2]
    hessian = jax.hessian(of_x)(small).reshape(small.size, small.size)
    close(hessian, hessian.T, 1e-3)
    along = jax.jvp(jax.grad(of_x), (small,), (tangent[:1, :2],))[1].ravel()
    close(hessian @ tangent[:1, :2].ravel(), along, 1e-2)


def test_vmap(function, inputs):
    x, scale, bias = inputs
    stack = jnp.stack([x, x + 1, 2 * x], 2)
    found = jax.vmap(function, (2, None, None), 1)(stack, scale, bias)
    close(found, jnp.stack([function(stack[:, :, i], scale, bias) for i in range(3)], 1))
    scales = jnp.stack([scale, scale + 1, -scale])
    found = jax.vmap(jax.grad(loss(function), 1), (None, 0, None))(x, scales, bias)
    close(found, jnp.stack([jax.grad(loss(function), 1)(x, one, bias) for one in scales]), 1e-3)


def test_scan_and_checkpoint(function, inputs):
    x, scale, bias = inputs

    def step(x, _):
        return jax.checkpoint(function)(x, scale, bias), None

    def looped(x):
        return (jax.lax.scan(step, x, None, 3)[0] ** 3).sum()

    def written_out(x):
        for _ in range(3):
            x = function(x, scale, bias)
        return (x**3).sum()

    close(jax.grad(looped)(x), jax.grad(written_out)(x), 1e-3)


@pytest.fixture
def program(function, inputs):
    """The function as an exported program of any batch size."""
    _, scale, bias = inputs
    (batch,) = jax.export.symbolic_shape("b")
    like = jax.ShapeDtypeStruct((batch, 5, 6), jnp.float32)
    return jax.export.export(jax.jit(function))(like, scale, bias)


def test_export(function, inputs, program):
    _, scale, bias = inputs
    assert "@truenorm" not in program.mlir_module()
    x = jax.random.normal(jax.random.key(1), (7, 5, 6))
    close(program.call(x, scale, bias), function(x, scale, bias))


def test_an_exported_program_in_bytes(function, inputs, program):
    pytest.importorskip("flatbuffers")  # in which jax.export writes
    again = jax.export.deserialize(program.serialize())
    close(again.call(*inputs), function(*inputs))


PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
import truenorm.jax as tn

mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
x = jax.random.normal(jax.random.key(0), (8, 5, 6))
scale, bias = jax.random.normal(jax.random.key(1), (2, 6))

def loss(x, scale, bias):
    return (tn.group_norm(x, scale, bias, num_groups=2) ** 3).sum()

wanted = jax.grad(loss, (0, 1, 2))(x, scale, bias)
split = jax.device_put(x, NamedSharding(mesh, P("data")))
found = jax.jit(jax.grad(loss, (0, 1, 2)))(split, scale, bias)
assert found[0].sharding.spec[0] == "data", found[0].sharding
for one, other in zip(found, wanted):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)

def local(x, scale, bias):
    return jax.lax.psum(loss(x, scale, bias), "data")

mapped = jax.shard_map(local, mesh=mesh, in_specs=(P("data"), P(), P()), out_specs=P())
for one, other in zip(jax.grad(mapped, (0, 1, 2))(x, scale, bias), wanted):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
print("same")
"""


def test_four_devices():
    flags = "--xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "same\n", done.stderr


def test_numpy_arrays_and_a_training_loop():
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (64, 8)).astype("float32")
    target = (x[:, :1] > 3).astype("float32")
    parameters = {
        "w": rng.normal(0, 0.3, (8, 16)).astype("float32"), "scale": np.ones(16, "float32"),
        "bias": np.zeros(16, "float32"), "out": rng.normal(0, 0.3, (16, 1)).astype("float32"),
    }  # fmt: skip

    @jax.jit
    def step(parameters):
        def error(p):
            h = jax.nn.relu(tn.layer_norm(x @ p["w"], p["scale"], p["bias"]))
            return ((h @ p["out"] - target) ** 2).mean()

        value, slope = jax.value_and_grad(error)(parameters)
        return value, jax.tree.map(lambda p, g: p - 0.1 * g, parameters, slope)

    losses = []
    for _ in range(30):
        value, parameters = step(parameters)
        losses.append(float(value))
    assert losses[-1] < 0.5 * losses[0]
