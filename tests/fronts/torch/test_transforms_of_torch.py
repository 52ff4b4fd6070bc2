"""Under what PyTorch does to functions: derivatives, compilation, export, autocast."""

import contextlib
import io

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vmap

import truenorm.torch as tn

MODULES = {
    "group": lambda: tn.GroupNorm(2, 8),
    "instance": lambda: tn.InstanceNorm2d(8, affine=True),
    "layer": lambda: tn.LayerNorm(8, axis=1),
    "rms": lambda: tn.RMSNorm((8, 3, 4)),
    "frn": lambda: tn.FilterResponseNorm(8, learned_eps=True),
}
every_module = pytest.mark.parametrize("name", MODULES)


@pytest.fixture
def module(name):
    torch.manual_seed(0)
    made = MODULES[name]()
    for one in made.parameters():
        nn.init.uniform_(one, 0.5, 2)
    return made


@every_module
def test_second_derivatives(module):
    module = module.double()
    x = torch.randn(2, 8, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(module, (x,))
    assert torch.autograd.gradcheck(lambda x, weight: functional_call(
        module, {"weight": weight}, (x,)
    ), (x, module.weight.detach().clone().requires_grad_()))  # fmt: skip


@every_module
def test_torch_func(module):
    x, tangent = torch.randn(2, 2, 8, 3, 4).double()
    module, parameters = module.double(), dict(module.named_parameters())

    def loss(parameters, x):
        return (functional_call(module, parameters, (x,)) ** 3).sum()

    found = grad(loss)(parameters, x)
    for one, other in zip(
        found.values(), torch.autograd.grad(loss(parameters, x), parameters.values()), strict=True
    ):
        torch.testing.assert_close(one, other)
    y, dy = jvp(module, (x,), (tangent,))
    torch.testing.assert_close(y, module(x))
    step = 1e-6
    finite = (module(x + step * tangent) - module(x - step * tangent)) / (2 * step)
    torch.testing.assert_close(dy, finite, rtol=1e-6, atol=1e-6)
    alone = vmap(lambda one: module(one[None])[0])(x)
    torch.testing.assert_close(alone, y)
    each = vmap(grad(loss), (None, 0))(parameters, x[:, None])
    for key, one in each.items():
        torch.testing.assert_close(one.sum(0), found[key])
    small = x[:1]
    torch.testing.assert_close(jacfwd(module)(small), jacrev(module)(small))


@pytest.mark.parametrize(
    ("name", "dynamic", "backend"),
    [
        *((name, dynamic, "aot_eager") for name in MODULES for dynamic in (False, True)),
        ("group", True, "inductor"),
    ],
)
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # the compiler's
def test_compiled_whole(module, name, dynamic, backend):
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, dynamic=dynamic, backend=backend)
    sizes = (2, 5) if dynamic and name != "rms" else (2,)
    for size in sizes:
        x = torch.randn(size, 8, 3, 4, requires_grad=True)
        cotangent = torch.randn_like(x)
        y, wanted = compiled(x), module(x)
        torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-5)
        inputs = [x, *module.parameters()]
        for one, other in zip(
            torch.autograd.grad(y, inputs, cotangent),
            torch.autograd.grad(wanted, inputs, cotangent),
            strict=True,
        ):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@every_module
def test_exported(module):
    x = torch.randn(2, 8, 3, 4)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: batch},))
    assert "truenorm" not in str(program.graph)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    again = torch.export.load(file).module()
    x = torch.randn(5, 8, 3, 4)
    torch.testing.assert_close(again(x), module(x), rtol=1e-5, atol=1e-5)


@every_module
@pytest.mark.filterwarnings("ignore")  # the exporter's
def test_exported_to_onnx(module, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = tmp_path / "model.onnx"
    torch.onnx.export(
        module.eval(), (torch.randn(2, 8, 3, 4),), path, dynamo=True, verbose=False,
        dynamic_shapes=({0: torch.export.Dim("batch", min=2)},),
    )  # fmt: skip
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = torch.randn(5, 8, 3, 4)
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(y, module(x).detach().numpy(), rtol=1e-4, atol=1e-4)


@every_module
def test_autocast_keeps_the_dtype_of_the_input(module):
    x = torch.randn(2, 8, 3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert module(x).dtype == torch.float32
        y = module(x.bfloat16())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), module(x.bfloat16().float()), rtol=2e-2, atol=2e-2)


def test_gradients_in_mixed_precision():
    """Half-precision activations between parameters in float32, whose gradients are float32."""
    model = nn.Sequential(nn.Linear(8, 8), tn.LayerNorm(8), nn.Linear(8, 1))
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(4, 8)).sum().backward()
    assert {one.grad.dtype for one in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode"])
def test_without_gradients(mode):
    module, x = tn.GroupNorm(2, 8), torch.randn(2, 8, 3)
    with getattr(torch, mode)():
        y = module(x)
    assert not y.requires_grad
    torch.testing.assert_close(y, module(x).detach())


def test_checkpoint():
    module, x = tn.GroupNorm(2, 8), torch.randn(2, 8, 3, requires_grad=True)
    y = torch.utils.checkpoint.checkpoint(module, x, use_reentrant=False)
    (found,) = torch.autograd.grad(y.pow(3).sum(), x)
    (wanted,) = torch.autograd.grad(module(x).pow(3).sum(), x)
    assert torch.equal(found, wanted)


def test_cached_calls_do_not_outlive_a_change():
    module, x = tn.LayerNorm(8), torch.randn(4, 8)
    before = module(x)
    module.eps = 1.0
    torch.testing.assert_close(module(x), nn.functional.layer_norm(x, (8,), eps=1.0))
    assert not torch.allclose(module(x), before)
    with contextlib.suppress(ValueError):
        module.eps = -1.0
        module(x)
    module.eps = 1e-5
    assert torch.equal(module(x), before)
