"""Synchronized batch normalization over three processes whose batches differ in size."""

import copy

import pytest
import torch
from torch import distributed, nn

import truenorm.torch as tn
from gloo import run_together

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="without gloo"
)

PARTS = (slice(0, 5), slice(5, 6), slice(6, 9))
NOTHING = (slice(0, 5), slice(5, 5), slice(5, 9))


def model(seed=0):
    torch.manual_seed(seed)
    made = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8, momentum=None),
        nn.Flatten(), nn.Linear(8 * 16, 2),
    )  # fmt: skip
    for one in made.parameters():
        nn.init.normal_(one, std=0.3)
    return made.double()


def data(mean=0.0):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(9, 3, 6, 6, generator=generator) + mean
    return x.double(), torch.randn(9, 2, generator=generator).double()


def loss(module, x, target):
    return (module(x) - target).square().sum()


def alone():
    return tn.replace(model()).model


def compared(rank, parts, module, wanted, x, target):
    """Losses, gradients, and running statistics of three steps are those of one process."""
    for _ in range(3):
        for one in (module, wanted):
            one.zero_grad()
        total = loss(wanted, x, target)
        total.backward()
        own = loss(module, x[parts[rank]], target[parts[rank]])
        own.backward()
        summed = own.detach().clone()
        distributed.all_reduce(summed)
        torch.testing.assert_close(summed, total.detach(), rtol=1e-12, atol=0)
        for one, other in zip(module.parameters(), wanted.parameters(), strict=True):
            gradient = one.grad.clone()
            distributed.all_reduce(gradient)
            torch.testing.assert_close(gradient, other.grad, rtol=1e-9, atol=1e-9)
            with torch.no_grad():
                one -= 1e-3 * gradient
                other -= 1e-3 * other.grad
        for one, other in zip(module.buffers(), wanted.buffers(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def unequal(rank):
    compared(rank, PARTS, tn.replace(model(), "sync_batch").model, alone(), *data())


def one_without_samples(rank):
    compared(rank, NOTHING, tn.SyncBatchNorm.convert_sync_batchnorm(model()), alone(), *data(30.0))


def far_from_zero(rank):
    """At a mean of 10,000 deviations the statistics are combined within the promise."""
    x = torch.randn(9, 4, 50, generator=torch.Generator().manual_seed(2)) + 1e4
    module = tn.SyncBatchNorm(4, momentum=1.0)
    y = module(x[PARTS[rank]])
    wide = x.double()
    mean, variance = wide.mean((0, 2)), wide.var((0, 2), unbiased=False)
    wanted = (wide - mean[:, None]) / torch.sqrt(variance + 1e-5)[:, None]
    assert ((y - wanted[PARTS[rank]]).abs() <= 2e-6 * wanted[PARTS[rank]].abs().clamp(min=1)).all()
    torch.testing.assert_close(module.running_var.double(), wide.var((0, 2)), rtol=1e-6, atol=0)


def masked(rank):
    """What a mask hides counts nowhere, also where it hides all that one process has."""
    x, _ = data(5.0)
    mask = torch.tensor([1, 0, 1, 1, 0, 0, 1, 1, 1], dtype=torch.bool)  # rank 1 has nothing
    cotangent = torch.randn(9, 3, 6, 6, generator=torch.Generator().manual_seed(3))
    cotangent = torch.where(mask[:, None, None, None], cotangent, 0.0).double()
    found, wanted = tn.SyncBatchNorm(3).double(), tn.BatchNorm2d(3).double()
    part = PARTS[rank]
    hidden = torch.where(mask[:, None, None, None], x, float("nan"))
    mine, whole = hidden[part].clone().requires_grad_(), x.clone().requires_grad_()
    y = found(mine, mask[part])
    expected = wanted(whole, mask)
    (gradient,) = torch.autograd.grad(y, mine, cotangent[part])
    (other,) = torch.autograd.grad(expected, whole, cotangent)
    real = mask[part]
    torch.testing.assert_close(y[real], expected[part][real], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient[real], other[part][real], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.running_mean, wanted.running_mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.running_var, wanted.running_var, rtol=1e-12, atol=0)


def second_derivatives(rank):
    torch.manual_seed(4)
    x = torch.randn(9, 3, 4, dtype=torch.float64)
    found = []
    for module, one in ((tn.SyncBatchNorm(3), x[PARTS[rank]]), (tn.BatchNorm1d(3), x)):
        operand = one.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(
            module.double()(operand).pow(3).sum(), operand, create_graph=True
        )
        (second,) = torch.autograd.grad(gradient.pow(2).sum(), operand)
        found.append(second)
    torch.testing.assert_close(found[0], found[1][PARTS[rank]], rtol=1e-9, atol=1e-9)


def under_ddp(rank):
    """DDP averages the gradients; the buffers of all ranks are the same after every step."""
    module = nn.parallel.DistributedDataParallel(tn.replace(model(), "sync_batch").model)
    wanted = alone()
    x, target = data()
    for one, a, b in ((module, x[PARTS[rank]], target[PARTS[rank]]), (wanted, x, target)):
        loss(one, a, b).backward()
    for one, other in zip(module.parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(3 * one.grad, other.grad, rtol=1e-9, atol=1e-9)
    for one in module.buffers():
        first = one.clone()
        distributed.broadcast(first, 0)
        assert torch.equal(one, first)


def exchanges(rank):
    """One collective forward and one backward."""
    calls = []
    names = ("all_gather", "all_reduce", "all_gather_into_tensor", "broadcast")
    kept = {name: getattr(distributed, name) for name in names}
    try:
        for name, function in kept.items():

            def counted(*arguments, name=name, function=function, **options):
                calls.append(name)
                return function(*arguments, **options)

            setattr(distributed, name, counted)
        y = tn.SyncBatchNorm(3)(torch.randn(4, 3, 5, requires_grad=True))
        assert calls == ["all_gather"]
        y.square().sum().backward()
        assert calls == ["all_gather", "all_reduce"]
    finally:
        for name, function in kept.items():
            setattr(distributed, name, function)


def in_inference(rank):
    """Nothing is exchanged: one rank alone may call it."""
    module = tn.SyncBatchNorm(3).eval()
    if rank == 1:
        assert module(torch.randn(4, 3, 5)).isfinite().all()


def refused(rank):
    module = tn.SyncBatchNorm(3)
    module.virtual_batch_size = 2
    with pytest.raises(ValueError, match="virtual_batch_size=2 and synchronize=True contradict"):
        module(torch.randn(4, 3, 5))


def all_programs(rank):
    for program in (
        unequal, one_without_samples, far_from_zero, masked, second_derivatives, under_ddp,
        exchanges, in_inference, refused,
    ):  # fmt: skip
        try:
            program(rank)
        except Exception as error:
            error.add_note(f"in {program.__name__}")
            raise


@pytest.mark.filterwarnings("ignore")  # of processes that are forked, and PyTorch's own
def test_three_processes():
    run_together(all_programs, 3)


def test_one_process_needs_no_group():
    x, target = data()
    theirs, ours = model(), copy.deepcopy(model())
    ours = tn.replace(ours, "sync_batch").model
    torch.testing.assert_close(loss(ours, x, target), loss(theirs, x, target), rtol=1e-5, atol=0)
