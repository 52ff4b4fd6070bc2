"""Activation and residual in the functions and modules for PyTorch."""

import numpy as np
import pytest
import torch
from test_numbers_of_torch import DTYPES, call

from surrounded import ACTIVATIONS, TRIALS
from truenorm.torch import functional, modules, replace

GIVEN = ("x", "weight", "bias", "residual")


def array(t, dtype):
    return None if t is None else t.detach().double().numpy().astype(dtype)


@pytest.mark.parametrize("trial", TRIALS, ids=str)
def test_the_promise(trial):
    inputs = x, gamma, beta, residual, mask, dy, ds = trial.draw()
    own, wide = DTYPES[trial.dtype], torch.from_numpy(gamma).dtype

    def tensor(value, dtype=own):
        if value is None:
            return None
        return torch.from_numpy(np.asarray(value).astype(np.float64)).to(dtype)

    given = [tensor(x), tensor(gamma, wide), None, tensor(residual)]
    if trial.case.has_beta:
        given[2] = tensor(beta, wide)
    leaves = [one.requires_grad_() for one in given if one is not None]
    result = call(
        trial.case, *given[:3], None if mask is None else torch.from_numpy(mask),
        activation=trial.activation, residual=given[3], implementation=trial.implementation,
    )  # fmt: skip
    y, s = (result, None) if residual is None else result
    assert y.dtype == own
    outputs = [y] if s is None else [y, s]
    gradients = iter(torch.autograd.grad(outputs, leaves, [tensor(dy), tensor(ds)][: len(outputs)]))
    found = [None if one is None else next(gradients) for one in given]
    kept = (x.dtype, gamma.dtype, gamma.dtype, x.dtype)
    trial.check(inputs, array(y, x.dtype), array(s, x.dtype), list(map(array, found, kept)))


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # the compiler's
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled(activation, dtype):
    torch.compiler.reset()  # it counts how often it compiles the same lines
    x, residual = torch.randn(2, 3, 5, 16).to(dtype)

    def function(x, residual):
        y, s = functional.layer_norm(x, 16, activation=activation, residual=residual)
        return functional.rms_norm(y, 16, activation=activation), s

    found = torch.compile(function, fullgraph=True)(x, residual)
    # Compilers keep the digits of sums in half precision.
    close = 1e-6 if dtype is torch.float32 else 0.05
    for one, other in zip(found, function(x, residual), strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one, other, rtol=close, atol=close)


MODULES = [
    (modules.GroupNorm, (2, 4), (3, 4, 5)),
    (modules.LayerNorm, (5,), (3, 4, 5)),
    (modules.RMSNorm, (5,), (3, 4, 5)),
    (modules.InstanceNorm1d, (4,), (3, 4, 5)),
    (modules.FilterResponseNorm, (4,), (3, 4, 5)),
]


@pytest.mark.parametrize(("module", "arguments", "shape"), MODULES)
def test_modules(module, arguments, shape):
    x, residual = torch.randn(2, *shape)
    plain, activated = module(*arguments), module(*arguments, activation="gelu")
    assert "activation" not in repr(plain)
    assert "activation='gelu'" in repr(activated)
    mask = torch.tensor([True, True, False])
    for options in ({}, {"mask": mask}):
        y, s = activated(x, residual=residual, **options)
        assert torch.equal(s, x + residual)
        wanted = torch.nn.functional.gelu(plain(s, **options))
        torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(activated(s, **options), wanted, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(plain(x, residual=residual, **options)[0], plain(s, **options))
    with pytest.raises(
        ValueError, match="activation='tanh' is unknown; expected None or one of 'r"
    ):
        module(*arguments, activation="tanh")


def test_a_single_sample_of_an_instance_norm():
    x, residual = torch.randn(2, 4, 5)
    norm = modules.InstanceNorm1d(4, activation="relu")
    y, s = norm(x, residual=residual)
    assert torch.equal(s, x + residual)
    assert torch.equal(y, norm(s[None])[0])


def test_a_module_from_before_there_was_an_activation():
    norm = modules.LayerNorm(5)
    del vars(norm)["activation"]  # as it is unpickled
    assert norm(torch.randn(3, 5)).shape == (3, 5)
    assert "activation" not in repr(norm)


def test_replace_beside_a_submodule_of_that_name():
    class Activated(torch.nn.LayerNorm):
        def __init__(self):
            super().__init__(6)
            self.activation = torch.nn.ReLU()

    class Named(Activated):
        def forward(self, x):
            return self.activation(super().forward(x))

    x = torch.randn(3, 6)
    same, other = Activated(), Named()
    report = replace(torch.nn.Sequential(same, other))
    assert len(report.replaced) == len(report.left) == 1
    assert isinstance(same, modules.LayerNorm)
    torch.testing.assert_close(same(x), torch.nn.functional.layer_norm(x, (6,)))
    assert isinstance(same._modules["activation"], torch.nn.ReLU)


@pytest.mark.parametrize("to", ["group", "instance", "layer", "rms"])
def test_replace_by_another_kind_keeps_the_activation(to):
    model = torch.nn.Sequential(modules.GroupNorm(2, 4, activation="silu"))
    if to == "instance":
        model = torch.nn.Sequential(modules.InstanceNorm1d(4, activation="silu"))
    replace(model, to)
    assert model[0].activation == "silu"


def test_what_does_not_fit_is_refused():
    x = torch.randn(3, 5)
    with pytest.raises(ValueError, match=r"residual has the shape \(5,\), but input has \(3, 5\)"):
        functional.layer_norm(x, 5, residual=x[0])
    with pytest.raises(TypeError, match="residual is of dtype float64, but input is of float32"):
        functional.layer_norm(x, 5, residual=x.double())
    with pytest.raises(TypeError, match="residual must be a floating-point tensor"):
        functional.layer_norm(x, 5, residual=x.int())
    with pytest.raises(TypeError, match="Tensor; got float"):
        functional.layer_norm(x, 5, residual=1.0)
    for name in ("tanh", "", torch.relu, ["relu"]):
        with pytest.raises(ValueError, match="expected None or one of 'relu', 'silu', 'gelu', 'ge"):
            functional.layer_norm(x, 5, activation=name)


@pytest.mark.parametrize("activation", ACTIVATIONS[1:])
def test_far_out(activation):
    """No overflow, in the values or in the first two derivatives; NaN stays."""
    for dtype in (torch.float32, torch.float64):
        far = 1e30
        bias = torch.tensor([-far, -1e3, -50.0, 0.0, 50.0, 1e3, far], dtype=dtype).requires_grad_()
        y = functional.layer_norm(
            torch.zeros(2, 7, dtype=dtype), 7, bias=bias, activation=activation
        )
        assert torch.isfinite(y).all()
        torch.testing.assert_close(y[0, [4, 5, 6]], bias[4:])
        assert y[0, 1].abs() == y[0, 3] == 0
        (slope,) = torch.autograd.grad(y.sum(), bias, create_graph=True)
        assert torch.isfinite(slope).all()
        assert slope[3] == (0 if activation == "relu" else 1)
        assert torch.equal(slope[[1, 5]], torch.tensor([0.0, 2.0], dtype=dtype))
        if activation != "relu":
            (second,) = torch.autograd.grad(slope.sum(), bias)
            assert torch.isfinite(second).all()
    x = torch.full((2, 7), float("nan"))
    assert functional.layer_norm(x, 7, activation=activation).isnan().all()


def test_second_derivatives():
    x, residual, weight = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True)
        for shape in ((3, 6), (3, 6), (6,))
    )
    for activation in (None, "silu", "gelu", "gelu_tanh"):

        def function(x, residual, weight, activation=activation):
            return functional.rms_norm(x, 6, weight, residual=residual, activation=activation)

        assert torch.autograd.gradcheck(function, (x, residual, weight))
        assert torch.autograd.gradgradcheck(function, (x, residual, weight))
