"""The promise on numbers, as checks against `truenorm.core.reference` in a wider precision.

With s = max(1, |gamma * xhat| + |beta|), for |mean| / sd up to 1e4:

- y in float32 within 2e-6 * s, in float64 within 1e-14 * s, in half precision within one unit in
  the last place of the rounded result plus 2e-6 * s;
- dx within 4e-6 * max(|gamma * dy|) / sqrt(variance + epsilon) of its group;
- dgamma and dbeta within 4e-6 of the L2 norm of the terms that they sum; where gamma is as large as
  x, so that dgamma is dy * xhat, within 4e-6 * |dy| * max(1, |xhat|).
"""

import numpy as np

from cases import EPSILON, Case
from truenorm.core import reference

FORWARD = {"float32": 2e-6, "float16": 2e-6, "bfloat16": 2e-6, "float64": 1e-14}
BACKWARD = {"float32": 4e-6, "float64": 2e-14}
# Bits of the significand, for one unit in the last place.
DIGITS = {"float16": 11, "bfloat16": 8}


def last_place(y, dtype):
    """The unit in the last place of y in half precision; 0 for wider dtypes."""
    if dtype not in DIGITS:
        return 0.0
    exponent = np.floor(np.log2(np.maximum(abs(y), 2.0**-14)))
    return 2.0 ** (exponent - DIGITS[dtype] + 1)


class Expected:
    """The specified result of a case for inputs as they are after rounding to their dtype."""

    def __init__(self, case: Case, x, gamma, beta, mask=None, dtype="float32"):
        self.case, self.dtype = case, dtype
        wide = np.longdouble if dtype == "float64" else np.float64
        self.view = case.view
        self.x = np.asarray(x).astype(wide)
        self.gamma = np.asarray(gamma).astype(wide)
        self.beta = np.asarray(beta).astype(wide) if case.has_beta else None
        if mask is not None:
            mask = mask.reshape(mask.shape + (1,) * (self.x.ndim - mask.ndim))
            mask = np.broadcast_to(mask, self.x.shape)
        self.statistics = {"centered": case.centered, "mask": mask}
        self.options = {"epsilon": EPSILON, **self.statistics}
        self.y = reference.normalize(self.x, self.gamma, self.beta, self.view, **self.options)

    def scale(self):
        """S, of which the promise on y is a share."""
        scaled = reference.normalize(self.x, self.gamma, None, self.view, **self.options)
        offset = 0
        if self.beta is not None:
            zero = np.zeros_like(self.gamma)
            offset = reference.normalize(self.x, zero, self.beta, self.view, **self.options)
        return np.maximum(1, abs(scaled) + abs(offset))

    def forward_error(self, y) -> float:
        """The largest error of y, where 1 is what the promise allows."""
        if self.y.size == 0:
            return 0.0
        allowed = FORWARD[self.dtype] * self.scale() + last_place(self.y, self.dtype)
        return float(np.max(abs(np.asarray(y).astype(self.y.dtype) - self.y) / allowed))

    def gradient_errors(self, cotangent, dx, dgamma, dbeta=None) -> dict[str, float]:
        """The largest error of each gradient, where 1 is what the promise allows."""
        if self.y.size == 0:
            return {}
        cotangent = np.asarray(cotangent).astype(self.x.dtype)
        expected = reference.gradient(
            self.x, self.gamma, self.beta, cotangent, self.view, **self.options
        )
        unit, tiny = BACKWARD[self.dtype], np.finfo(self.x.dtype).tiny
        xhat, rstd, _, _ = reference.statistics(self.x, self.view, EPSILON, **self.statistics)
        scaled = reference.parameter(self.gamma, 1, self.x, self.view) * cotangent
        g, reduced = reference.expand(abs(scaled), self.view)
        allowed = np.broadcast_to(unit * g.max(reduced, keepdims=True) * rstd + tiny, g.shape)
        difference = reference.expand(abs(dx - expected[0]), self.view)[0]
        errors = {"dx": np.max(difference / allowed)}
        xhat = reference.collapse(xhat, self.x.shape, self.view)
        # A sum of one term has the error of xhat itself, as y has it.
        terms = cotangent * (xhat if xhat.size > self.gamma.size else np.maximum(1, abs(xhat)))
        for name, found, exact, summed in (
            ("dgamma", dgamma, expected[1], terms),
            ("dbeta", dbeta, expected[2], cotangent),
        ):
            if found is not None:
                norm = np.sqrt(reference.sum_to_parameter(summed**2, self.gamma, self.view))
                errors[name] = np.max(abs(found - exact) / (unit * norm + tiny))
        return {name: float(error) for name, error in errors.items()}
