"""The kernels for GPUs, compiled on a machine without one: registers, memory and wide loads.

The interpreter shows what they compute, this that they fit the hardware.
"""

import contextlib
import pathlib
import re
import subprocess

import pytest
import torch
import triton
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import truenorm.torch.functional as F
from truenorm.core.call import Call
from truenorm.core.kinds import KINDS
from truenorm.triton import launch, torch_operations
from truenorm.triton import torch as engine

SHAPES = {
    "narrow rows": ("layer", (524288, 64), {"axis": -1}),
    "rows": ("layer", (32768, 1024), {"axis": -1}),
    "long rows": ("rms", (8192, 8192), {"axis": -1}),
    "wide rows": ("layer", (4096, 16384), {"axis": -1}),
    "odd rows": ("layer", (1024, 50257), {"axis": -1}),
    "pixels": ("layer", (32, 256, 56, 56), {"axis": 1}),
    "many channels": ("layer", (32, 768, 14, 14), {"axis": 1}),
    "columns": ("group", (32, 56, 56, 256), {"axis": -1, "groups": 32}),
    "odd columns": ("group", (32, 56, 56, 240), {"axis": -1, "groups": 24}),
    "split columns": ("group", (4, 256, 256, 128), {"axis": -1, "groups": 32}),
    "channels first": ("group", (32, 256, 56, 56), {"axis": 1, "groups": 32}),
    "small channels first": ("group", (32, 256, 7, 7), {"axis": 1, "groups": 32}),
    "batch last": ("batch", (32, 56, 56, 256), {"axis": -1}),
    "odd batch last": ("batch", (32, 55, 55, 90), {"axis": -1}),
    "batch first": ("batch", (32, 256, 56, 56), {"axis": 1}),
    "small batch first": ("batch", (256, 1024, 7, 7), {"axis": 1}),
    "few samples first": ("batch", (2, 32, 128, 128, 128), {"axis": 1}),
    "batch of rows": ("batch", (4096, 1024), {"axis": -1}),
}
# Of these the halves by themselves, too.
HALVES = ["rows", "wide rows", "odd rows", "columns", "channels first"]
HALVES += [shape for shape in SHAPES if "batch" in shape or "samples" in shape]
EACH = [(shape, False) for shape in SHAPES] + [(shape, True) for shape in HALVES]
OTHERS = [(shape, False) for shape in ("rows", "wide rows", "pixels", "columns", "split columns")]
OTHERS += [(shape, halves) for shape in ("batch last", "batch first") for halves in (False, True)]
# Their sizes are multiples of the 16 bytes that a thread reads at once.
EVEN = set(SHAPES) - {"odd rows", "odd columns", "many channels", "small channels first"}
EVEN -= {"odd batch last", "small batch first"}
OF_X = {"x", "residual", "y", "total", "dy", "dtotal", "dx"}
NVIDIA = {number: GPUTarget("cuda", number, 32) for number in (80, 90, 100)}
AMD = GPUTarget("hip", "gfx942", 64)


def launches(shape, activation=None, halves=False):
    kind, sizes, options = SHAPES[shape]
    call = Call(KINDS[kind].view(sizes, **options), KINDS[kind].centered, 1e-5, activation)
    return launch.make(call, sizes, False, True, halves)


def compiled(found, dtype, target, residual=False):
    """Every kernel of these launches for a target, as they are launched."""
    passes = [found.forward, found.backward]
    split = isinstance(found.forward, launch.Split)
    each = [one for three in passes for one in three[:3]] if split else passes
    for one in filter(None, (*each, found.columns)):
        absent = set() if residual else {"residual", "total", "dtotal"}
        absent |= {"dgamma", "dbeta"} if found.sums_are_shares else set()
        if found.columns is not None and one is not found.columns:
            absent |= {"dgamma", "dbeta"}
        signature, constants, attributes = {}, {}, {}
        for i, name in enumerate(one.kernel.arg_names):
            value = one.constants.get(name, 1 if one.numbers.get(name) == 1 else None)
            if name in one.constants or name in absent or value == 1:
                signature[name], constants[i,] = "constexpr", value
                continue
            signature[name] = "i32" if name in one.numbers else "*fp32"
            if name in OF_X:
                signature[name] = f"*{dtype}"
            if one.numbers.get(name, 16) % 16 == 0:
                attributes[i,] = [["tt.divisibility", 16]]
        options = {"num_warps": one.warps, "enable_fp_fusion": True}
        source = ASTSource(one.kernel, signature, constants, attributes)
        yield one, triton.compile(source, target=target, options=options)


def usage(kernel, folder):
    """Registers of a thread, bytes of its stack, and bytes of shared memory."""
    (folder / "kernel").write_bytes(kernel.asm["cubin"])
    tool = pathlib.Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    command = [tool, "--dump-resource-usage", folder / "kernel"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [int(re.search(rf"{name}:(\d+)", text)[1]) for name in ("REG", "STACK", "SHARED")]


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(("shape", "halves"), EACH)
def test_nothing_spills_and_loads_are_wide(shape, halves, dtype, activation, tmp_path):
    for one, kernel in compiled(launches(shape, activation, halves), dtype, NVIDIA[90]):
        registers, stack, shared = usage(kernel, tmp_path)
        assert stack == 0, one
        assert registers * 32 * one.warps <= 65536
        assert shared <= 64 * 1024
        wide = re.search(r"ld\.global[^;]*\.v4\.b32", kernel.asm["ptx"])
        assert bool(wide) >= (shape in EVEN and "x" in one.kernel.arg_names), one


@pytest.mark.parametrize("target", [80, 100])
@pytest.mark.parametrize(("shape", "halves"), OTHERS)
def test_other_generations(shape, halves, target, tmp_path):
    for one, kernel in compiled(
        launches(shape, None, halves), "bf16", NVIDIA[target], residual=True
    ):
        _, stack, _ = usage(kernel, tmp_path)
        assert stack <= 16, one


@pytest.mark.parametrize(("shape", "halves"), OTHERS)
def test_amd(shape, halves):
    for one, kernel in compiled(launches(shape, "gelu", halves), "bf16", AMD, residual=True):
        spills = re.findall(r"[sv]gpr_spill_count: *(\d+)", kernel.asm["amdgcn"])
        assert spills, one
        assert not any(map(int, spills)), one


@pytest.fixture
def compiles_on_the_cpu(monkeypatch):
    """The engine takes CPU tensors and launches nothing: torch.compile sees the operations."""
    monkeypatch.setattr(engine, "unavailable", lambda: None)
    monkeypatch.setattr(engine, "_serves_cpu", True)


def graphs_of(function, *operands, dynamic=False):
    """What torch.compile makes of it: a list of names for each graph."""
    found = []

    def compiler(module, _):
        found.append([str(node.target) for node in module.graph.nodes])
        return make_boxed_func(module.forward)

    backend = aot_autograd(fw_compiler=compiler, bw_compiler=compiler)
    torch._dynamo.reset()
    compiled = torch.compile(function, backend=backend, fullgraph=True, dynamic=dynamic)
    return compiled(*operands), found


@pytest.mark.parametrize("dynamic", [False, True])
def test_torch_compile_takes_one_graph_each_way(dynamic, compiles_on_the_cpu, monkeypatch):
    """With sizes that it does not know, the graph has an operation that chooses in the call."""
    started = []
    monkeypatch.setattr(torch_operations, "_start", lambda one, *_: started.append(one.kernel))
    x = torch.zeros(4, 6, 6, 16, requires_grad=True)
    weight = torch.ones(16, requires_grad=True)

    def function(x, weight):
        return F.group_norm(x, 4, weight, axis=-1, activation="silu", implementation="triton")

    y, found = graphs_of(function, x, weight, dynamic=dynamic)
    y.sum().backward()
    assert y.shape == x.shape
    assert weight.grad.shape == weight.shape
    assert len(found) == 2
    for names, one in zip(found, ("forward", "backward"), strict=True):
        assert any(f"gpu_{one}_any" in name for name in names) == dynamic
    assert {one.__name__ for one in started} == {"looped_forward", "looped_backward"}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dynamic", [False, True])
def test_torch_compile_of_batch_normalization(
    dynamic, training, compiles_on_the_cpu, small_samples_are_split, monkeypatch
):
    started = []
    monkeypatch.setattr(torch_operations, "_start", lambda one, *_: started.append(one.kernel))
    x = torch.zeros(4, 2, 6, 6, requires_grad=True)
    weight, moving = torch.ones(2, requires_grad=True), (torch.zeros(2), torch.ones(2))

    def function(x, weight):
        return F.batch_norm(
            x, *moving, weight, training=training, activation="relu", implementation="triton"
        )

    y, found = graphs_of(function, x, weight, dynamic=dynamic)
    y.sum().backward()
    assert y.shape == x.shape
    assert weight.grad.shape == weight.shape
    assert len(found) == 2
    operations = ("forward", "backward") if training else ("apply", "apply_backward")
    for names, one in zip(found, operations, strict=True):
        assert any(f"gpu_{one}_any" in name for name in names) == dynamic
    kernels = {"looped_apply", "given_backward", "combine_sums"}
    if training:
        kernels = {"chunk_statistics", "combine_statistics", "looped_apply"}
        kernels |= {"chunk_sums", "combine_sums", "looped_gradient"}
    assert {one.__name__ for one in started} == kernels


@pytest.mark.parametrize("dynamic", [False, True])
def test_torch_compile_of_the_statistics(dynamic, compiles_on_the_cpu, monkeypatch):
    started = []
    monkeypatch.setattr(torch_operations, "_start", lambda one, *_: started.append(one.kernel))
    call = Call(KINDS["batch"].view((4, 16, 6), 1), True, 1e-5)
    x = torch.zeros(4, 16, 6, requires_grad=True)

    def function(x):
        return engine.moments(call, x).variance

    variance, found = graphs_of(function, x, dynamic=dynamic)
    variance.sum().backward()
    assert variance.shape == (16,)
    assert x.grad.shape == x.shape
    for names, one in zip(found, ("moments", "apply"), strict=True):
        assert any(f"gpu_{one}_any" in name for name in names) == dynamic
    assert {one.__name__ for one in started} == {"chunk_statistics", "looped_apply"}


@pytest.mark.parametrize("dynamic", [False, True])
def test_sizes_that_the_kernels_do_not_read(dynamic, compiles_on_the_cpu, monkeypatch):
    """A group with more channels than a tile has columns; no other part of a call tells."""
    x = torch.randn(2, 3, 16400)

    def function(x, implementation=None):
        return F.group_norm(x, 2, axis=-1, implementation=implementation)

    with pytest.raises(NotImplementedError, match="the GPU kernels take 8192"):
        function(x, "triton")
    monkeypatch.setattr(F, "FRONT", F.FRONT._replace(engines=F.FRONT.engines[1:]))
    y, names = graphs_of(function, x, dynamic=dynamic)
    assert not any("gpu" in name for name in names[0])
    torch.testing.assert_close(y, function(x, "plain"))


def test_cuda_tensors_take_the_kernels_by_themselves(monkeypatch):
    """As torch.compile sees it: tensors that say they are on a GPU, and have no data."""
    monkeypatch.setattr(engine, "unavailable", lambda: None)
    with FakeTensorMode():
        x = torch.empty(4, 6, 6, 16, device="cuda")
        weight = torch.empty(16, device="cuda")
    names = []

    def compiler(module, _):
        names.extend(str(node.target) for node in module.graph.nodes)
        return make_boxed_func(module.forward)

    torch._dynamo.reset()
    function = torch.compile(
        lambda x, weight: F.group_norm(x, 4, weight, axis=-1),
        backend=aot_autograd(fw_compiler=compiler),
        fullgraph=True,
    )
    with contextlib.suppress(RuntimeError):  # it cannot run here
        function(x, weight)
    assert names.count("triton_kernel_wrapper_functional") == 1


def test_no_gpu_is_a_reason():
    with pytest.raises(NotImplementedError, match="the GPU kernels serve CUDA tensors"):
        F.layer_norm(torch.ones(3, 4), 4, implementation="triton")
