"""The halves under PyTorch: memory formats, second derivatives, compilers, and what they refuse."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

from cases import EPSILON
from truenorm import native
from truenorm.arrays import torch as arrays
from truenorm.core.call import Call, Statistics
from truenorm.core.plain import Plain
from truenorm.core.view import axes_view, group_view

REASON = native.unavailable("torch")
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))

NATIVE, PLAIN = native.engine("torch"), Plain(arrays)
CALLS = {
    "batch": Call(axes_view(4, (0, 2, 3), (1,)), True, EPSILON),
    "group": Call(group_view(4, 1, 3), True, EPSILON),
    "instance": Call(group_view(4, 1, -1), True, EPSILON),
    "over axes 1 and 3": Call(axes_view(4, (1, 3), (1,)), True, EPSILON),
    "root mean square": Call(axes_view(4, (2, 3), (1,)), False, EPSILON),
}
LAYOUTS = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "channels outermost": lambda x: x.permute(1, 0, 2, 3).contiguous().permute(1, 0, 2, 3),
    "any dense order": lambda x: x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
    "every second": lambda x: torch.repeat_interleave(x, 2, 3)[..., ::2],
}


def draw(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 6, 3, 4), (6,), (6,))
    return [torch.randn(one, generator=generator, dtype=dtype).requires_grad_() for one in shapes]


def halves(engine, call, x, gamma, beta):
    """y of x's own statistics, and these but for the mean, which is a constant."""
    statistics = engine.moments(call, x)
    return engine.apply(call, x, statistics, gamma, beta), *statistics[1:3]


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layouts(layout, call):
    x, gamma, beta = draw()
    x = LAYOUTS[layout](x.detach()).requires_grad_()
    results = []
    for engine, one in ((NATIVE, x), (PLAIN, x.detach().contiguous().requires_grad_())):
        mean, rest, variance, count = engine.moments(call, one)
        y = engine.apply(call, one, Statistics(mean, rest, variance, count), gamma, beta)
        generator = torch.Generator().manual_seed(1)
        of = [y, variance, rest] if call.centered else [y, variance]
        cotangents = [torch.randn(a.shape, generator=generator, dtype=a.dtype) for a in of]
        gradients = torch.autograd.grad(of, (one, gamma, beta), cotangents)
        results.append([y, mean + rest, variance, count, *gradients])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    if layout == "channels last":
        assert results[0][0].stride() == x.stride()


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_second_derivatives(call):
    def moments(x):
        _, rest, variance, _ = NATIVE.moments(call, x)
        return (x - x + variance.sum(), variance) if not call.centered else (rest, variance)

    def apply(x, gamma, beta, mean, variance):
        statistics = Statistics(mean, mean * 1e-3, variance.exp(), variance)
        return NATIVE.apply(call, x, statistics, gamma, beta)

    x, gamma, beta = draw()
    groups = [one.detach().requires_grad_() for one in NATIVE.moments(call, x)[1:3]]
    assert torch.autograd.gradgradcheck(moments, (x,))
    assert torch.autograd.gradgradcheck(apply, (x, gamma, beta, *groups))
    assert torch.autograd.gradgradcheck(lambda *inputs: halves(NATIVE, call, *inputs)[0],
                                        (x, gamma, beta))  # fmt: skip


@pytest.mark.parametrize("call", [CALLS["batch"], CALLS["root mean square"]], ids=str)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_without_a_break(dynamic, call):
    torch.compiler.reset()
    called = []

    def note(graph, inputs):
        from functorch.compile import make_boxed_func
        from torch._dynamo.backends.common import aot_autograd

        def compiler(graph, _):
            called.extend(str(node.target) for node in graph.graph.nodes)
            return make_boxed_func(graph.forward)

        return aot_autograd(fw_compiler=compiler, bw_compiler=compiler)(graph, inputs)

    def step(*inputs):
        y, _, variance = halves(NATIVE, call, *inputs)
        return y, variance

    compiled = torch.compile(step, backend=note, fullgraph=True, dynamic=dynamic)
    x, gamma, beta = draw(torch.float32)
    for samples in (x, torch.cat([x, x + 1]), x[:1]):
        inputs = [samples.detach().requires_grad_(), gamma, beta]
        results = []
        for function in (compiled, step):
            y, variance = function(*inputs)
            loss = (y**3).sum() + variance.square().sum()
            results.append([y, variance, *torch.autograd.grad(loss, inputs)])
        for found, expected in zip(*results, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    for name in ("moments", "apply", "apply_backward"):
        assert f"truenorm.{name}.default" in called
    torch.compiler.reset()


def test_statistics_that_are_constants_have_no_gradient():
    x, gamma, beta = draw()
    statistics = NATIVE.moments(CALLS["batch"], x.detach())
    assert not any(one.requires_grad for one in statistics)
    mean, rest, variance, count = NATIVE.moments(CALLS["batch"], x)
    assert [one.requires_grad for one in (mean, rest, variance, count)] == [
        False,
        True,
        True,
        False,
    ]
    y = NATIVE.apply(CALLS["batch"], x, statistics, gamma, beta)
    (dx,) = torch.autograd.grad(y.sum(), x)
    rstd = gamma / torch.sqrt(statistics.variance + EPSILON)
    torch.testing.assert_close(dx, rstd[:, None, None].expand(dx.shape))


def test_statistics_of_another_dtype_or_number():
    call = CALLS["batch"]
    x, gamma, beta = draw(torch.float32)
    statistics = NATIVE.moments(call, x)
    wide = Statistics(*(one.double() for one in statistics))
    y = NATIVE.apply(call, x, statistics, gamma, beta)
    torch.testing.assert_close(NATIVE.apply(call, x, wide, gamma, beta), y, rtol=0, atol=0)
    short = Statistics(*(one[:5] for one in statistics))
    with pytest.raises(RuntimeError, match="the statistics are of 5 groups; x has 6"):
        NATIVE.apply(call, x, short, gamma, beta)


def test_nothing_of_x_s_size_is_kept_besides_x():
    x, gamma, beta = (one.detach().requires_grad_() for one in draw())
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        halves(NATIVE, CALLS["batch"], x, gamma, beta)
    assert {one.data_ptr() for one in kept if one.numel() >= x.numel()} == {x.data_ptr()}


def test_fake_tensors_have_the_operations_shapes():
    with FakeTensorMode():
        x = torch.empty(4, 6, 5, 3, dtype=torch.bfloat16)
        statistics = NATIVE.moments(CALLS["group"], x)
        y = NATIVE.apply(CALLS["group"], x, statistics, torch.empty(6), None)
    assert [one.shape for one in statistics] == [(12,)] * 4
    assert [one.dtype for one in statistics] == [torch.float32] * 4
    assert (y.shape, y.dtype) == (x.shape, x.dtype)


def test_what_the_halves_refuse_and_why():
    call = CALLS["batch"]
    x, gamma, beta = (one.detach() for one in draw())
    statistics = NATIVE.moments(call, x)
    asked = []

    def both(x):
        asked.extend((NATIVE.moments(call, x), NATIVE.apply(call, x, statistics, gamma, beta)))
        return x.sum()

    def reasons():
        found, asked[:] = asked[:], []
        assert len(found) == 2
        assert all(isinstance(one, str) for one in found)
        return found

    torch.func.grad(both)(x)
    assert all("torch.func" in one for one in reasons())
    with forward_ad.dual_level():
        both(forward_ad.make_dual(x, x))
    assert all("forward-mode" in one for one in reasons())
    both(x.to("meta"))
    assert all("on meta" in one for one in reasons())
    on_meta = Statistics(*(one.to("meta") for one in statistics))
    assert "on meta" in NATIVE.apply(call, x, on_meta, gamma, beta)


def test_a_program_that_is_exported_has_the_plain_formula():
    class Module(torch.nn.Module):
        def forward(self, x):
            found = NATIVE.moments(CALLS["batch"], x)
            assert isinstance(found, str)
            return PLAIN.moments(CALLS["batch"], x).variance

    x = draw(torch.float32)[0].detach()
    program = torch.export.export(Module(), (x,))
    np.testing.assert_allclose(program.module()(x), x.var((0, 2, 3), correction=0), rtol=1e-5)
