"""The native kernels give the same bits through PyTorch and through JAX."""

import numpy as np
import pytest
import torch
from test_numbers_of_torch import call as torch_call

from cases import CASES, EPSILON
from truenorm import native

jax = pytest.importorskip("jax")

REASON = native.unavailable("torch") or native.unavailable("jax")
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))


def jax_call(case, x, scale, bias):
    import truenorm.jax

    function = getattr(truenorm.jax, f"{case.function}_norm")
    options = {key: value for key, value in case.partition.items() if key != "groups"}
    if case.function == "group":
        options["num_groups"] = case.partition["groups"]
    parameters = (scale, bias) if case.has_beta else (scale,)
    return function(x, *parameters, epsilon=EPSILON, implementation="native", **options)


@pytest.mark.parametrize("case", [one for one in CASES if one.mask is None], ids=str)
def test_forward_and_backward(case):
    rng = np.random.default_rng(0)
    x, cotangent = rng.normal(3, 1, (2, *case.shape)).astype("float32")
    weight, bias = rng.standard_normal((2, *case.parameter_shape)).astype("float32")
    arrays = [x, weight, bias] if case.has_beta else [x, weight]

    tensors = [torch.from_numpy(one.copy()).requires_grad_() for one in arrays]
    y = torch_call(case, *tensors[:2], *(tensors[2:] or [None]), implementation="native")
    gradients = torch.autograd.grad(y, tensors, torch.from_numpy(cotangent))

    def function(x, scale, bias=None):
        return jax_call(case, x, scale, bias)

    other, pullback = jax.vjp(function, *arrays)
    np.testing.assert_array_equal(y.detach().numpy(), other)
    for one, two in zip(gradients, pullback(cotangent), strict=True):
        np.testing.assert_array_equal(one.numpy(), two)
