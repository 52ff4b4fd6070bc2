"""The modules beside those of torch.nn: constructors, states, words, errors, and what they add."""

import copy
import inspect
import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import truenorm.torch as tn
from truenorm.core.kinds import KINDS

PAIRS = [
    ("GroupNorm", (4, 8), {}, (2, 8, 5, 6)),
    ("GroupNorm", (4, 8), {"eps": 1e-3, "affine": False}, (2, 8, 5)),
    ("GroupNorm", (4, 8), {"bias": False}, (2, 8, 5)),
    ("InstanceNorm1d", (8,), {}, (2, 8, 5)),
    ("InstanceNorm1d", (8,), {"affine": True}, (8, 5)),
    ("InstanceNorm2d", (8,), {"affine": True, "eps": 1e-3}, (2, 8, 5, 6)),
    ("InstanceNorm3d", (8,), {"affine": True, "bias": False}, (2, 8, 3, 5, 6)),
    ("LayerNorm", (8,), {}, (2, 5, 8)),
    ("LayerNorm", ([5, 8], 1e-3), {}, (2, 5, 8)),
    ("LayerNorm", (8,), {"bias": False}, (2, 5, 8)),
    ("LayerNorm", (8,), {"elementwise_affine": False}, (8,)),
    ("RMSNorm", (8,), {}, (2, 5, 8)),
    ("RMSNorm", ((5, 8), 1e-3), {}, (2, 5, 8)),
    ("RMSNorm", (8,), {"elementwise_affine": False}, (2, 5, 8)),
]


def made(name, arguments, options, library=tn):
    torch.manual_seed(0)
    module = getattr(library, name)(*arguments, **options)
    for one in module.parameters():
        nn.init.normal_(one)
    return module


@pytest.mark.parametrize(("name", "arguments", "options", "shape"), PAIRS)
def test_beside_torch_nn(name, arguments, options, shape):
    ours, theirs = made(name, arguments, options), made(name, arguments, options, nn)
    assert repr(ours) == repr(theirs)
    assert isinstance(ours, getattr(nn, name))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x, cotangent = torch.randn(shape, requires_grad=True), torch.randn(shape)
    y, wanted = ours(x), theirs(x)
    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-5)
    found = torch.autograd.grad(y, [x, *ours.parameters()], cotangent)
    expected = torch.autograd.grad(wanted, [x, *theirs.parameters()], cotangent)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", sorted({pair[0] for pair in PAIRS}))
def test_the_constructor_is_that_of_torch_nn_and_more(name):
    ours = inspect.signature(getattr(tn, name)).parameters
    theirs = inspect.signature(getattr(nn, name)).parameters
    positional = [one for one in theirs.values() if one.kind is one.POSITIONAL_OR_KEYWORD]
    assert list(ours)[: len(positional)] == [one.name for one in positional]
    assert theirs.keys() <= ours.keys()
    for one in theirs.values():
        if one.default is not one.empty:
            assert ours[one.name].default == one.default


def test_every_kind_that_has_a_module_has_it():
    for kind in KINDS.values():
        if kind.torch is not None:
            assert hasattr(tn, kind.torch)
            default = inspect.signature(getattr(tn, kind.torch)).parameters["eps"].default
            assert default == kind.epsilon["torch"]


@pytest.mark.parametrize(
    ("name", "arguments", "options", "shape"),
    [
        ("GroupNorm", (4, 8), {}, (2, 8, 5, 6)),
        ("InstanceNorm2d", (8,), {"affine": True}, (2, 8, 5, 6)),
        ("LayerNorm", (8,), {}, (2, 8, 5, 6)),
        ("RMSNorm", (8,), {"eps": 1e-5}, (2, 8, 5, 6)),
    ],
)
def test_axis(name, arguments, options, shape):
    """Channels last as a logical layout, and layer normalization over the channels."""
    x = torch.randn(shape)
    first = made(name, arguments, {**options, "axis": 1})
    last = made(name, arguments, {**options, "axis": -1})
    torch.testing.assert_close(last(x.movedim(1, -1)).movedim(-1, 1), first(x))
    assert "axis=-1" in repr(last)


def test_a_mask():
    x = torch.randn(3, 6, 8)
    mask = torch.arange(6) < torch.tensor([6, 2, 4])[:, None]
    module = made("GroupNorm", (2, 8), {"axis": -1})
    y = module(torch.where(mask[..., None], x, torch.nan), mask)
    for sample, length in enumerate((6, 2, 4)):
        torch.testing.assert_close(y[sample, :length], module(x[sample : sample + 1, :length])[0])


def test_one_set_of_parameters_for_each_sample():
    x, weight, bias = torch.randn(3, 8, 5), *torch.randn(2, 3, 8)
    y = tn.functional.group_norm(x, 2, weight, bias)
    plain = tn.functional.group_norm(x, 2)
    torch.testing.assert_close(y, plain * weight[..., None] + bias[..., None])


@pytest.mark.parametrize(
    ("module", "shape", "size"),
    [
        (lambda: tn.GroupNorm(2), (3, 4, 5), (4,)),
        (lambda: tn.GroupNorm(2, axis=-1), (3, 5, 4), (4,)),
        (lambda: tn.InstanceNorm1d(affine=True), (3, 4, 5), (4,)),
        (lambda: tn.LayerNorm(), (3, 5, 4), (4,)),
        (lambda: tn.LayerNorm(axis=(1, 2)), (3, 5, 4), (5, 4)),
        (lambda: tn.RMSNorm(axis=1), (3, 4, 5), (4,)),
        (lambda: tn.FilterResponseNorm(), (3, 4, 5), (4,)),
        (lambda: tn.TLU(affine=True), (3, 4, 5), (4,)),
    ],
)
def test_sizes_that_the_first_input_tells(module, shape, size):
    lazy, loaded = module(), module()
    assert all(isinstance(one, nn.UninitializedParameter) for one in lazy.parameters())
    parameters = list(lazy.parameters())
    optimizer = torch.optim.SGD(parameters, 0.1)
    x = torch.randn(shape)
    before = lazy(x)
    assert all(one.shape == size for one in lazy.parameters())
    (before * torch.randn(shape)).sum().backward()
    optimizer.step()  # of an optimizer that was made before
    assert not torch.equal(lazy(x), before)
    loaded.load_state_dict(lazy.state_dict())
    assert torch.equal(loaded(x), lazy(x))


def test_parameters_are_there_at_once_where_the_size_is():
    assert [one.shape for one in tn.GroupNorm(2, 4).parameters()] == [(4,), (4,)]


@pytest.mark.parametrize("name", ["GroupNorm", "InstanceNorm2d", "LayerNorm", "RMSNorm"])
def test_copies_files_and_devices(name, tmp_path):
    arguments = (2, 4) if name == "GroupNorm" else (4,)
    options = {"affine": True} if name == "InstanceNorm2d" else {}
    module = made(name, arguments, options)
    x = torch.randn(2, 4, 4, 4)
    wanted = module(x)
    assert torch.equal(copy.deepcopy(module)(x), wanted)
    assert torch.equal(pickle.loads(pickle.dumps(module))(x), wanted)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other = made(name, arguments, options)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x), wanted)
    meta = getattr(tn, name)(*arguments, **options, device="meta")
    assert meta(x.to("meta")).shape == x.shape
    meta.to_empty(device="cpu").load_state_dict(module.state_dict())
    assert torch.equal(meta.to("cpu").cpu()(x), wanted)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        typed = getattr(tn, name)(*arguments, **options, dtype=dtype)
        assert {one.dtype for one in typed.parameters()} == {dtype}
        assert typed(x.to(dtype)).dtype == dtype
        assert copy.deepcopy(module).to(dtype)(x.to(dtype)).dtype == dtype


@pytest.mark.parametrize("name", ["GroupNorm", "InstanceNorm2d"])
def test_the_memory_format_is_kept(name):
    module = made(name, (2, 4) if name == "GroupNorm" else (4,), {})
    x = torch.randn(2, 4, 5, 6).to(memory_format=torch.channels_last)
    y = module(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, module(x.contiguous()))


def test_training():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), tn.FilterResponseNorm(8, learned_eps=True), tn.TLU(8),
        nn.Conv2d(8, 8, 3), tn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(),
        nn.Linear(8 * 16, 16), tn.LayerNorm(16), nn.ReLU(), tn.RMSNorm(16), nn.Linear(16, 2),
    )  # fmt: skip
    x = torch.randn(64, 1, 8, 8)
    labels = (x.mean((1, 2, 3)) > 0).long()
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    losses = []
    for _ in range(20):
        loss = nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(one.grad is not None for one in model.parameters())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: tn.GroupNorm(3, 8), ValueError, r"num_channels.*divisible by num_groups"),
        (lambda: tn.GroupNorm(0, 8), ValueError, r"num_groups=0 must be a positive divisor"),
        (lambda: tn.GroupNorm(2.5, 8), TypeError, r"num_groups=2\.5 must be an integer"),
        (lambda: tn.LayerNorm(8, eps=-1), ValueError, r"eps=-1 must be a finite number"),
        (lambda: tn.LayerNorm(8, axis=(1, 2)), ValueError, r"axis=\(1, 2\) names 2 axes, but norm"),
        (lambda: tn.RMSNorm(8, implementation="x"), ValueError, r"implementation='x' is unknown"),
        (
            lambda: tn.functional.instance_norm(torch.ones(2, 3, 4), torch.ones(3)),
            ValueError,
            r"running_var must not be None .*; expected the shape \(3,\)",
        ),
        (
            lambda: tn.InstanceNorm2d(8)(torch.ones(2, 8)),
            ValueError,
            r"expected 3D or 4D input \(got 2D input\)",
        ),
        (
            lambda: tn.InstanceNorm2d(8, affine=True)(torch.ones(2, 4, 5, 5)),
            ValueError,
            r"has 4 channels in axis 1, but num_features is 8",
        ),
        (
            lambda: tn.GroupNorm(2, 8)(torch.ones(2, 6, 5)),
            ValueError,
            r"weight has the shape \(8,\), but input of shape .*needs \(6,\), or \(2, 6\)",
        ),
        (
            lambda: tn.LayerNorm(8)(torch.ones(2, 6)),
            ValueError,
            r"normalized_shape=\(8,\) are not the sizes \(6,\) of axes \[1\]",
        ),
        (
            lambda: tn.functional.group_norm(torch.ones(2, 6), 4),
            ValueError,
            r"num_groups=4 does not divide the 6 channels of axis 1.*or num_groups=-1",
        ),
        (
            lambda: tn.LayerNorm(8)(torch.ones(2, 8, dtype=torch.int32)),
            TypeError,
            r"input must be a floating-point tensor; got int32",
        ),
        (
            lambda: tn.LayerNorm(8)(torch.ones(2, 8), torch.ones(2)),
            TypeError,
            r"mask must be boolean; got float32",
        ),
        (
            lambda: tn.LayerNorm(8)(np.ones((2, 8), "float32")),
            TypeError,
            r"input is a ndarray of numpy, but truenorm\.torch computes with torch; pass a tensor "
            r"of torch, torch\.as_tensor\(input\)",
        ),
        (lambda: tn.LayerNorm(8)([1.0] * 8), TypeError, r"must be a torch\.Tensor; got list"),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_an_array_of_jax():
    jax = pytest.importorskip("jax")
    with pytest.raises(TypeError, match=r"is a ArrayImpl of jax.*or use truenorm\.jax, which take"):
        tn.functional.layer_norm(jax.numpy.ones((2, 8)), 8)
