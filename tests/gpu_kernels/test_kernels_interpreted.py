"""The kernels for GPUs in Triton's interpreter: every case, against the formula in float64."""

import dataclasses

import numpy as np
import pytest
import torch

from cases import CASES, Case
from gpu_kernels.running import DTYPES, WAYS, Run
from truenorm.core import reference
from truenorm.core.call import Call
from truenorm.core.kinds import KINDS
from truenorm.triton import launch, plan, torch_autograd
from truenorm.triton import torch as engine
from truenorm.triton.plan import Held, Looped

SCATTERED = {"layer over axes 1 and 3", "layer over axes 0 and 2", "rms over axes 1 and 3"}
UNMASKED = [case for case in CASES if case.mask is None]

# NumPy, which interprets the kernels, says so where the GPU is silent: exp(-u) may be infinite.
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")


def holds(errors):
    assert all(one <= 1 for one in errors.values()), errors


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", UNMASKED, ids=str)
def test_every_case(case, dtype):
    run = Run(case, dtype)
    if case.name in SCATTERED:
        assert "alternate" in run.compute()
    else:
        holds(run.errors())


@pytest.mark.parametrize(("mean", "sd"), [(0, 1), (1000, 0.1), (-1e4, 1)])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_far_from_zero(way, mean, sd):
    holds(Run(WAYS[way], "float32", mean, sd).errors())


@pytest.mark.parametrize(
    ("way", "act", "residual"),
    [(way, act, act != "relu") for way in WAYS for act in ("relu", "silu")]
    + [
        (way, act, act != "gelu")
        for way in ("rows", "pixels", "columns", "wide rows")
        for act in ("gelu", "gelu_tanh", None)
    ],
)
def test_activation_and_residual(way, act, residual):
    holds(Run(WAYS[way], "float32", act=act, residual=residual).errors())


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
@pytest.mark.parametrize("act", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("way", ["rows", "pixels", "columns", "wide rows"])
def test_activation_and_residual_in_other_dtypes(way, act, dtype):
    holds(Run(WAYS[way], dtype, act=act, residual=True).errors())


SPLIT = [
    way for way, case in WAYS.items() if isinstance(plan.make(Run(case).call, case.shape), Looped)
]


@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("way", SPLIT)
def test_split_samples(way, residual, small_samples_are_split):
    run = (
        Run(WAYS[way], act="silu", residual=True) if residual else Run(WAYS[way], mean=1000, sd=0.1)
    )
    assert plan.make(run.call, tuple(run.x.shape)).chunks > 1
    holds(run.errors())


def test_each_way_is_read_as_it_should():
    found = {
        way: plan.make(Call(case.view, case.centered, 1.0), case.shape)
        for way, case in WAYS.items()
        if not case.per_sample
    }
    held = {way for way, one in found.items() if isinstance(one, Held)}
    assert held == {"rows", "rows in groups", "pixels", "rms"}
    assert {way for way in held if not found[way].rows} == {"pixels"}
    along = {way for way, one in found.items() if isinstance(one, Looped) and one.along_rows}
    assert along == {
        "many channels before pixels", "wide rows", "wide rows in groups", "rms, wide rows",
    }  # fmt: skip


@pytest.mark.parametrize(
    "way", ["columns", "columns, one group", "wide rows", "wide rows in groups"]
)
def test_a_first_tile_far_from_the_mean(way):
    """The pivot is what the first tile says; a second pass mends one that is far off."""
    run = Run(WAYS[way])
    with torch.no_grad():
        flat = run.x.view(run.x.shape[0], -1)
        flat[:, : flat.shape[1] // 40] += 3e5
    holds({"y": run.errors()["y"]})


@pytest.mark.parametrize("way", WAYS)
def test_a_sample_has_the_same_bits_alone(way):
    case = WAYS[way]
    run = Run(case, act="silu")
    assert run.compute() is None
    some = slice(1, 2)
    alone = Run(case, act="silu")
    for name in ("x", "dy", *(("gamma", "beta") if case.per_sample else ())):
        setattr(alone, name, getattr(run, name).detach()[some].clone().requires_grad_())
    assert alone.compute() is None
    assert torch.equal(run.y[some], alone.y)
    assert torch.equal(run.x.grad[some], alone.x.grad)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("way", WAYS)
def test_nan_and_inf_stay_in_their_group(way, value):
    case = WAYS[way]
    run = Run(case)
    groups, reduced = reference.expand(np.arange(run.x.numel()).reshape(case.shape), case.view)
    label = np.broadcast_to(groups.min(reduced, keepdims=True), groups.shape)
    label = torch.tensor(reference.collapse(label, case.shape, case.view))
    with torch.no_grad():
        run.x.view(-1)[run.x.numel() // 2] = value
    hit = label == label.view(-1)[run.x.numel() // 2]
    assert run.compute() is None
    clean = Run(case)
    assert clean.compute() is None
    assert torch.equal(run.y[~hit], clean.y[~hit])
    assert torch.equal(run.x.grad[~hit], clean.x.grad[~hit])
    assert not torch.isfinite(run.y[hit]).all()


@pytest.mark.parametrize("way", WAYS)
def test_large_numbers_do_not_overflow(way):
    run = Run(WAYS[way], sd=1e17)
    with torch.no_grad():
        run.x.clamp_(-1e18, 1e18)
    holds({"y": run.errors()["y"]})


@pytest.mark.parametrize("way", ["rows", "pixels", "columns", "wide rows"])
def test_without_gamma_or_beta(way):
    case = WAYS[way]
    run = Run(case)
    x, one, zero = run.x.detach(), torch.ones_like(run.gamma), torch.zeros_like(run.beta)

    def gradients(gamma, beta):
        operands = [t.detach().clone().requires_grad_() for t in (x, gamma, beta) if t is not None]
        given = iter(operands[1:])
        call = dataclasses.replace(run.call)
        y = engine.normalize(
            call, operands[0], *(None if t is None else next(given) for t in (gamma, beta))
        )
        return y, torch.autograd.grad(y, operands, run.dy.detach())

    full, (dx, dgamma, dbeta) = gradients(one, zero)
    for gamma, beta, wanted in (
        (None, None, (dx,)), (one, None, (dx, dgamma)), (None, zero, (dx, dbeta)),
    ):  # fmt: skip
        y, found = gradients(gamma, beta)
        assert torch.equal(y, full)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("act", [None, "silu"])
def test_the_gradient_of_the_gradient(act):
    run = Run(Case("", "group", (2, 2, 4), {"groups": 2}), "float64", act=act)

    def function(x, gamma, beta):
        return engine.normalize(run.call, x, gamma, beta)

    assert torch.autograd.gradgradcheck(function, (run.x, run.gamma, run.beta))


def test_channels_last_memory_is_read_as_it_lies(monkeypatch):
    case, read = WAYS["rows in groups"], []
    original = torch_autograd.normalize

    def normalize(plan, x, *operands):
        read.append(x.data_ptr())
        return original(plan, x, *operands)

    monkeypatch.setattr(torch_autograd, "normalize", normalize)
    run, other = Run(case), Run(case)
    other.x = run.x.detach().to(memory_format=torch.channels_last).requires_grad_()
    holds(run.errors())
    assert other.compute() is None
    assert other.y.is_contiguous(memory_format=torch.channels_last)
    assert read[-1] == other.x.data_ptr()
    torch.testing.assert_close(other.y, run.y, rtol=2e-6, atol=4e-6)
    torch.testing.assert_close(other.x.grad, run.x.grad, rtol=2e-6, atol=4e-6)


def test_strides_of_any_kind():
    case = WAYS["columns"]
    run, other = Run(case), Run(case)
    wide = torch.zeros(*case.shape[:-1], 2 * case.shape[-1])
    wide[..., ::2] = run.x.detach()
    other.x = wide[..., ::2].requires_grad_()
    assert run.compute() is None
    assert other.compute() is None
    assert torch.equal(run.y, other.y)
    assert torch.equal(run.x.grad, other.x.grad)


@pytest.mark.parametrize(
    ("shape", "kind"),
    [((40000, 60000), "rows"), ((1, 40, 30000, 60000), "pixels"), ((1, 40000, 50000, 16), "loops")],
)
def test_what_is_larger_than_32_bits_count(shape, kind):
    """By the constants alone: no machine has the memory in a test."""
    axis = 1 if kind == "pixels" else -1
    name = "instance" if kind == "loops" else "layer"
    call = Call(KINDS[name].view(shape, axis), True, 1e-3)
    found = launch.make(call, shape, False, True).forward
    constants = (found.sums if isinstance(found, launch.Split) else found).constants
    # In rows the beginning of a tile is counted in 64 bits, and what is inside it is small.
    assert constants["WIDE"] == (kind != "rows")
    many = plan.make(Call(KINDS["layer"].view((2**31, 1), -1), True, 1e-3), (2**31, 1))
    assert "the GPU kernels count up to" in many


def test_reasons():
    run = Run(WAYS["rows"])
    x = run.x.detach()
    assert "mask" in engine.normalize(run.call, x, None, None, torch.ones(37, dtype=torch.bool))
    assert "epsilon is learned" in engine.normalize(run.call, x, None, None, None, torch.ones(1))
    assert "dtype" in engine.normalize(run.call, x.to(torch.complex64), None, None)
    hidden = torch.ones(37, dtype=torch.bool)
    assert "mask" in engine.moments(run.call, x, hidden)
    assert "mask" in engine.measure(run.call, x, None, None, hidden)
    statistics = engine.moments(run.call, x)
    assert "mask" in engine.apply(run.call, x, statistics, None, None, hidden)
