"""The promise on numbers, held by the functions for PyTorch: every case, forward and backward."""

import numpy as np
import pytest
import torch

import truenorm
from cases import CASES, EPSILON, Case
from promise import Expected
from truenorm.torch import functional

SPREADS = [(0, 1), (1000, 0.1), (-1e4, 1)]  # mean, sd
DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


@pytest.fixture(params=[None, "plain"], ids=["fastest", "plain"], autouse=True)
def implementation(request):
    with truenorm.use_implementation(request.param):
        yield


def call(case: Case, x, weight, bias, mask=None, **more):
    """Compute a case with the function of its name."""
    options = {"axis": case.partition["axis"], "mask": mask, "eps": EPSILON, **more}
    match case.function:
        case "group":
            return functional.group_norm(x, case.partition["groups"], weight, bias, **options)
        case "instance":
            return functional.instance_norm(x, weight=weight, bias=bias, **options)
        case "layer" | "rms":
            sizes = case.view.parameter_shape(case.shape)
            parameters = (weight, bias) if case.has_beta else (weight,)
            return getattr(functional, f"{case.function}_norm")(x, sizes, *parameters, **options)
        case "filter_response":
            return functional.filter_response_norm(x, weight, bias, **options)


def draw(case, mean, sd, dtype):
    rng = np.random.default_rng(0)
    x = torch.from_numpy(mean + sd * rng.standard_normal(case.shape)).to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    shape = (2, *case.parameter_shape)
    weight, bias = torch.from_numpy(rng.standard_normal(shape)).to(wide)
    cotangent = torch.from_numpy(rng.standard_normal(case.shape)).to(dtype)
    mask = case.make_mask(rng)
    return x, weight.clone(), bias.clone(), cotangent, mask


def array(t):
    return t.detach().to(torch.float64 if t.dtype != torch.float64 else t.dtype).numpy()


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_promise(case, name):
    for mean, sd in SPREADS:
        x, weight, bias, cotangent, mask = draw(case, mean, sd, DTYPES[name])
        inputs = [x, weight, bias] if case.has_beta else [x, weight]
        inputs = [one.requires_grad_() for one in inputs]
        given = None if mask is None else torch.from_numpy(mask)
        y = call(case, *inputs[:2], inputs[2] if case.has_beta else None, given)
        assert y.dtype == x.dtype
        gradients = torch.autograd.grad(y, inputs, cotangent)
        expected = Expected(case, array(x), array(weight), array(bias), mask, name)
        errors = {"y": expected.forward_error(array(y))}
        if name in ("float32", "float64"):
            found = [array(one) for one in gradients]
            errors |= expected.gradient_errors(array(cotangent), *found)
        assert all(error < 1 for error in errors.values()), (mean, sd, errors)


@pytest.mark.parametrize("case", [one for one in CASES if one.mask is None], ids=str)
def test_the_bits_are_those_of_the_keras_front(case):
    pytest.importorskip("keras")
    x, weight, bias, cotangent, _ = draw(case, 3, 1, torch.float32)
    results = []
    for compute in (call, lambda case, *tensors: case.call(*tensors)):
        inputs = [one.clone().requires_grad_() for one in (x, weight, bias)]
        y = compute(case, *inputs)
        used = inputs if case.has_beta else inputs[:2]
        results.append([y, *torch.autograd.grad(y, used, cotangent)])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("case", [one for one in CASES if one.mask is None], ids=str)
def test_a_sample_alone_has_the_bits_that_it_has_in_a_batch(case, request):
    if request.node.callspec.params["implementation"] == "plain":
        pytest.skip("the plain formula sums as the framework does")
    if case.shape[0] < 2 or not case.view.has_samples or case.per_sample:
        pytest.skip("there are no samples to part")
    x, weight, bias, _, _ = draw(case, 3, 1, torch.float32)
    whole = call(case, x, weight, bias)
    assert torch.equal(call(case, x[1:2], weight, bias), whole[1:2])


def test_a_mask_that_broadcasts():
    x = torch.randn(3, 4, 7)  # (N, C, T), and real steps (N, T)
    steps = torch.arange(7) < torch.tensor([7, 3, 5])[:, None]
    y = functional.instance_norm(x, mask=steps[:, None])
    for sample, length in enumerate((7, 3, 5)):
        wanted = functional.instance_norm(x[sample : sample + 1, :, :length])
        torch.testing.assert_close(y[sample : sample + 1, :, :length], wanted)
    with pytest.raises(ValueError, match=r"mask has the shape \(3, 2, 7\).*does not broadcast"):
        functional.instance_norm(x, mask=torch.ones(3, 2, 7, dtype=torch.bool))


@pytest.mark.parametrize("dtype", DTYPES.values())
def test_the_default_eps_of_rms_normalization_is_that_of_torch(dtype):
    x = torch.randn(5, 8, dtype=torch.float64).mul(1e-4).to(dtype)
    torch.testing.assert_close(
        functional.rms_norm(x, (8,)), torch.nn.functional.rms_norm(x, (8,)), rtol=2e-2, atol=0
    )


def test_tlu():
    x = torch.randn(3, 4, 5)
    tau, alpha = torch.randn(2, 4)
    torch.testing.assert_close(functional.tlu(x, tau), torch.maximum(x, tau[:, None]))
    wanted = torch.maximum(x, alpha[:, None] * x + tau[:, None])
    torch.testing.assert_close(functional.tlu(x, tau, alpha), wanted)
    last = functional.tlu(x.movedim(1, -1), tau, alpha, axis=-1)
    torch.testing.assert_close(last.movedim(-1, 1), wanted)
    x = torch.zeros(1, 4, 1, requires_grad=True)
    functional.tlu(x, torch.zeros(4)).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    assert functional.tlu(torch.tensor([[float("nan"), -1.0]]), torch.zeros(2)).isnan()[0, 0]
    for given, name in (((torch.ones(5),), "tau"), ((torch.ones(4), torch.ones(5)), "alpha")):
        with pytest.raises(ValueError, match=rf"{name} has the shape \(5,\), but input of shape"):
            functional.tlu(x, *given)
