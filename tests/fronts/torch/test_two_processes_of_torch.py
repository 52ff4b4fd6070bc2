"""Over two processes: DDP, FSDP2, and DTensors that are split over the batch."""

import pytest
import torch
from torch import distributed, nn

import truenorm.torch as tn
from gloo import run_together

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="without gloo"
)


def model():
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(3, 8, 3), tn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(),
        nn.Linear(8 * 16, 8), tn.LayerNorm(8), tn.RMSNorm(8), nn.Linear(8, 2),
    )  # fmt: skip
    for one in made.parameters():
        nn.init.normal_(one, std=0.3)
    return made


def data():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 3, 6, 6, generator=generator), torch.randn(4, 2, generator=generator)


def trained(module, x, target, steps=3):
    """The module after some steps, and the parameters then."""
    optimizer = torch.optim.SGD(module.parameters(), 0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.mse_loss(module(x), target).backward()
        optimizer.step()
    return [one.detach() for one in module.parameters()]


def with_ddp(rank):
    x, target = data()
    half = slice(2 * rank, 2 * rank + 2)
    module = nn.parallel.DistributedDataParallel(model())
    found = trained(module, x[half], target[half])
    for one, other in zip(found, trained(model(), x, target), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def fully_sharded(module):
    from torch.distributed.fsdp import fully_shard

    for child in module:
        if list(child.parameters()):
            fully_shard(child)
    return fully_shard(module)


def with_fsdp(rank):
    x, target = data()
    half = slice(2 * rank, 2 * rank + 2)
    module = fully_sharded(model())
    found = [one.full_tensor() for one in trained(module, x[half], target[half])]
    for one, other in zip(found, trained(model(), x, target), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def batch_model(cls):
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(3, 7, 3), cls(7), nn.ReLU(), cls(7, momentum=None), nn.Flatten(),
        nn.Linear(7 * 16, 2),
    )  # fmt: skip
    for one in made.parameters():
        nn.init.normal_(one, std=0.3)
    return made


def same_batch_training(found, wanted, of_found, of_wanted):
    """The parameters after some steps, and the statistics."""
    parameters = [one.full_tensor() for one in trained(found, *of_found)]
    for one, other in zip(parameters, trained(wanted, *of_wanted), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    for one, other in zip(found.buffers(), wanted.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def batch_with_fsdp(rank):
    """Synchronized, it is the training of one process; else that of DDP, which is local too."""
    x, target = data()
    half = slice(2 * rank, 2 * rank + 2)
    mine = x[half], target[half]
    synchronized = fully_sharded(batch_model(tn.SyncBatchNorm))
    same_batch_training(synchronized, batch_model(nn.BatchNorm2d), mine, (x, target))
    local = fully_sharded(batch_model(tn.BatchNorm2d))
    theirs = batch_model(nn.BatchNorm2d)
    wanted = nn.parallel.DistributedDataParallel(theirs, broadcast_buffers=False)
    same_batch_training(local, wanted, mine, mine)
    assert not torch.equal(local[1].running_mean, synchronized[1].running_mean)


def with_dtensor(rank):
    from torch.distributed.tensor import (
        Replicate,
        Shard,
        distribute_module,
        distribute_tensor,
        init_device_mesh,
    )

    mesh = init_device_mesh("cpu", (2,))
    for module, shape in (
        (tn.GroupNorm(2, 8), (4, 8, 5)),
        (tn.LayerNorm(8), (4, 5, 8)),
        (tn.RMSNorm(8), (4, 8)),
    ):
        x, cotangent = torch.randn(2, *shape, generator=torch.Generator().manual_seed(2))
        alone = x.clone().requires_grad_()
        wanted = module(alone)
        expected = torch.autograd.grad(wanted, [alone, *module.parameters()], cotangent)
        split = distribute_tensor(x, mesh, [Shard(0)]).requires_grad_()
        module = distribute_module(module, mesh)
        y = module(split)
        found = torch.autograd.grad(
            y, [split, *module.parameters()], distribute_tensor(cotangent, mesh, [Shard(0)])
        )
        torch.testing.assert_close(y.full_tensor(), wanted, rtol=1e-5, atol=1e-5)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one.full_tensor(), other, rtol=1e-4, atol=1e-4)
        assert Replicate() not in y.placements


@pytest.mark.parametrize("program", [with_ddp, with_fsdp, batch_with_fsdp, with_dtensor])
@pytest.mark.filterwarnings("ignore")  # of processes that are forked, and PyTorch's own
def test_two_processes(program):
    run_together(program, 2)
