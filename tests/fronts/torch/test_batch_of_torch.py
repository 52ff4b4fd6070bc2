"""Batch normalization for PyTorch, and the running statistics of instance normalization."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import batch_definition
import truenorm.torch as tn
from promise import BACKWARD, DIGITS, FORWARD, last_place
from truenorm.core.batch import Renorm

F = tn.functional
IMPLEMENTATIONS = [None, "plain", "native"]
EPS = 1e-5


def defined(x, gamma, beta, cotangent, axes, mask=None):
    """What `batch_definition` says; the mean and the variance have the rank of x."""
    y, mean, variance = batch_definition.defined(x, gamma, beta, axes, mask, epsilon=EPS)
    dx, dgamma, dbeta, rstd = batch_definition.gradients(x, gamma, cotangent, axes, EPS, mask)
    return y, dx, dgamma, dbeta, mean.reshape(rstd.shape), variance.reshape(rstd.shape), rstd


def numbers(shape, dtype=torch.float32, mean=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, cotangent = torch.randn(2, *shape, generator=generator)
    return (x * 2 + mean).to(dtype), cotangent.to(dtype)


def parameters(sizes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(9)
    gamma, beta = torch.randn(2, *sizes, generator=generator)
    return gamma.to(dtype), beta.to(dtype)


def wide(t):
    """Wider than float64, whose own sums lose digits."""
    return t.detach().double().numpy().astype(np.longdouble)


def within(found, wanted, allowed):
    assert found.shape == wanted.shape
    assert (abs(wide(found) - wanted) <= allowed).all(), np.max(abs(wide(found) - wanted) / allowed)


CASES = [
    ((6, 5, 4, 3), 1),
    ((6, 4, 3, 5), -1),
    ((16, 300), 1),
    ((300, 16), -1),
    ((2, 7, 30, 40), 1),
    ((2, 40, 30, 70), -1),
    ((3, 4, 5, 6), (1, 3)),
    ((4, 3), 0),
]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("mean", [0.0, 2e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("shape", "axis"), CASES, ids=str)
def test_training_is_the_definition(shape, axis, dtype, mean, implementation):
    if mean and dtype in (torch.float16, torch.bfloat16):
        pytest.skip("no such numbers differ")
    axes = tuple(one % len(shape) for one in (axis if isinstance(axis, tuple) else (axis,)))
    sizes = tuple(shape[one] for one in axes)
    compute = torch.float64 if dtype is torch.float64 else torch.float32
    x, cotangent = numbers(shape, dtype, mean)
    gamma, beta = parameters(sizes, compute)
    operands = [one.requires_grad_() for one in (x, gamma, beta)]
    running = torch.full(sizes, 0.5, dtype=compute), torch.full(sizes, 2.0, dtype=compute)
    before = [one.clone() for one in running]
    y = F.batch_norm(
        x, *running, gamma, beta, True, 0.3, EPS, axis=axis, implementation=implementation
    )
    gradients = torch.autograd.grad(y, operands, cotangent)
    name = str(dtype).removeprefix("torch.")
    wanted, dx, dgamma, dbeta, m, v, rstd = defined(*map(wide, (x, gamma, beta, cotangent)), axes)
    offset = wide(beta).reshape([one if i in axes else 1 for i, one in enumerate(shape)])
    scale = np.maximum(1, abs(wanted - offset) + abs(offset))
    within(y, wanted, FORWARD[name] * scale + last_place(wanted, name))
    if name not in DIGITS:
        others = tuple(i for i in range(len(shape)) if i not in axes)
        g = abs(wide(cotangent)).max(others, keepdims=True) * abs(wide(gamma)).max()
        within(gradients[0], dx, np.broadcast_to(BACKWARD[name] * g * rstd, shape))
        terms = wide(cotangent) * (wide(x) - m) * rstd
        within(gradients[1], dgamma, 2 * BACKWARD[name] * np.sqrt((terms**2).sum(others)))
        within(gradients[2], dbeta, BACKWARD[name] * np.sqrt((wide(cotangent) ** 2).sum(others)))
    n = x.numel() // gamma.numel()
    unit = 1e-14 if dtype is torch.float64 else 3e-7
    found = m.reshape(sizes), v.reshape(sizes) * n / (n - 1)
    for one, old, new in zip(running, before, found, strict=True):
        expected = 0.7 * wide(old) + 0.3 * new
        within(one, expected, unit * (abs(expected) + abs(new)))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", [(6, 5, 4, 3), (9, 5)])
def test_inference_uses_the_running_statistics_and_leaves_them(shape, implementation):
    x, cotangent = numbers(shape, mean=3.0)
    gamma, beta = parameters((5,))
    running = torch.linspace(1, 5, 5), torch.linspace(0.5, 3, 5)
    kept = [one.clone() for one in running]
    x.requires_grad_()
    y = F.batch_norm(x, *running, gamma, beta, False, implementation=implementation)
    sizes = (1, 5) + (1,) * (len(shape) - 2)
    rstd = 1 / np.sqrt(wide(running[1]) + EPS)
    mean, rstd, scale, offset = (
        np.asarray(one).reshape(sizes) for one in (wide(running[0]), rstd, wide(gamma), wide(beta))
    )
    wanted = (wide(x) - mean) * rstd * scale + offset
    within(y, wanted, 2e-6 * np.maximum(1, abs(wanted) + 2 * abs(offset)))
    (dx,) = torch.autograd.grad(y, x, cotangent)
    within(dx, wide(cotangent) * rstd * scale, 1e-6 * np.abs(rstd * scale) * 4)
    assert all(torch.equal(one, other) for one, other in zip(running, kept, strict=True))


@pytest.mark.parametrize("shape", [(4,), (4, 1, 5, 6), (4, 3, 5, 6)])
def test_what_a_mask_hides_stays_out(shape):
    x, cotangent = numbers((4, 3, 5, 6), mean=10.0)
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(3)) < 0.6
    mask[0] = True
    gamma, beta = parameters((3,))
    running = torch.zeros(3), torch.ones(3)
    full = (mask if mask.ndim > 1 else mask.reshape(4, 1, 1, 1)).expand(x.shape)
    wanted, dx, _, _, m, v, rstd = defined(
        *map(wide, (x, gamma, beta, cotangent)), (1,), full.numpy()
    )
    hidden = torch.where(full, x, float("nan")).requires_grad_()
    y = F.batch_norm(hidden, *running, gamma, beta, True, 1.0, mask=mask)
    real = full.numpy()
    within(y[full], wanted[real], 4e-6 * np.maximum(1, abs(wanted[real])))
    (found,) = torch.autograd.grad(y, hidden, torch.where(full, cotangent, 0.0))
    _, dx, *_ = defined(*map(wide, (x, gamma, beta, torch.where(full, cotangent, 0.0))), (1,), real)
    within(found[full], dx[real], 1e-5 * rstd.max())
    n = real.sum((0, 2, 3))
    within(running[0], m.ravel(), 1e-5)
    within(running[1], v.ravel() * n / (n - 1), 1e-5 * v.max())


@pytest.mark.parametrize(
    "options", [{}, {"virtual_batch_size": 2}, {"activation": "gelu"}, {"frozen": True}], ids=str
)
def test_nan_behind_a_mask_stays_out_of_the_gradients(options):
    """They are those of zeros in its place, where the loss does not look either."""
    x, cotangent = numbers((4, 3, 5), mean=1.0)
    there = torch.rand((4, 1, 5), generator=torch.Generator().manual_seed(3)) < 0.6
    found = []
    for hidden in (float("nan"), 0.0):
        module = tn.BatchNorm1d(3, **options)
        given = torch.where(there, x, hidden).requires_grad_()
        y = module(given, mask=there.expand(x.shape))
        (torch.where(there, y, 0.0) * cotangent).sum().backward()
        found.append([given.grad, module.weight.grad, module.bias.grad])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_batch_without_anything_real_moves_nothing(momentum):
    module = tn.BatchNorm2d(3, momentum=momentum)
    module(numbers((4, 3, 2, 2))[0])
    kept = copy.deepcopy(module.state_dict())
    x = torch.full((4, 3, 2, 2), float("nan"))
    assert torch.equal(module(x, mask=torch.zeros(4, dtype=torch.bool))[0, :, 0, 0], module.bias)
    for name, one in module.state_dict().items():
        assert torch.equal(one, kept[name])
    assert module(x[:0]).shape == (0, 3, 2, 2)
    assert torch.equal(module.running_mean, kept["running_mean"])
    assert torch.equal(module.running_var, kept["running_var"])


@pytest.mark.parametrize("rows", [8, 10, 3])
def test_virtual_batches_have_statistics_of_their_own(rows):
    x, cotangent = numbers((rows, 3, 5), mean=5.0)
    gamma, beta = parameters((3,))
    running = torch.zeros(3), torch.ones(3)
    x.requires_grad_()
    y = F.batch_norm(x, *running, gamma, beta, True, 1.0, virtual_batch_size=4, unbiased=False)
    (dx,) = torch.autograd.grad(y, x, cotangent)
    means, variances = [], []
    for start in range(0, rows, 4):
        part = slice(start, start + 4)
        wanted, wanted_dx, _, _, m, v, rstd = defined(
            *map(wide, (x[part], gamma, beta, cotangent[part])), (1,)
        )
        within(y[part], wanted, 4e-6 * np.maximum(1, abs(wanted)))
        within(dx[part], wanted_dx, 2e-5 * rstd.max())
        means.append(m.ravel() * wanted.shape[0] / rows)
        variances.append(v.ravel() * wanted.shape[0] / rows)
    within(running[0], sum(means), 1e-5)
    within(running[1], sum(variances), 1e-5)


@pytest.mark.parametrize("shape", [(0, 3, 4), (10, 3, 0), (10, 0, 4), (0, 0, 0)])
@pytest.mark.parametrize("virtual", [None, 4])
@pytest.mark.parametrize("corrected", [False, True])
def test_axes_that_are_empty(shape, virtual, corrected):
    x = torch.zeros(shape, requires_grad=True)
    old = torch.full(shape[1:2], 0.8), torch.full(shape[1:2], 1.7)
    new = [one.clone() for one in old]
    renorm = Renorm(*old, 0.9, 1.2, 0.1) if corrected else None
    y = F.batch_norm(x, *new, None, None, True, virtual_batch_size=virtual, renorm=renorm)
    assert y.shape == shape
    assert torch.autograd.grad(y.sum(), x)[0].shape == shape
    assert all(torch.equal(one, other) for one, other in zip(new, old, strict=True))


def test_accumulated_gradients_are_those_of_virtual_batches():
    """Each small batch moves the running statistics, and the one of virtual ones does so once."""
    x, cotangent = numbers((12, 3, 5), mean=5.0)
    whole, small = tn.BatchNorm1d(3, virtual_batch_size=4), tn.BatchNorm1d(3)
    (whole(x) * cotangent).sum().backward()
    mean, variance = np.zeros(3), np.ones(3)
    for part, shown in zip(x.split(4), cotangent.split(4), strict=True):
        (small(part) * shown).sum().backward()
        mean = 0.9 * mean + 0.1 * wide(part).mean((0, 2))
        variance = 0.9 * variance + 0.1 * wide(part).var((0, 2), ddof=1)
    for one, other in zip(small.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-5)
    within(small.running_mean, mean, 1e-6)
    within(small.running_var, variance, 1e-6 * variance)
    within(whole.running_mean, 0.1 * wide(x).mean((0, 2)), 1e-6)
    assert (small.num_batches_tracked, whole.num_batches_tracked) == (3, 1)


@pytest.mark.parametrize("virtual", [None, 4])
def test_renorm_is_its_paper(virtual):
    x, cotangent = numbers((10, 3, 4), mean=1.0)
    gamma, beta = (one.requires_grad_() for one in parameters((3,)))
    x.requires_grad_()
    moving = Renorm(torch.full((3,), 0.8), torch.full((3,), 1.7), 0.9, 1.2, 0.1)
    y = F.batch_norm(x, None, None, gamma, beta, True, virtual_batch_size=virtual, renorm=moving)
    found = torch.autograd.grad(y, (x, gamma, beta), cotangent)

    def paper(x):
        wide_x = x.double()
        mean = wide_x.mean((0, 2), keepdim=True)
        deviation = torch.sqrt(wide_x.var((0, 2), unbiased=False, keepdim=True) + EPS)
        r = (deviation / 1.7).clamp(0.9, 1.2).detach()
        d = ((mean - 0.8) / 1.7).clamp(-0.1, 0.1).detach()
        xhat = (wide_x - mean) / deviation * r + d
        return xhat * gamma.double()[:, None] + beta.double()[:, None]

    pieces = [x] if virtual is None else x.split(virtual)
    wanted = torch.cat([paper(one) for one in pieces])
    expected = torch.autograd.grad(wanted, (x, gamma, beta), cotangent.double())
    torch.testing.assert_close(y.double(), wanted, rtol=4e-6, atol=4e-6)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("tracked", [True, False])
def test_a_module_is_that_of_torch_nn(rank, momentum, affine, tracked):
    arguments = (6, 1e-3, momentum, affine, tracked)
    theirs = getattr(nn, f"BatchNorm{rank}d")(*arguments)
    ours = getattr(tn, f"BatchNorm{rank}d")(*arguments)
    for one in theirs.parameters():
        nn.init.normal_(one)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    for seed in range(3):
        x, cotangent = numbers((4, 6, 5, 4, 3)[: rank + 2], mean=2.0, seed=seed)
        x.requires_grad_()
        y, wanted = ours(x), theirs(x)
        torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-5)
        for one, other in zip(
            torch.autograd.grad(y, [x, *ours.parameters()], cotangent),
            torch.autograd.grad(wanted, [x, *theirs.parameters()], cotangent),
            strict=True,
        ):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    reference = pickle.loads(pickle.dumps(ours.eval()))
    torch.testing.assert_close(ours(x), theirs.eval()(x), rtol=1e-5, atol=1e-5)
    assert torch.equal(reference(x), ours(x))


@pytest.mark.parametrize("affine", [True, False])
def test_instance_normalization_keeps_the_running_statistics_of_torch_nn(affine):
    theirs = nn.InstanceNorm2d(5, affine=affine, track_running_stats=True)
    ours = tn.InstanceNorm2d(5, affine=affine, track_running_stats=True)
    for seed in range(3):
        x, _ = numbers((4, 5, 3, 6), mean=2.0, seed=seed)
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    for name, one in ours.state_dict().items():
        torch.testing.assert_close(one, theirs.state_dict()[name])
    torch.testing.assert_close(ours.eval()(x[0]), theirs.eval()(x[0]), rtol=1e-5, atol=1e-5)


def test_sizes_of_the_first_input():
    module = tn.BatchNorm2d(momentum=1.0)
    x, _ = numbers((4, 3, 5, 6), mean=2.0)
    module(x)
    torch.testing.assert_close(module.running_mean, x.mean((0, 2, 3)))
    again = tn.BatchNorm2d()
    again.load_state_dict(module.state_dict())
    assert torch.equal(again.eval()(x), module.eval()(x))
    assert module.num_features == again.num_features == 3


def test_frozen_statistics_keep_their_bits_while_the_rest_learns():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), tn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    model(torch.randn(32, 4))
    model[1].frozen = True
    kept = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(50):
        optimizer.zero_grad()
        model(torch.randn(16, 4)).square().sum().backward()
        optimizer.step()
    for name, one in model.state_dict().items():
        statistic = name.startswith(("1.running", "1.num"))
        assert torch.equal(one, kept[name]) == statistic, name


def test_a_training_of_200_steps_is_that_of_torch_nn():
    torch.manual_seed(0)
    theirs = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 4)
    )
    ours = tn.replace(copy.deepcopy(theirs)).model
    assert type(ours[1]) is tn.BatchNorm2d
    x, target = torch.randn(64, 3, 6, 6), torch.randint(0, 4, (64,))
    losses = []
    for model in (theirs, ours):
        optimizer = torch.optim.SGD(model.parameters(), 0.02)
        found = []
        for step in range(200):
            part = slice(16 * (step % 4), 16 * (step % 4) + 16)
            loss = nn.functional.cross_entropy(model(x[part]), target[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        losses.append(found)
    assert losses[0][-1] < 0.5 * losses[0][0]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0, atol=1e-4)


def test_nan_stays_in_its_channel():
    x, _ = numbers((4, 3, 5, 6))
    module = tn.BatchNorm2d(3)
    wanted = module(x)
    x[1, 1, 2, 2] = float("nan")
    found = tn.BatchNorm2d(3)
    y = found(x)
    assert torch.equal(y[:, [0, 2]], wanted[:, [0, 2]])
    assert y[:, 1].isnan().all()
    assert found.running_mean.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_activation_and_a_residual(activation, training, dtype):
    x, other = numbers((4, 3, 5, 6), dtype, 1.0)
    module = tn.BatchNorm2d(3, activation=activation).train(training)
    y, total = module(x, residual=other)
    assert torch.equal(total, x + other)
    plain = tn.BatchNorm2d(3).train(training)
    wanted = getattr(nn.functional, activation)(plain((x + other).float()))
    close = {"rtol": 1e-2, "atol": 1e-2} if dtype is torch.bfloat16 else {}
    torch.testing.assert_close(y.float(), wanted, **close)


@pytest.mark.parametrize("options", [{}, {"virtual_batch_size": 2}, {"frozen": True}], ids=str)
def test_second_derivatives(options):
    module = tn.BatchNorm1d(2, **options).double()
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, x)
    assert torch.autograd.gradgradcheck(module, x)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_torch_compile_takes_one_graph(momentum):
    x, cotangent = numbers((4, 3, 5, 6), mean=2.0)
    modules = [tn.BatchNorm2d(3, momentum=momentum) for _ in range(2)]
    compiled = torch.compile(modules[0], fullgraph=True, backend="aot_eager")
    found = []
    for one in (compiled, modules[1]):
        operand = x.clone().requires_grad_()
        y = one(operand)
        found.append((y, *torch.autograd.grad(y, operand, cotangent)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    for one, other in zip(modules[0].buffers(), modules[1].buffers(), strict=True):
        torch.testing.assert_close(one, other)


def test_functional_call_leaves_the_module_alone():
    module = tn.BatchNorm2d(3)
    kept = copy.deepcopy(module.state_dict())
    given = {name: one.clone() for name, one in module.state_dict().items()}
    torch.func.functional_call(module, given, (numbers((4, 3, 5, 6), mean=1.0)[0],))
    assert all(torch.equal(one, kept[name]) for name, one in module.state_dict().items())
    assert not torch.equal(given["running_mean"], kept["running_mean"])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: tn.BatchNorm1d(3)(torch.ones(1, 3)), ValueError, "more than 1 value per channel"),
        (
            lambda: tn.BatchNorm1d(3, virtual_batch_size=4)(torch.ones(9, 3)),
            ValueError,
            "virtual_batch_size=4 leaves one value for each channel",
        ),
        (
            lambda: tn.BatchNorm2d(3, virtual_batch_size=0),
            ValueError,
            "virtual_batch_size=0 must be 1 or more",
        ),
        (
            lambda: tn.BatchNorm2d(3, virtual_batch_size=2.5),
            TypeError,
            r"virtual_batch_size=2\.5 must be an integer",
        ),
        (
            lambda: tn.BatchNorm1d(3, track_running_stats=False, frozen=True)(torch.ones(2, 3)),
            ValueError,
            "running_mean and running_var must not be None where the moving statistics are",
        ),
        (
            lambda: F.batch_norm(torch.ones(2, 3), torch.ones(4), torch.ones(4)),
            ValueError,
            r"running_mean has the shape \(4,\).*needs \(3,\)",
        ),
        (
            lambda: F.batch_norm(torch.ones(2, 3), training=True, weight=torch.ones(2)),
            ValueError,
            r"weight has the shape \(2,\)",
        ),
        (lambda: tn.BatchNorm2d(3)(torch.ones(2, 3)), ValueError, r"expected 4D input"),
    ],
)  # fmt: skip
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()
