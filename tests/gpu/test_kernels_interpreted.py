"""The kernels for GPUs in Triton's interpreter: every case, against the formula in float64."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from cases import CASES, EPSILON, Case
from promise import BACKWARD, DIGITS, FORWARD, Expected
from truenorm.core import reference
from truenorm.core.call import Call
from truenorm.core.kinds import KINDS
from truenorm.triton import launch, plan
from truenorm.triton import torch as engine
from truenorm.triton.plan import Held, Looped

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
SCATTERED = {"layer over axes 1 and 3", "layer over axes 0 and 2", "rms over axes 1 and 3"}
UNMASKED = [case for case in CASES if case.mask is None]
# One for each way to read, and each place of gamma and beta, at sizes that tiles do not divide.
WAYS = {
    "rows": Case("", "layer", (37, 20)),
    "rows in groups": Case("", "group", (3, 10, 14, 13), {"groups": 5, "axis": 1}),
    "rows, per sample": Case("", "layer", (4, 5, 24), {}, None, True),
    "pixels": Case("", "layer", (2, 96, 6, 7), {"axis": 1}),
    "pixels, per sample": Case("", "layer", (2, 12, 6, 7), {"axis": 1}, None, True),
    "columns": Case("", "group", (3, 14, 13, 12), {"groups": 4}),
    "columns, an odd width": Case("", "group", (3, 14, 13, 15), {"groups": 3}),
    "columns, per sample": Case("", "group", (3, 7, 5, 6), {"groups": 2}, None, True),
    "columns, one group": Case("", "group", (3, 14, 13, 10), {"groups": 1}),
    "columns, several pixels a channel": Case("", "group", (2, 5, 12, 7), {"groups": 3, "axis": 2}),
    "many channels before pixels": Case("", "layer", (2, 700, 5), {"axis": 1}),
    "wide rows": Case("", "layer", (5, 8200)),
    "wide rows in groups": Case("", "group", (2, 6, 83, 97), {"groups": 2, "axis": 1}),
    "wide rows of one channel": Case("", "instance", (2, 3, 91, 93), {"axis": 1}),
    "rms": Case("", "rms", (37, 20)),
    "rms, wide rows": Case("", "rms", (3, 8200)),
    "filter response": Case("", "filter_response", (3, 14, 13, 5)),
}
# NumPy, which interprets the kernels, says so where the GPU is silent: exp(-u) may be infinite.
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")


def activation(name, u):
    """The activation and its derivative in NumPy."""
    erf = np.vectorize(math.erf, otypes=[float])
    with np.errstate(over="ignore"):
        match name:
            case "relu":
                return np.maximum(u, 0), (u > 0) * 1.0
            case "silu":
                s = 1 / (1 + np.exp(-u))
                return u * s, s * (1 + u * (1 - s))
            case "gelu":
                p = 0.5 * (1 + erf(u / math.sqrt(2)))
                return u * p, p + u * np.exp(-u * u / 2) / math.sqrt(2 * math.pi)
            case "gelu_tanh":
                k = math.sqrt(2 / math.pi)
                t = np.tanh(k * (u + 0.044715 * u**3))
                slope = k * (1 + 3 * 0.044715 * u**2)
                return 0.5 * u * (1 + t), 0.5 * (1 + t) + 0.5 * u * (1 - t * t) * slope
    return u, np.ones_like(u)


class Run:
    """One case computed by the kernels: y, the sum and the gradients, and what they should be."""

    def __init__(self, case, dtype="float32", mean=5.0, sd=1.0, act=None, residual=False):
        rng = np.random.default_rng(0)
        view = case.view.vary_over(0) if case.per_sample else case.view
        self.call = Call(view, case.centered, EPSILON, act, residual)
        self.case, self.dtype, self.act = case, dtype, act
        compute = torch.float64 if dtype == "float64" else torch.float32

        def draw(mean=0.0, sd=1.0, shape=case.shape, to=DTYPES[dtype]):
            drawn = torch.tensor(mean + sd * rng.standard_normal(shape)).to(to)
            return drawn.requires_grad_()

        self.x, self.dy = draw(mean, sd), draw()
        self.gamma, self.beta = (draw(shape=case.parameter_shape, to=compute) for _ in range(2))
        self.residual, self.ds = (draw(sd=sd) for _ in range(2)) if residual else (None, None)

    def compute(self):
        """Run it forward and backward, or return the reason against it."""
        beta = self.beta if self.case.has_beta else None
        more = () if self.residual is None else (self.residual,)
        found = engine.normalize(self.call, self.x, self.gamma, beta, None, None, *more)
        if isinstance(found, str):
            return found
        self.y, self.s = found if more else (found, None)
        pairs = [(self.y, self.dy)] + ([(self.s, self.ds)] if more else [])
        torch.autograd.backward(*zip(*((y, dy.detach()) for y, dy in pairs), strict=True))
        return None

    def errors(self):
        """The largest errors, where 1 is what the promise allows; in half precision of y alone."""
        assert self.compute() is None
        x = self.x
        if self.residual is not None:
            x = (self.x.double() + self.residual.double()).to(self.x.dtype)
            if self.dtype == "bfloat16":  # which the interpreter does not round to nearest
                torch.testing.assert_close(self.s, x, rtol=2.0**-7, atol=0)
                x = self.s
            assert torch.equal(self.s, x)
            assert torch.equal(self.residual.grad, self.x.grad)
        assert self.y.dtype is self.x.dtype
        expected = Expected(
            self.case, array(x), array(self.gamma), array(self.beta), dtype=self.dtype
        )
        u, dy = expected.y, array(self.dy).astype(expected.y.dtype)
        wanted, slope = activation(self.act, u)
        found = {"y": expected.forward_error(array(self.y))}
        if self.act is not None:
            allowed = FORWARD[self.dtype] * 1.13 * np.max(np.maximum(1, abs(u)), initial=1)
            if self.dtype in DIGITS:
                size = np.floor(np.log2(np.maximum(abs(wanted), 2.0**-14)))
                allowed = allowed + 2.0 ** (size - DIGITS[self.dtype] + 1)
            found["y"] = np.max(abs(array(self.y) - wanted) / allowed, initial=0)
        if self.dtype in BACKWARD:
            dx = array(self.x.grad) - (0 if self.ds is None else array(self.ds))
            dbeta = array(self.beta.grad) if self.case.has_beta else None
            grads = [dx, array(self.gamma.grad), dbeta]
            scale = 1
            if self.act is not None:
                # Of the terms before the activation, and what an error of u does: |a'| and |a''|.
                scale = 1.13 + 0.8 * np.max(np.maximum(1, abs(u)), initial=0)
                for i, sign in ((dy * slope, -1), (dy, 1)):
                    exact = reference.gradient(
                        expected.x, expected.gamma, expected.beta, i, expected.view,
                        **expected.options,
                    )  # fmt: skip
                    grads = [
                        None if a is None else a + sign * b
                        for a, b in zip(grads, exact, strict=True)
                    ]
            errors = expected.gradient_errors(dy, *grads)
            found |= {name: one / scale for name, one in errors.items()}
        return found


def array(t):
    return t.detach().double().numpy()


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


@pytest.fixture
def small_samples_are_split(monkeypatch):
    """As large ones are: these would take the interpreter minutes."""
    monkeypatch.setattr(plan, "SPLIT_ABOVE", 64)
    monkeypatch.setattr(plan, "SPLIT_TO", 32)
    monkeypatch.setattr(plan, "MOST_CHUNKS", 5)
    launch.make.cache_clear()
    yield
    launch.make.cache_clear()


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


def test_channels_last_memory_is_read_as_it_lies():
    case = WAYS["rows in groups"]
    run, other = Run(case), Run(case)
    other.x = run.x.detach().to(memory_format=torch.channels_last).requires_grad_()
    holds(run.errors())
    assert other.compute() is None
    assert other.y.is_contiguous(memory_format=torch.channels_last)
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
    found = launch.make(call, shape, False, True)
    constants = found.forward[0].constants
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
    assert "both halves in one" in engine.moments(run.call, x)
