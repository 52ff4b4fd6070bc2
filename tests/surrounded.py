"""What a call with an activation or a residual must give, for the tests of every front.

With L and C the largest first and second derivative of the activation, and e what the promise
allows the normalization at an element: its value is within L * e of the exact one, and its slope
within C * e, by which the gradients may differ from what the promise allows them; all of it is
carried through the sums with the signs at their worst.
"""

import dataclasses
import itertools

import ml_dtypes
import numpy as np

from cases import CASES, EPSILON, Case
from promise import BACKWARD, FORWARD, Expected, last_place
from truenorm.core import reference

ACTIVATIONS = (None, "relu", "silu", "gelu", "gelu_tanh")
DTYPES = {
    "float32": np.float32,
    "float64": np.float64,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}
STEEPEST = {None: 1.0, "relu": 1.0, "silu": 1.0999, "gelu": 1.129, "gelu_tanh": 1.1291}
MOST_CURVED = {None: 0.0, "relu": 0.0, "silu": 0.5, "gelu": 0.8, "gelu_tanh": 0.8}
_NAMES = (
    "group first",
    "rms, masked elements",
    "layer, rank 3",
    "group, masked steps",
    "instance last",
    "layer, per sample",
    "filter response",
    "group, an empty group",
    "layer over axis 1",
)
_CHOSEN = [next(case for case in CASES if case.name == name) for name in _NAMES]


@dataclasses.dataclass(frozen=True)
class Trial:
    """One call, with the implementation that is asked for."""

    case: Case
    dtype: str
    activation: str | None
    residual: bool
    implementation: str | None

    def __str__(self) -> str:
        added = "residual" if self.residual else "alone"
        return f"{self.dtype}-{self.activation}-{added}-{self.case}-{self.implementation}"

    def draw(self):
        """x, gamma, beta, residual and mask, and the cotangents of y and of the sum."""
        case, dtype = self.case, DTYPES[self.dtype]
        rng = np.random.default_rng(0)
        x, residual, dy, ds = rng.standard_normal((4, *case.shape))
        x, residual = (x + 3).astype(dtype), residual.astype(dtype)
        wide = np.float64 if dtype is np.float64 else np.float32
        gamma, beta = rng.standard_normal((2, *case.parameter_shape)).astype(wide)
        mask = case.make_mask(rng)
        if self.activation == "relu":  # at its bend either slope is right
            expected = self._expected(x, gamma, beta, residual, mask)
            dy[abs(expected.y) < 2 * FORWARD[self.dtype] * expected.scale()] = 0
        return (
            x,
            gamma,
            beta,
            residual if self.residual else None,
            mask,
            dy.astype(dtype),
            ds.astype(dtype),
        )

    def _sum(self, x, residual):
        return x + residual if self.residual else x  # NumPy rounds it once, in every dtype

    def _expected(self, x, gamma, beta, residual, mask):
        return Expected(self.case, self._sum(x, residual), gamma, beta, mask, self.dtype)

    def check(self, inputs, y, s, gradients):
        """Assert that y, the sum and the gradients in x, gamma, beta and residual are right.

        All are NumPy arrays, or None: the sum without a residual, what has no gradient.
        """
        x, gamma, beta, residual, mask, dy, ds = inputs
        expected = self._expected(x, gamma, beta, residual, mask)
        if self.residual:
            assert s.dtype == x.dtype
            np.testing.assert_array_equal(s, self._sum(x, residual))
        assert y.dtype == x.dtype
        value, slope = reference.activation(self.activation, expected.y)
        wide = value.dtype
        share = FORWARD[self.dtype] * expected.scale()
        allowed = STEEPEST[self.activation] * share + last_place(value, self.dtype)
        assert np.all(abs(y.astype(wide) - value) < allowed)

        dy, ds = dy.astype(wide), ds.astype(wide)
        off = abs(dy) * (MOST_CURVED[self.activation] * share + FORWARD[self.dtype])
        exact = reference.gradient(
            expected.x, expected.gamma, expected.beta, dy * slope, expected.view, **expected.options
        )
        limits = self._limits(expected, dy * slope, off)
        rounding = last_place(exact[0], self.dtype)
        exact = list(exact)
        if self.residual:
            exact[0] = exact[0] + ds
            rounding = rounding + last_place(exact[0], self.dtype) + np.finfo(wide).eps
            rounding = rounding + {"float64": 2.0**-52}.get(self.dtype, 2.0**-23) * abs(exact[0])
            np.testing.assert_array_equal(gradients[3], gradients[0])
        limits[0] = limits[0] + rounding
        for name, found, right, limit in zip(
            ("dx", "dgamma", "dbeta"), gradients, exact, limits, strict=False
        ):
            if found is not None:
                assert np.all(abs(found.astype(wide) - right) < limit), name

    def _limits(self, expected, g, off):
        """How far dx, dgamma and dbeta may be off, where the cotangent g is, by `off`."""
        unit, tiny = BACKWARD.get(self.dtype, BACKWARD["float32"]), np.finfo(g.dtype).tiny
        view, x = expected.view, expected.x
        xhat, rstd, real, count = reference.statistics(x, view, EPSILON, **expected.statistics)
        scale = abs(reference.parameter(expected.gamma, 1, x, view))
        largest, reduced = reference.expand(scale * abs(g), view)
        wrong = reference.expand(scale * off, view)[0]
        n = np.maximum(count, 1)
        spread = abs(xhat) * (wrong * abs(xhat)).sum(reduced, keepdims=True) / n
        if expected.case.centered:
            spread = spread + wrong.sum(reduced, keepdims=True) / n
        dx = rstd * (unit * largest.max(reduced, keepdims=True) + wrong + np.where(real, spread, 0))
        xhat = abs(reference.collapse(xhat, x.shape, view))

        def summed(terms):
            return reference.sum_to_parameter(terms, expected.gamma, view)

        return [
            reference.collapse(dx, x.shape, view) + tiny,
            unit * np.sqrt(summed((g * xhat) ** 2)) + summed(off * xhat) + tiny,
            unit * np.sqrt(summed(g**2)) + summed(off) + tiny,
        ]


def trials() -> list[Trial]:
    """Each dtype with each activation, with a residual and without, by turns on all cases."""
    cases = itertools.cycle(_CHOSEN)
    found = []
    for dtype, activation, residual in itertools.product(DTYPES, ACTIVATIONS, (False, True)):
        if activation is not None or residual:
            for implementation in (None, "plain"):
                found.append(Trial(next(cases), dtype, activation, residual, implementation))
    return found


TRIALS = trials()
