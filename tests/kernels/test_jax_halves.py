"""The halves under JAX's transformations, against those of the plain formula."""

import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import EPSILON
from truenorm import native
from truenorm.arrays import jax as arrays
from truenorm.core.call import Call
from truenorm.core.plain import Plain
from truenorm.core.view import axes_view, group_view

REASON = native.unavailable("jax")
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))

NATIVE, PLAIN = native.engine("jax"), Plain(arrays)
CALLS = {
    "batch": Call(axes_view(4, (0, 2, 3), (1,)), True, EPSILON),
    "group": Call(group_view(4, 1, 3), True, EPSILON),
    "over axes 1 and 3": Call(axes_view(4, (1, 3), (1,)), True, EPSILON),
    "root mean square": Call(axes_view(4, (2, 3), (1,)), False, EPSILON),
}
rng = np.random.default_rng(0)
X = jnp.asarray(3 + rng.standard_normal((2, 6, 3, 4), "float32"))
GAMMA, BETA = jnp.asarray(rng.standard_normal((2, 6), "float32"))
DX = jnp.asarray(rng.standard_normal(X.shape, "float32"))


def halves(engine, call):
    """A function of x, gamma and beta whose every derivative takes both halves."""

    def function(x, gamma, beta):
        statistics = engine.moments(call, x)
        y = engine.apply(call, x, statistics, gamma, beta)
        return (y**3).sum() + ((statistics.mean + statistics.rest) * statistics.variance).sum()

    return function


def gradient(function):
    return jax.grad(function, (0, 1, 2))


TRANSFORMATIONS = {
    "jit": jax.jit,
    "grad": gradient,
    "jit of grad": lambda function: jax.jit(gradient(function)),
    "jvp": lambda function: lambda *a: jax.jvp(function, a, (DX, GAMMA, BETA)),
    "grad of grad": lambda function: gradient(
        lambda *a: sum((one**2).sum() for one in gradient(function)(*a))
    ),
    "jvp of grad": lambda function: lambda *a: jax.jvp(gradient(function), a, (DX, GAMMA, BETA)),
    "vmap": lambda function: (
        lambda x, *p: jax.vmap(function, (0, None, None))(jnp.stack([x, x[::-1], 2 * x]), *p)
    ),
    "vmap of grad": lambda function: (
        lambda x, *p: jax.vmap(gradient(function), (0, None, None))(
            jnp.stack([x, x[::-1], 2 * x]), *p
        )
    ),
    "grad in one operand": lambda function: jax.grad(function, 1),
    "checkpoint": lambda function: gradient(jax.checkpoint(function)),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("transform", TRANSFORMATIONS.values(), ids=TRANSFORMATIONS)
def test_transformations(transform, call):
    found, expected = (
        transform(halves(engine, call))(X, GAMMA, BETA) for engine in (NATIVE, PLAIN)
    )
    for one, exact in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        size = float(jnp.abs(exact).max())
        np.testing.assert_allclose(one, exact, rtol=2e-5, atol=2e-5 * size)


def test_one_device_runs_the_kernels_and_exports_do_not():
    function = jax.jit(jax.grad(halves(NATIVE, CALLS["batch"])))
    text = function.lower(X, GAMMA, BETA).as_text()
    for name in ("moments", "apply", "apply_backward"):
        assert f"@truenorm_{name}(" in text
    exported = jax.export.export(function)(X, GAMMA, BETA)
    assert "@truenorm_" not in exported.mlir_module()


def test_arrays_that_are_split_over_devices():
    program = textwrap.dedent("""
        import jax, numpy as np
        from jax.sharding import NamedSharding, PartitionSpec as P
        from truenorm import native
        from truenorm.arrays import jax as arrays
        from truenorm.core.call import Call
        from truenorm.core.plain import Plain
        from truenorm.core.view import axes_view

        call = Call(axes_view(4, (0, 2, 3), (1,)), True, 1e-3)
        x = 3 + np.random.default_rng(0).standard_normal((8, 6, 3, 4), "float32")

        def loss(engine):
            def function(x):
                statistics = engine.moments(call, x)
                return (engine.apply(call, x, statistics, None, None) ** 3).sum()
            return jax.value_and_grad(function)

        wanted = loss(Plain(arrays))(x)
        mesh = jax.make_mesh((4,), ("n",), axis_types=(jax.sharding.AxisType.Auto,))
        split = jax.device_put(x, NamedSharding(mesh, P("n")))
        assert len(split.sharding.device_set) == 4
        found = jax.jit(loss(native.engine("jax")))(split)
        np.testing.assert_allclose(found[0], wanted[0], rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(found[1], wanted[1], rtol=1e-4, atol=1e-5)

        each = jax.jit(jax.shard_map(
            lambda x: loss(native.engine("jax"))(x)[1], mesh=mesh, in_specs=P("n"), out_specs=P("n")
        ))(split)
        for i in range(4):
            part = slice(2 * i, 2 * i + 2)
            np.testing.assert_allclose(each[part], loss(Plain(arrays))(x[part])[1],
                                       rtol=1e-4, atol=1e-5)

        mesh = jax.make_mesh((4,), ("n",), axis_types=(jax.sharding.AxisType.Explicit,))
        with jax.set_mesh(mesh):
            typed = jax.device_put(x, P("n"))
            assert "split over devices" in native.engine("jax").moments(call, typed)
        print("all right")
    """)
    flags = "--xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300,
        env=os.environ | {"XLA_FLAGS": flags},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert "all right" in done.stdout
