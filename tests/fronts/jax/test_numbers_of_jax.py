"""The promise on numbers, held by the functions for JAX: every case, forward and backward."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import truenorm
import truenorm.jax as tn
from cases import CASES, EPSILON, Case
from promise import Expected

SPREADS = [(0, 1), (1000, 0.1), (-1e4, 1)]  # mean, sd
NAMES = {"filter_response": "filter_response_norm"}


@pytest.fixture(params=[None, "plain"], ids=["fastest", "plain"], autouse=True)
def implementation(request):
    case = request.node.callspec.params.get("case") if hasattr(request.node, "callspec") else None
    if request.param is not None and case is not None and case.mask:
        pytest.skip("masks take the plain path either way")
    with truenorm.use_implementation(request.param):
        yield


def call(case: Case, x, scale, bias, mask=None, **more):
    """Compute a case with the function of its name."""
    function = getattr(tn, NAMES.get(case.function, f"{case.function}_norm"))
    options = {key: value for key, value in case.partition.items() if key != "groups"} | more
    if case.function == "group":
        options["num_groups"] = case.partition["groups"]
    parameters = (scale, bias) if case.has_beta else (scale,)
    return function(x, *parameters, epsilon=EPSILON, mask=mask, **options)


def draw(case, mean, sd, dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(mean + sd * rng.standard_normal(case.shape), dtype)
    wide = jnp.float64 if dtype == "float64" else jnp.float32
    scale, bias = jnp.asarray(rng.standard_normal((2, *case.parameter_shape)), wide)
    cotangent = jnp.asarray(rng.standard_normal(case.shape), dtype)
    return x, scale, bias, cotangent, case.make_mask(rng)


@pytest.mark.parametrize("name", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_promise(case, name):
    with jax.enable_x64(True) if name == "float64" else contextlib.nullcontext():
        mask = draw(case, 0, 1, name)[-1]

        def function(x, scale, bias=None):
            return call(case, x, scale, bias, mask)

        @jax.jit
        def both(inputs, cotangent):
            y, pullback = jax.vjp(function, *inputs)
            return y, pullback(cotangent)

        for mean, sd in SPREADS:
            x, scale, bias, cotangent, _ = draw(case, mean, sd, name)
            inputs = (x, scale, bias) if case.has_beta else (x, scale)
            y, gradients = both(inputs, cotangent)
            assert y.dtype == x.dtype
            expected = Expected(case, x, scale, bias, mask, name)
            errors = {"y": expected.forward_error(y)}
            if name in ("float32", "float64"):
                errors |= expected.gradient_errors(cotangent, *map(np.asarray, gradients))
            assert all(error < 1 for error in errors.values()), (mean, sd, errors)


@pytest.mark.parametrize("case", [one for one in CASES if one.mask is None], ids=str)
def test_the_bits_are_those_of_the_keras_front(case, request):
    pytest.importorskip("keras")
    if request.node.callspec.params["implementation"] == "plain":
        pytest.skip("XLA may fuse the same formula in another way")
    x, scale, bias, cotangent, _ = draw(case, 3, 1, "float32")
    results = []
    for compute in (call, lambda case, *tensors: case.call(*tensors)):
        inputs = (x, scale, bias) if case.has_beta else (x, scale)
        y, pullback = jax.vjp(
            lambda x, scale, bias=None, compute=compute: compute(case, x, scale, bias), *inputs
        )
        results.append([y, *pullback(cotangent)])
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_mask_that_broadcasts():
    x = jax.random.normal(jax.random.key(0), (3, 4, 7))  # (N, C, T), and real steps (N, T)
    steps = jnp.arange(7) < jnp.array([7, 3, 5])[:, None]
    y = tn.instance_norm(x, axis=1, mask=steps[:, None])
    for sample, length in enumerate((7, 3, 5)):
        wanted = tn.instance_norm(x[sample : sample + 1, :, :length], axis=1)
        np.testing.assert_allclose(y[sample, :, :length], wanted[0], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"mask has the shape \(3, 2, 7\).*does not broadcast"):
        tn.instance_norm(x, axis=1, mask=jnp.ones((3, 2, 7), bool))


def test_tlu():
    x, tau, alpha = (
        jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(3, 5, 4), (4,), (4,)])
    )
    np.testing.assert_array_equal(tn.tlu(x, tau), jnp.maximum(x, tau))
    np.testing.assert_array_equal(tn.tlu(x, tau, alpha), jnp.maximum(x, alpha * x + tau))
    first = tn.tlu(x.transpose(0, 2, 1), tau, axis=1)
    np.testing.assert_array_equal(first.transpose(0, 2, 1), jnp.maximum(x, tau))
    slope = jax.grad(lambda x: tn.tlu(x, jnp.zeros(4)).sum())(jnp.zeros((1, 4)))
    np.testing.assert_array_equal(slope, jnp.ones((1, 4)))


@pytest.mark.parametrize(
    ("compute", "error", "message"),
    [
        (
            lambda: tn.group_norm(jnp.ones((2, 6)), num_groups=4),
            ValueError,
            r"num_groups=4 does no",
        ),
        (
            lambda: tn.group_norm(jnp.ones((2, 6)), num_groups=0),
            ValueError,
            r"num_groups=0 must be",
        ),
        (lambda: tn.group_norm(jnp.ones((2, 6)), axis=2), ValueError, r"axis=2 is out of range"),
        (lambda: tn.layer_norm(jnp.ones((2, 6)), epsilon=-1), ValueError, r"epsilon=-1 must be"),
        (
            lambda: tn.layer_norm(jnp.ones((2, 6)), jnp.ones(5)),
            ValueError,
            r"scale has the shape \(5,\), but x of shape \(2, 6\).*needs \(6,\), or \(2, 6\)",
        ),
        (lambda: tn.rms_norm(jnp.ones((2, 6), int)), TypeError, r"x must be a floating-point"),
        (lambda: tn.rms_norm(jnp.ones((2, 6)), mask=jnp.ones(2)), TypeError, r"mask must be bool"),
        (
            lambda: tn.rms_norm(np.ones((2, 6))),
            ValueError,
            r"float64 was passed, but JAX computes in 32 bits.*JAX_ENABLE_X64=1",
        ),
        (
            lambda: tn.layer_norm(jnp.ones((2, 6)), implementation="x"),
            ValueError,
            r"implementation='x' is unknown",
        ),
        (lambda: tn.tlu(jnp.ones((2, 6)), jnp.ones(5)), ValueError, r"tau has the shape \(5,\)"),
        (
            lambda: tn.filter_response_norm(jnp.ones((2, 3, 6)), epsilon=jnp.ones(6)),
            ValueError,
            r"epsilon has the shape \(6,\); it must be one number",
        ),
    ],
)
@pytest.mark.filterwarnings("error")  # JAX warns where it makes float32 of float64: it never does
def test_errors(compute, error, message):
    with pytest.raises(error, match=message):
        compute()


def test_arrays_of_other_frameworks():
    torch = pytest.importorskip("torch")
    message = (
        r"{} is a Tensor of torch, but truenorm\.jax computes.*or use truenorm\.torch, which ta"
    )
    with pytest.raises(TypeError, match=message.format("x")):
        tn.layer_norm(torch.ones(2, 8))
    with pytest.raises(TypeError, match=message.format("x")):
        tn.filter_response_norm(torch.ones(2, 3, 8))
    with pytest.raises(TypeError, match=message.format("scale")):
        tn.layer_norm(jnp.ones((2, 8)), torch.ones(8))
    with pytest.raises(TypeError, match=message.format("mask")):
        tn.layer_norm(jnp.ones((2, 8)), mask=torch.ones(2, dtype=bool))
    with pytest.raises(TypeError, match=message.format("tau")):
        tn.tlu(jnp.ones((2, 8)), torch.ones(8))


def test_an_array_of_tensorflow():
    tensorflow = pytest.importorskip("tensorflow")
    message = r"x is a EagerTensor of tensorflow.*or use truenorm\.ops, which takes it"
    with pytest.raises(TypeError, match=message):
        tn.layer_norm(tensorflow.ones((2, 8)))


def test_what_jax_numpy_takes():
    x = np.arange(6, dtype=np.float32)
    wanted = np.asarray(tn.layer_norm(jnp.asarray(x)))
    np.testing.assert_array_equal(tn.layer_norm(x), wanted)
    np.testing.assert_array_equal(tn.layer_norm(x.tolist()), wanted)
    np.testing.assert_array_equal(tn.layer_norm(x, np.ones(6, np.float16)), wanted)
    with jax.enable_x64(True):
        assert tn.layer_norm(np.ones((2, 6))).dtype == "float64"
