"""A case computed by the kernels for GPUs, and its errors: in the interpreter, or on a GPU."""

import numpy as np
import torch

from cases import EPSILON, Case
from promise import BACKWARD, DIGITS, FORWARD, Expected
from truenorm.core import reference
from truenorm.core.call import Call
from truenorm.triton import torch as engine

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
# One for each way to read, and each place of gamma and beta, at sizes that tiles do not divide.
WAYS = {
    "rows": Case("", "layer", (37, 20)),
    "rows in groups": Case("", "group", (3, 10, 14, 13), {"groups": 5, "axis": 1}),
    "rows, per sample": Case("", "layer", (4, 5, 24), {}, None, True),
    "pixels": Case("", "layer", (2, 96, 6, 7), {"axis": 1}),
    "pixels, per sample": Case("", "layer", (2, 12, 6, 7), {"axis": 1}, None, True),
    "columns": Case("", "group", (3, 14, 13, 12), {"groups": 4}),
    "columns, an odd width": Case("", "group", (3, 14, 13, 15), {"groups": 3}),
    "columns, per sample": Case("", "group", (3, 7, 5, 6), {"groups": 2}, None, True),
    "columns, one group": Case("", "group", (3, 14, 13, 10), {"groups": 1}),
    "columns, several pixels a channel": Case("", "group", (2, 5, 12, 7), {"groups": 3, "axis": 2}),
    "many channels before pixels": Case("", "layer", (2, 700, 5), {"axis": 1}),
    "wide rows": Case("", "layer", (5, 8200)),
    "wide rows in groups": Case("", "group", (2, 6, 83, 97), {"groups": 2, "axis": 1}),
    "wide rows of one channel": Case("", "instance", (2, 3, 91, 93), {"axis": 1}),
    "rms": Case("", "rms", (37, 20)),
    "rms, wide rows": Case("", "rms", (3, 8200)),
    "filter response": Case("", "filter_response", (3, 14, 13, 5)),
}
# The same of batch normalization, whose samples share statistics.
BATCH = {
    "samples": Case("", "batch", (37, 20)),
    "last": Case("", "batch", (3, 17, 19, 12)),
    "last, many": Case("", "batch", (5, 3, 7, 67)),
    "first": Case("", "batch", (7, 6, 5, 9), {"axis": 1}),
    "first, long": Case("", "batch", (2, 2, 1501), {"axis": 1}),
    "first, one sample": Case("", "batch", (1, 5, 40), {"axis": 1}),
    "between": Case("", "batch", (3, 4, 5, 6), {"axis": 2}),
    "two axes": Case("", "batch", (6, 5, 4, 3), {"axis": (1, 3)}),
}


class Run:
    """One case computed by the kernels: y, the sum and the gradients, and what they should be."""

    def __init__(
        self, case, dtype="float32", mean=5.0, sd=1.0, act=None, residual=False, device="cpu"
    ):
        rng = np.random.default_rng(0)
        view = case.view.vary_over(0) if case.per_sample else case.view
        self.call = Call(view, case.centered, EPSILON, act, residual)
        self.case, self.dtype, self.act = case, dtype, act
        compute = torch.float64 if dtype == "float64" else torch.float32

        def draw(mean=0.0, sd=1.0, shape=case.shape, to=DTYPES[dtype]):
            drawn = torch.tensor(mean + sd * rng.standard_normal(shape)).to(device, to)
            return drawn.requires_grad_()

        self.x, self.dy = draw(mean, sd), draw()
        self.gamma, self.beta = (draw(shape=case.parameter_shape, to=compute) for _ in range(2))
        self.residual, self.ds = (draw(sd=sd) for _ in range(2)) if residual else (None, None)

    def compute(self):
        """Run it forward and backward, or return the reason against it."""
        beta = self.beta if self.case.has_beta else None
        more = () if self.residual is None else (self.residual,)
        found = engine.normalize(self.call, self.x, self.gamma, beta, None, None, *more)
        if isinstance(found, str):
            return found
        self.y, self.s = found if more else (found, None)
        pairs = [(self.y, self.dy)] + ([(self.s, self.ds)] if more else [])
        torch.autograd.backward(*zip(*((y, dy.detach()) for y, dy in pairs), strict=True))
        return None

    def errors(self):
        """The largest errors, where 1 is what the promise allows; in half precision of y alone."""
        assert self.compute() is None
        x = self.x
        if self.residual is not None:
            x = (self.x.double() + self.residual.double()).to(self.x.dtype)
            if self.dtype == "bfloat16" and x.is_cpu:  # which the interpreter cuts off
                torch.testing.assert_close(self.s, x, rtol=2.0**-7, atol=0)
                x = self.s
            assert torch.equal(self.s, x)
            assert torch.equal(self.residual.grad, self.x.grad)
        assert self.y.dtype is self.x.dtype
        expected = Expected(
            self.case, array(x), array(self.gamma), array(self.beta), dtype=self.dtype
        )
        dx = array(self.x.grad) - (0 if self.ds is None else array(self.ds))
        dbeta = array(self.beta.grad) if self.case.has_beta else None
        gradients = dx, array(self.gamma.grad), dbeta
        return errors_of(expected, self.act, array(self.dy), array(self.y), gradients)


def errors_of(expected, act, dy, y, gradients):
    """The largest errors of y and, but in half precision, of the gradients: 1 is the promise's."""
    dtype, u = expected.dtype, expected.y
    dy = dy.astype(u.dtype)
    largest = np.max(np.maximum(1, abs(u)), initial=1)
    wanted, slope = reference.activation(act, u)
    found = {"y": expected.forward_error(y)}
    if act is not None:
        allowed = FORWARD[dtype] * 1.13 * largest
        if dtype in DIGITS:
            size = np.floor(np.log2(np.maximum(abs(wanted), 2.0**-14)))
            allowed = allowed + 2.0 ** (size - DIGITS[dtype] + 1)
        found["y"] = np.max(abs(y - wanted) / allowed, initial=0)
    if dtype in BACKWARD:
        scale = 1
        if act is not None:
            # Of the terms before the activation, and what an error of u does: |a'| and |a''|.
            scale = 1.13 + 0.8 * largest
            for cotangent, sign in ((dy * slope, -1), (dy, 1)):
                exact = reference.gradient(
                    expected.x, expected.gamma, expected.beta, cotangent, expected.view,
                    **expected.options,
                )  # fmt: skip
                gradients = [
                    None if a is None else a + sign * b
                    for a, b in zip(gradients, exact, strict=True)
                ]
        errors = expected.gradient_errors(dy, *gradients)
        found |= {name: one / scale for name, one in errors.items()}
    return found


def array(t):
    return t.detach().double().cpu().numpy()
