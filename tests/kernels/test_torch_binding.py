"""The native operations under PyTorch: memory formats, transforms, compilers, devices."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

import truenorm
from truenorm import native, ops
from truenorm.core.call import Call
from truenorm.core.kinds import KINDS
from truenorm.native import recipe

REASON = native.unavailable("torch")
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))


def tensors(*shapes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes
    ]


def group(x, gamma=None, beta=None, **options):
    return ops.group_normalization(x, gamma, beta, **{"groups": 3, "axis": 1, **options})


def gradients(implementation, x, gamma, beta, **options):
    y = group(x, gamma, beta, implementation=implementation, **options)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    return y, *torch.autograd.grad(y, (x, gamma, beta), dy)


def assert_same(found, expected, atol=2e-5):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.detach().numpy(), other.detach().numpy(), 1e-5, atol)


LAYOUTS = {
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "any dense order": lambda x: x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
    "every second": lambda x: torch.repeat_interleave(x, 2, 3)[..., ::2],
    "expanded": lambda x: x[:1].expand(4, 6, 5, 7),
    "one pixel": lambda x: x[:, :, :1, :1].to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layouts(layout):
    x, gamma, beta = tensors((4, 6, 5, 7), (6,), (6,))
    laid_out = LAYOUTS[layout](x.detach()).requires_grad_()
    found = gradients("native", laid_out, gamma, beta)
    plain = gradients("plain", laid_out.detach().contiguous().requires_grad_(), gamma, beta)
    assert_same(found, plain)
    if layout == "channels last":
        assert found[0].stride() == found[1].stride() == laid_out.stride()


def begun_at_an_odd_byte(t):
    raw = bytearray(1) + bytearray(t.numpy().tobytes())
    return torch.frombuffer(raw, dtype=t.dtype, offset=1, count=t.numel()).reshape(t.shape)


# What a tensor can be besides numbers in a row: each gives one of t's shape and dtype.
MEMORY = {
    "none": lambda t: torch._efficientzerotensor(t.shape, dtype=t.dtype),
    "begun at an odd byte": begun_at_an_odd_byte,
    "negated where it is read": lambda t: torch._neg_view(t),
    "half of a conjugate": lambda t: torch.complex(t, t).conj().imag,
    "one element for all": lambda t: t.ravel()[0].expand(t.shape),
    "overlapping": lambda t: torch.as_strided(t.ravel().repeat(4), t.shape, (1,) * t.ndim),
    "columns first": lambda t: t.mT.contiguous().mT if t.ndim > 1 else t.repeat(2)[::2],
}


def resolved(t):
    return torch.zeros(t.shape, dtype=t.dtype) + t.resolve_neg()


@pytest.mark.parametrize("kind", MEMORY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_memory_of_every_tensor_of_a_call(kind, dtype):
    given = [one.detach() for one in tensors((4, 6), (6,), (6,), (4, 6), dtype=dtype)]

    def call(x, gamma, beta, dy, **options):
        inputs = [one.detach().requires_grad_() for one in (x, gamma, beta)]
        y = ops.layer_normalization(*inputs, **options)
        return y, *torch.autograd.grad(y, inputs, dy)

    for place in range(4):
        odd = [MEMORY[kind](one) if i == place else one for i, one in enumerate(given)]
        even = [resolved(one) for one in odd]
        assert_same(call(*odd, implementation="native"), call(*even, implementation="plain"))


@pytest.mark.parametrize("kind", MEMORY)
def test_memory_of_the_operands_of_the_operations(kind):
    x, gamma, beta, dy = (one.detach() for one in tensors((4, 6), (6,), (6,), (4, 6)))
    code = recipe.recipe(KINDS["layer"].view(x.shape, -1)).code
    options = (code, -1, 1e-3, True)

    def differs(name, *operands):
        def operation(*operands):
            results = getattr(torch.ops.truenorm, name).default(*operands)
            return results if isinstance(results, tuple) else (results,)

        for place in range(len(operands)):
            odd = [MEMORY[kind](one) if i == place else one for i, one in enumerate(operands)]
            expected = operation(*(resolved(one) for one in odd), *options)
            assert_same(operation(*odd, *options), expected, atol=0)
            with FakeTensorMode(allow_non_fake_inputs=True) as mode:
                traced = operation(*map(mode.from_tensor, odd), *options)
            assert [one.stride() for one in traced] == [one.stride() for one in expected]

    statistics = torch.ops.truenorm.moments.default(x, *options)
    differs("forward", x, gamma, beta)
    differs("backward", x, gamma, dy, statistics)
    differs("moments", x)
    differs("apply", x, gamma, beta, statistics)
    differs("apply_backward", x, gamma, dy, statistics)


@pytest.mark.parametrize("kind", MEMORY)
def test_memory_in_a_compiled_program(kind):
    torch.compiler.reset()
    compiled = torch.compile(ops.layer_normalization, backend="aot_eager", fullgraph=True)
    x, dy = (MEMORY[kind](one.detach()) for one in tensors((4, 6), (4, 6)))

    def call(function, x, dy):
        x = x.detach().requires_grad_()
        y = function(x)
        return y, *torch.autograd.grad(y, x, dy)

    assert_same(call(compiled, x, dy), call(ops.layer_normalization, resolved(x), resolved(dy)))
    torch.compiler.reset()


def test_gradients_for_many_cotangents_at_once():
    x, gamma, beta, dy = tensors((4, 6), (6,), (6,), (3, 4, 6))
    y = ops.layer_normalization(x, gamma, beta, implementation="native")
    found = torch.autograd.grad(y, (x, gamma, beta), dy, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(y, (x, gamma, beta), one, retain_graph=True) for one in dy]
    assert_same(found, [torch.stack(some) for some in zip(*each, strict=True)])


def test_a_layer_keeps_channels_last():
    layer = truenorm.GroupNormalization(groups=3, axis=1, implementation="native")
    x = torch.randn(4, 6, 5, 7).to(memory_format=torch.channels_last)
    layer.build(x.shape)
    assert layer(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("absent", ["gamma", "beta", "both"])
def test_absent_parameters(absent):
    x, gamma, beta = tensors((4, 6, 5), (6,), (6,))
    given = (None if absent in ("gamma", "both") else gamma, None if absent != "gamma" else beta)
    assert_same(
        [group(x, *given, implementation="native")], [group(x, *given, implementation="plain")]
    )


@pytest.mark.parametrize("absent", ["gamma", "beta", "both"])
def test_absent_parameters_are_where_x_is(absent):
    x, gamma, beta = tensors((4, 6, 5), (6,), (6,))
    given = (None if absent in ("gamma", "both") else gamma, None if absent != "gamma" else beta)
    call = Call(KINDS["group"].view(x.shape, axis=1, groups=3), True, 1e-3)
    with torch.device("meta"):  # the default for new tensors
        y = native.engine("torch").normalize(call, x, *given)
    assert all(one.is_cpu for one in y.grad_fn.saved_tensors)


def test_second_derivatives_and_which_inputs_want_them():
    x, gamma, beta = tensors((2, 6, 4), (6,), (6,), dtype=torch.float64)
    call = lambda *inputs: group(*inputs, implementation="native")  # noqa: E731
    assert torch.autograd.gradcheck(call, (x, gamma, beta))
    assert torch.autograd.gradgradcheck(call, (x, gamma, beta))
    assert torch.autograd.gradgradcheck(lambda x: call(x, gamma.detach(), beta.detach()), (x,))
    assert torch.autograd.gradcheck(lambda g: call(x.detach(), g, beta.detach()), (gamma,))


def test_a_gradient_penalty_matches_plain():
    def step(implementation):
        x, gamma, beta = tensors((4, 6, 5), (6,), (6,))
        y = group(x, gamma, beta, implementation=implementation)
        (dx,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
        return torch.autograd.grad((dx.square().sum(1).sqrt() - 1).square().sum(), (x, gamma))

    assert_same(step(None), step("plain"), atol=1e-3)


def test_a_gradient_penalty_where_gamma_depends_on_x():
    """The first gradient in x takes the path through gamma once."""

    def by_hand(x, gamma):
        variance, mean = torch.var_mean(x, 1, correction=0, keepdim=True)
        return gamma * (x - mean) / torch.sqrt(variance + 1e-3)

    def step(normalize):
        (x,) = tensors((5, 6), dtype=torch.float64)
        y = normalize(x, x.exp().mean(0))
        (dx,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
        return dx, *torch.autograd.grad(dx.square().sum(), x)

    native = lambda x, gamma: ops.layer_normalization(x, gamma, implementation="native")  # noqa: E731
    assert_same(step(native), step(by_hand), atol=1e-10)


def test_torch_func_takes_plain_and_says_so():
    x, gamma, beta = (one.detach() for one in tensors((2, 6, 4), (6,), (6,)))
    total = lambda x, **options: (group(x, gamma, beta, **options) ** 3).sum()  # noqa: E731
    plain = lambda x: total(x, implementation="plain")  # noqa: E731
    for transform in (torch.func.grad, torch.func.jacfwd, torch.func.hessian):
        np.testing.assert_allclose(transform(total)(x), transform(plain)(x), 1e-4, 1e-4)
        with pytest.raises(NotImplementedError, match=r"inside a transform of torch\.func"):
            transform(lambda x: total(x, implementation="native"))(x)
    direction = torch.arange(x.numel(), dtype=x.dtype).reshape(x.shape) % 5
    _, tangent = torch.func.jvp(total, (x,), (direction,))
    assert abs(tangent) > 1
    np.testing.assert_allclose(tangent, (torch.func.grad(plain)(x) * direction).sum(), rtol=1e-4)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, direction)
        assert forward_ad.unpack_dual(group(dual)).tangent.abs().max() > 0
        with pytest.raises(NotImplementedError, match="forward-mode"):
            group(dual, implementation="native")


class Recorder:
    """A backend of torch.compile that notes which operations the graphs call."""

    def __init__(self):
        self.called = []

    def __call__(self, module, inputs):
        from functorch.compile import make_boxed_func
        from torch._dynamo.backends.common import aot_autograd

        def note(graph, _):
            self.called += [str(node.target) for node in graph.graph.nodes]
            return make_boxed_func(graph.forward)

        return aot_autograd(fw_compiler=note, bw_compiler=note)(module, inputs)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_keeps_the_native_operations(dynamic):
    torch.compiler.reset()
    recorder = Recorder()
    traced = torch.compile(group, backend=recorder, fullgraph=True, dynamic=dynamic)
    for samples in (4, 3, 7):
        x, gamma, beta = tensors((samples, 6, 5), (6,), (6,))
        dy = torch.ones(x.shape) + x.detach()
        found = torch.autograd.grad(traced(x, gamma, beta), (x, gamma, beta), dy)
        expected = torch.autograd.grad(group(x, gamma, beta), (x, gamma, beta), dy)
        assert_same(found, expected)
    for name in ("truenorm.forward.default", "truenorm.backward.default"):
        assert name in recorder.called
    torch.compiler.reset()


@pytest.mark.parametrize("strict", [False, True])
def test_export_uses_plain(strict):
    class Module(torch.nn.Module):
        def forward(self, x):
            return group(x)

    x = torch.randn(4, 6, 5)
    program = torch.export.export(Module(), (x,), strict=strict)
    assert "truenorm" not in str(program.graph_module.code)
    assert_same([program.module()(x)], [group(x)])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: torch.empty(4, 6, 5, device="meta"), "on meta; the native kernels serve CPU"),
        (lambda: torch.eye(6).to_sparse(), "layout torch.sparse"),
        (lambda: torch.zeros(4, 6).to(torch.float8_e4m3fn), "dtype torch.float8"),
        (lambda: torch.zeros((2, *[1] * 10, 6)), "12 axes"),
    ],
)
def test_what_native_does_not_serve(make, reason):
    x = make()
    call = Call(KINDS["group"].view(x.shape, axis=1, groups=1), True, 1e-3)
    assert reason in native.engine("torch").normalize(call, x, None, None)


def test_meta_tensors_take_plain():
    assert group(torch.empty(4, 6, 5, device="meta")).shape == (4, 6, 5)


def test_fake_tensors_have_the_operation_s_shapes():
    with FakeTensorMode():
        y = group(torch.empty(4, 6, 5, 3), torch.empty(6), torch.empty(6), implementation="native")
    assert y.shape == (4, 6, 5, 3)


def test_autocast_and_half():
    x, gamma, beta = tensors((4, 6, 5), (6,), (6,))
    with torch.autocast("cpu", torch.bfloat16):
        y = group(x.bfloat16(), gamma, beta, implementation="native")
    assert y.dtype == torch.bfloat16
    assert_same([y.float()], [group(x.bfloat16().float(), gamma, beta)], atol=0.05)


def test_nothing_of_x_s_size_is_kept_besides_x():
    x, gamma, beta = tensors((64, 6, 50), (6,), (6,))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        group(x, gamma, beta, implementation="native")
    assert [one.data_ptr() for one in kept if one.numel() >= x.numel()] == [x.data_ptr()]


@pytest.mark.filterwarnings("ignore:os.fork")  # of JAX, where another test has imported it
def test_fit_and_a_forked_loader():
    """A worker that is forked after the kernels have run must not wait for their threads."""

    class Data(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, i):
            return group(torch.ones(8, 6, 4000) * i, implementation="native")[0]

    Data()[0]
    loader = torch.utils.data.DataLoader(
        Data(), num_workers=1, multiprocessing_context="fork", timeout=60
    )
    assert len(list(loader)) == 4
    model = keras.Sequential(
        [keras.Input((6, 4)), truenorm.GroupNormalization(2, implementation="native"),
         keras.layers.Flatten(), keras.layers.Dense(1)]
    )  # fmt: skip
    model.compile("sgd", "mse")
    history = model.fit(np.ones((8, 6, 4)) + np.arange(4), np.ones((8, 1)), verbose=0, epochs=3)
    assert history.history["loss"][-1] < history.history["loss"][0]


SCRIPT = """
import os, signal, threading
import numpy as np, torch
from truenorm import ops

torch.set_num_threads(2)
x = torch.randn(2, 16, 200, 200)

def call():
    return ops.group_normalization(x, groups=4, axis=1, implementation="native").numpy()

y = call()
"""

AT_FORK = """
child = os.fork()
if child == 0:
    signal.alarm(60)
    os._exit(0 if np.array_equal(call(), y) else 3)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
assert code == 0, code
assert np.array_equal(call(), y)
print("both computed")
"""

THREADS = """
wrong = []

def repeat():
    for _ in range(20):
        if not np.array_equal(call(), y):
            wrong.append(1)

threads = [threading.Thread(target=repeat) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not wrong
print("all computed")
"""


@pytest.mark.parametrize(
    ("body", "word"),
    [(AT_FORK, "both computed"), (THREADS, "all computed")],
    ids=["fork", "threads"],
)
def test_work_on_pytorch_s_threads_ends(body, word):
    if "fork" in body and not hasattr(os, "fork"):
        pytest.skip("no fork here")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT + body], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert word in done.stdout
