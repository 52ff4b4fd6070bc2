"""The halves of a call and batch normalization, in Triton's interpreter."""

import numpy as np
import pytest
import torch

import truenorm.torch
from cases import Case
from gpu_kernels.running import BATCH, DTYPES, WAYS, Run
from halves import Point
from promise import Expected
from truenorm.core.call import Statistics
from truenorm.core.engine import use_implementation
from truenorm.triton import plan
from truenorm.triton import torch as engine

ALL = WAYS | BATCH
EACH = [(way, "float32") for way in ALL]
# Not in bfloat16, which the interpreter cuts off instead of rounding.
EACH += [(way, one) for way in ("last", "first", "wide rows") for one in ("float64", "float16")]
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")


@pytest.fixture(params=[False, True], ids=["", "chunks"])
def chunks(request):
    """Whether small samples and batches are split."""
    if request.param:
        request.getfixturevalue("small_samples_are_split")
    return request.param


class Training(Run):
    """A case computed by `measure`."""

    def compute(self):
        self.y, self.statistics = engine.measure(self.call, self.x, self.gamma, self.beta)
        self.y.backward(self.dy.detach())


def holds(errors):
    assert all(one <= 1 for one in errors.values()), errors


def numbers(t):
    """As NumPy has it; bfloat16 in float32, which has all its numbers."""
    t = t.detach()
    return t.float().numpy() if t.dtype is torch.bfloat16 else t.numpy()


def tensors(point, *arrays):
    """x and dy in the point's dtype, and the others, which are in the compute dtype."""
    found = [torch.tensor(one.astype(point.compute)) for one in arrays]
    return [found[0].to(DTYPES[point.dtype]), *found[1:]]


@pytest.mark.parametrize(
    ("dtype", "mean", "sd", "act"),
    [
        ("float32", 5, 1, None),
        ("float32", 1000, 0.1, None),
        ("float32", -1e4, 1, None),
        ("float32", 0, 1, "gelu"),
        ("float64", 5, 1, None),
        ("float16", 5, 1, "relu"),
        ("bfloat16", 5, 1, "silu"),
    ],
)
@pytest.mark.parametrize("way", BATCH)
def test_training(way, dtype, mean, sd, act, chunks):
    run = Training(BATCH[way], dtype, mean, sd, act)
    holds(run.errors())
    assert not any(one.requires_grad for one in run.statistics)
    x = run.x.detach().double()
    axes = [i for i in range(x.ndim) if i not in run.call.view.parameter_axes]
    variance, average = torch.var_mean(x, axes, correction=0)
    found = run.statistics
    deviation = (variance.ravel() + 1e-3).sqrt()
    assert (abs(found.mean.double() + found.rest - average.ravel()) <= 2e-6 * deviation).all()
    assert (abs(found.variance - variance.ravel()) <= 4e-6 * deviation**2).all()
    assert (found.count == x.numel() / average.numel()).all()


def test_batches_have_the_chunks_that_these_tests_are_about(chunks):
    found = {}
    for way, case in BATCH.items():
        one = plan.make(Run(case).call, case.shape)
        if isinstance(one, plan.Looped) and one.batch:
            found[way] = one
    assert set(found) == set(BATCH) - {"first, one sample", "two axes"}
    assert {way for way, one in found.items() if one.chunks > 1} == (
        set(found) if chunks else set()
    )
    across = {way for way, one in found.items() if one.stretch < one.width}
    assert across == ({"first, long"} if chunks else set())


@pytest.mark.parametrize(("way", "dtype"), EACH)
def test_statistics_and_y_of_them(way, dtype, chunks):
    case = ALL[way]
    for mean, sd in [(0, 1), (1000, 0.1)] if dtype == "float32" else [(3, 1)]:
        point = Point(case, dtype, mean, sd)
        x, gamma, beta = tensors(point, point.x, point.gamma, point.beta)
        statistics = engine.moments(point.call, x)
        point.check_statistics([numbers(one) for one in statistics])
        y = engine.apply(point.call, x, statistics, gamma, beta if case.has_beta else None)
        assert y.dtype is x.dtype
        assert Expected(case, point.x, point.gamma, point.beta, None, dtype).forward_error(
            numbers(y)
        ) < 1  # fmt: skip


@pytest.mark.parametrize(("way", "dtype"), EACH)
def test_gradient_of_the_statistics(way, dtype, chunks):
    point = Point(ALL[way], dtype)
    (x,) = tensors(point, point.x)
    _, rest, variance, _ = engine.moments(point.call, x.requires_grad_())
    cotangents = point.rng.standard_normal((2, point.mean.size)).astype(point.compute)
    given = [torch.tensor(one) for one in cotangents]
    wanted = slice(0 if point.case.centered else 1, None)
    (dx,) = torch.autograd.grad((rest, variance)[wanted], x, given[wanted])
    assert dx.dtype is x.dtype
    point.check_gradient_of_statistics(numbers(dx), *cotangents)


@pytest.mark.parametrize(("way", "dtype"), EACH)
def test_y_of_other_statistics_and_its_gradient(way, dtype, chunks):
    point = Point(ALL[way], dtype)
    other = point.other()
    x, gamma, beta = tensors(point, point.x, point.gamma, point.beta)
    beta = beta if point.case.has_beta else None
    statistics = Statistics(*map(torch.tensor, other))
    means = [statistics.mean, statistics.rest] if point.case.centered else []
    wanted = [x, gamma, *([] if beta is None else [beta]), statistics.variance, *means]
    for one in wanted:
        one.requires_grad_()
    y = engine.apply(point.call, x, statistics, gamma, beta)
    (dy,) = tensors(point, point.dy)
    dx, *found = torch.autograd.grad(y, wanted, dy)
    assert dx.dtype is x.dtype
    point.check_y_of(other, numbers(y), numbers(dx), [numbers(one) for one in found])


@pytest.mark.parametrize("act", ["relu", "silu"])
@pytest.mark.parametrize("way", ["last", "first", "rows", "wide rows"])
def test_activation_of_given_statistics(way, act):
    """The gradients are those of the activation after the call without it."""
    run = Run(ALL[way], "float64", act=act)
    statistics = engine.moments(run.call, run.x.detach())
    statistics = Statistics(*(one + 0.1 for one in statistics))
    operands = [run.x, run.gamma, run.beta, statistics.mean, statistics.variance]

    def results(function):
        for one in operands:
            one.requires_grad_()
        y = function()
        return y, *torch.autograd.grad(y, operands, run.dy.detach())

    def apart():
        y = engine.apply(run.call.alone, run.x, statistics, run.gamma, run.beta)
        return getattr(torch.nn.functional, act)(y)

    def fused():
        return engine.apply(run.call, run.x, statistics, run.gamma, run.beta)

    for a, b in zip(results(fused), results(apart), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("way", ["last", "first", "rows"])
def test_gamma_and_beta_may_be_absent(way):
    run = Run(ALL[way])
    x, ones, zeros = run.x.detach(), torch.ones_like(run.gamma), torch.zeros_like(run.beta)
    statistics = engine.moments(run.call, x)

    def results(x, gamma, beta):
        x = x.clone().requires_grad_()
        given = Statistics(*(one.clone().requires_grad_() for one in statistics))
        y = engine.apply(run.call, x, given, gamma, beta)
        return y, *torch.autograd.grad(y, (x, given.mean, given.variance), run.dy.detach())

    full = results(x, ones, zeros)
    for gamma, beta in ((None, None), (ones, None), (None, zeros)):
        for a, b in zip(results(x, gamma, beta), full, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("act", [None, "silu"])
@pytest.mark.parametrize("case", [Case("", "batch", (3, 2, 2), {"axis": 1}),
                                  Case("", "rms", (2, 4))], ids=str)  # fmt: skip
def test_the_gradient_of_the_gradient(case, act):
    run = Run(case, "float64", act=act)
    centered = case.centered
    statistics = engine.moments(run.call, run.x.detach())
    power = statistics.variance.clone().requires_grad_()
    mean = statistics.mean.clone().requires_grad_()
    beta = [run.beta] if case.has_beta else []

    def moments(x):
        return engine.moments(run.call, x)[1 if centered else 2 : 3]

    def apply(x, power, mean, gamma, beta=None):
        given = Statistics(mean, statistics.rest, power, statistics.count)
        return engine.apply(run.call, x, given, gamma, beta) + 0 * mean.sum()

    def measure(x, gamma, beta=None):
        return engine.measure(run.call, x, gamma, beta)[0]

    assert torch.autograd.gradgradcheck(moments, (run.x,))
    assert torch.autograd.gradgradcheck(apply, (run.x, power, mean, run.gamma, *beta))
    assert torch.autograd.gradgradcheck(measure, (run.x, run.gamma, *beta))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("way", ["last", "first", "first, long"])
def test_nan_and_inf_stay_in_their_channel(way, value, chunks):
    case = BATCH[way]
    run, clean = Training(case), Training(case)
    with torch.no_grad():
        run.x.view(-1)[run.x.numel() // 2] = value
    for one in (run, clean):
        one.compute()
    (axis,) = run.call.view.parameter_axes
    hit = run.x.numel() // 2 // run.x.stride(axis) % run.x.shape[axis]
    for a, b in ((run.y, clean.y), (run.x.grad, clean.x.grad)):
        for i, (one, wanted) in enumerate(zip(a.unbind(axis), b.unbind(axis), strict=True)):
            assert torch.equal(one, wanted) == (i != hit)


@pytest.mark.parametrize("way", ["last", "first"])
def test_large_numbers_do_not_overflow(way, chunks):
    run = Training(BATCH[way], sd=1e17)
    with torch.no_grad():
        run.x.clamp_(-1e18, 1e18)
    holds({"y": run.errors()["y"]})


@pytest.mark.parametrize("way", ["last", "first", "first, long"])
def test_chunks_far_from_each_other(way, chunks):
    """Each chunk has a pivot of its own, and a second pass where its first tile misleads."""
    run = Training(BATCH[way])
    with torch.no_grad():
        flat = run.x.view(-1)
        flat[: flat.numel() // 3] += 3e5
        flat[: flat.numel() // 40] -= 6e5
    holds({"y": run.errors()["y"]})


def test_channels_last_memory_is_read_as_it_lies():
    run, other = Training(BATCH["first"]), Training(BATCH["first"])
    other.x = run.x.detach().to(memory_format=torch.channels_last).requires_grad_()
    holds(run.errors())
    holds(other.errors())
    y = engine.apply(run.call, other.x, other.statistics, other.gamma, other.beta)
    for one in (other.y, y, other.x.grad):
        assert one.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 3, 0), (2, 0, 4)])
def test_nothing(shape):
    run = Training(Case("", "batch", shape, {"axis": 1}))
    run.compute()
    assert run.y.shape == run.x.grad.shape == shape
    assert not any(one.any() for one in run.statistics)
    assert not run.gamma.grad.any()
    y = engine.apply(run.call, run.x, run.statistics, run.gamma, run.beta)
    gradients = torch.autograd.grad(y.sum(), (run.x, run.gamma, run.beta))
    assert not any(one.any() for one in (y, *gradients))
    assert not any(one.any() for one in engine.moments(run.call, run.x.detach()))


def test_statistics_of_another_number_of_groups():
    run = Run(BATCH["last"])
    short = Statistics(*torch.ones(4, 5))
    with pytest.raises(RuntimeError, match="the statistics are of 5 groups; x has 12"):
        engine.apply(run.call, run.x, short, None, None)


@pytest.mark.parametrize("options", [{}, {"activation": "relu"}, {"virtual_batch_size": 3}],
                         ids=str)  # fmt: skip
@pytest.mark.parametrize("axis", [1, -1])
def test_the_module_trains_and_infers(axis, options):
    """As by the plain formula, with the moving statistics."""
    rng = torch.Generator().manual_seed(0)
    x = 3 + torch.randn((7, 5, 4, 6), generator=rng)
    results = []
    for name in ("plain", "triton"):
        module = truenorm.torch.BatchNorm2d(x.shape[axis], axis=axis, **options)
        with use_implementation(name):
            found = []
            for one in (module, module.eval()):
                inputs = x.clone().requires_grad_()
                y = one.train(not found)(inputs)
                found += [y, *torch.autograd.grad((y**3).sum(), (inputs, *one.parameters()))]
        results.append([*found, module.running_mean, module.running_var])
    for plain, fused in zip(*results, strict=True):
        torch.testing.assert_close(
            fused, plain, rtol=2e-5, atol=2e-5 * float(plain.detach().abs().max())
        )
