"""Every way PyTorch differentiates and transforms a call."""

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad

from derivatives.expected import CASES, Point, assert_agree, assert_close

pytestmark = pytest.mark.parametrize("case", CASES, ids=str)


def tensors(arrays, **options):
    return tuple(torch.tensor(one, **options) for one in arrays)


def loss(point):
    return lambda *inputs: (point.call(*inputs) * torch.tensor(point.cotangent)).sum()


def test_forward_mode(case):
    point = Point(case)
    inputs, direction = tensors(point.inputs), tensors(point.direction)
    _, tangent = torch.func.jvp(point.call, inputs, direction)
    assert_close(tangent, point.tangent())
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(a, b) for a, b in zip(inputs, direction, strict=True)]
        assert_close(forward_ad.unpack_dual(point.call(*duals)).tangent, point.tangent())


def test_jacobians(case):
    point = Point(case)
    inputs = tensors(point.inputs)
    forward = torch.func.jacfwd(point.call)(*inputs)
    reverse = torch.func.jacrev(point.call)(*inputs)
    assert_agree(forward, reverse, 2e-5)
    along = torch.tensordot(forward, torch.tensor(point.direction[0]), len(case.shape))
    point.direction = [point.direction[0], *[np.zeros_like(one) for one in point.direction[1:]]]
    assert_close(along, point.tangent())


def test_every_input_alone(case):
    """Differentiated in one input, the others constants: in-place steps must allow it."""
    point = Point(case)
    inputs = tensors(point.inputs)
    for i, exact in enumerate(point.gradient()):
        assert_close(torch.func.grad(loss(point), argnums=i)(*inputs), exact)
        stacked = [torch.stack([one, one + 1]) if i == j else one for j, one in enumerate(inputs)]
        axes = tuple(0 if i == j else None for j in range(len(inputs)))
        found = torch.func.vmap(point.call, in_dims=axes)(*stacked)
        rows = [[one[k] if i == j else one for j, one in enumerate(stacked)] for k in range(2)]
        assert_agree(found, torch.stack([point.call(*row) for row in rows]), 1e-5)
        direction = tensors([np.ones_like(one) for one in point.inputs])
        alone = lambda one: point.call(*inputs[:i], one, *inputs[i + 1 :])  # noqa: B023, E731
        tangent = torch.func.jvp(alone, (inputs[i],), (direction[i],))[1]
        point.direction = [np.full_like(one, float(i == j)) for j, one in enumerate(point.inputs)]
        if abs(point.tangent()).max() > 1e-2:  # moving all of x together changes nothing
            assert_close(tangent, point.tangent())


def test_second_derivatives(case):
    point = Point(case)
    inputs, direction = tensors(point.inputs, requires_grad=True), tensors(point.direction)
    gradients = torch.autograd.grad(loss(point)(*inputs), inputs, create_graph=True)
    along = sum((one * by).sum() for one, by in zip(gradients, direction, strict=True))
    for one, exact in zip(torch.autograd.grad(along, inputs[:2]), point.second()[:2], strict=True):
        assert_close(one, exact)
    x, *rest = tensors(point.inputs)
    hessian = torch.func.hessian(lambda x: loss(point)(x, *rest))(x)
    along = torch.tensordot(hessian, direction[0], len(case.shape))
    point.direction = [point.direction[0], *[np.zeros_like(one) for one in point.direction[1:]]]
    assert_close(along, point.second()[0])


def test_vmap_and_grad(case):
    point = Point(case)
    stacked = tensors([np.stack([one, one * 2 + 1]) for one in point.inputs])
    of_all = torch.func.grad(loss(point))
    rows = torch.stack([of_all(*[one[k] for one in stacked]) for k in range(2)])
    assert_agree(torch.func.vmap(of_all)(*stacked), rows, 2e-4)
    total = torch.func.grad(lambda x: torch.func.vmap(loss(point))(x, *stacked[1:]).sum())
    assert_agree(total(stacked[0]), rows, 2e-4)


def test_compile_and_export(case, tmp_path):
    point = Point(case)
    inputs = tensors(point.inputs)

    class Module(torch.nn.Module):
        def forward(self, *inputs):
            return point.call(*inputs)

    program = torch.export.export(Module(), inputs)
    assert_close(program.module()(*inputs), point.call(*inputs))
