"""What the primitives of JAX become on a GPU, with jax-triton's place taken by the interpreter.

The stand-in gives a kernel its parameters as jax-triton does: by place what it reads and then what
it writes, by name all else. That the real one accepts the kernels shows only where it can be
imported, which takes a JAX for GPUs; `make gpu` runs it.
"""

import functools
import importlib
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from cases import EPSILON
from gpu_kernels.running import WAYS
from promise import Expected
from truenorm.core.call import Call
from truenorm.native import jax_primitives
from truenorm.triton import jax as engine
from truenorm.triton import launch, plan

pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")
started = []


def triton_call(*inputs, kernel, out_shape, grid, num_warps, input_output_aliases, **constants):
    started.append(kernel.__name__)
    names = kernel.arg_names[: len(inputs) + len(out_shape)]
    # What is given by name must be given exactly once.
    assert not set(names) & set(constants)
    assert set(names) | set(constants) == set(kernel.arg_names)

    def run(*arrays):
        read = [torch.from_numpy(np.array(one)) for one in arrays]
        written = [
            torch.zeros(one.shape, dtype=getattr(torch, str(one.dtype))) for one in out_shape
        ]
        for i, o in input_output_aliases.items():
            written[o] = read[i]
        kernel[(grid,)](*read, *written, **constants)
        return [one.numpy() for one in written]

    return jax.pure_callback(run, out_shape, *inputs)


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    module = types.ModuleType("jax_triton")
    module.triton_call = triton_call
    monkeypatch.setitem(sys.modules, "jax_triton", module)
    engine.unavailable.cache_clear()
    started.clear()
    yield
    engine.unavailable.cache_clear()


@pytest.mark.parametrize("split", [False, True], ids=["", "split"])
@pytest.mark.parametrize("way", WAYS)
def test_forward_and_backward(way, split, monkeypatch):
    case = WAYS[way]
    if split:
        monkeypatch.setattr(plan, "SPLIT_ABOVE", 64)
        monkeypatch.setattr(plan, "SPLIT_TO", 32)
        monkeypatch.setattr(plan, "MOST_CHUNKS", 3)
    launch.make.cache_clear()
    rng = np.random.default_rng(0)
    view = case.view.vary_over(0) if case.per_sample else case.view
    call = Call(view, case.centered, EPSILON)
    x, dy = (5 * (i == 0) + rng.standard_normal(case.shape).astype("float32") for i in range(2))
    gamma, beta = (rng.standard_normal(case.parameter_shape).astype("float32") for _ in range(2))
    if not case.has_beta:
        beta = np.zeros_like(beta)
    y, statistics = engine._forward(*map(jnp.asarray, (x, gamma, beta)), call=call, lead=1)
    shape = jax_primitives.forward_shapes(jnp.asarray(x), jnp.asarray(gamma), call, 1)[1].shape
    assert statistics.shape == shape
    operands = map(jnp.asarray, (x, gamma, dy))
    dx, dgamma, dbeta = engine._backward(*operands, statistics, call=call, lead=1)
    launch.make.cache_clear()
    assert started  # not the plain formula
    expected = Expected(case, x, gamma, beta)
    errors = {"y": expected.forward_error(np.asarray(y))}
    given = (dx, dgamma, dbeta if case.has_beta else None)
    errors |= expected.gradient_errors(dy, *(None if a is None else np.asarray(a) for a in given))
    assert all(one <= 1 for one in errors.values()), errors


def test_what_the_kernels_do_not_read_is_plain():
    case = next(one for one in importlib.import_module("cases").CASES if "1 and 3" in one.name)
    x = jnp.ones(case.shape)
    gamma = jnp.ones(case.parameter_shape)
    call = Call(case.view, True, EPSILON)
    y, _ = engine._forward(x, gamma, 0 * gamma, call=call, lead=1)
    assert not started
    assert y.shape == x.shape


def test_reasons():
    x, call = jnp.ones((3, 4)), Call(WAYS["rows"].view, True, EPSILON)
    assert "serve arrays on GPUs" in engine.normalize(call, x, None, None)
    reasons = []

    @functools.partial(jax.jit)
    def traced(x):
        reasons.append(engine.normalize(call, x, None, None, jnp.ones(3, bool)))
        return x

    traced(x)
    assert "mask" in reasons[0]
