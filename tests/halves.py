"""The halves of a normalization at one point, what they should give, and how far they may err.

Exact values are in float64 (longdouble for float64). The bounds are those that the promise implies:
what errors of the statistics may do to y, y itself, and each gradient.
"""

import ml_dtypes
import numpy as np

from cases import EPSILON, Case
from promise import BACKWARD, DIGITS, FORWARD
from truenorm.core import reference
from truenorm.core.call import Call

DTYPES = {"float32": np.float32, "float64": np.float64, "float16": np.float16,
          "bfloat16": ml_dtypes.bfloat16}  # fmt: skip


class Point:
    """A case at random arrays, with the exact statistics of x and others to apply."""

    def __init__(self, case: Case, dtype="float32", mean=5.0, sd=1.0):
        rng = np.random.default_rng(0)
        view = case.view.vary_over(0) if case.per_sample else case.view
        self.case, self.dtype, self.rng = case, dtype, rng
        self.call = Call(view, case.centered, EPSILON)
        self.compute = np.float64 if dtype == "float64" else np.float32
        self.wide = np.longdouble if dtype == "float64" else np.float64
        self.x, self.dy = ((mean + sd * rng.standard_normal(case.shape)).astype(DTYPES[dtype]),
                           rng.standard_normal(case.shape).astype(DTYPES[dtype]))  # fmt: skip
        self.gamma, self.beta = rng.standard_normal((2, *case.parameter_shape)).astype(self.compute)
        self.mask = case.make_mask(rng)
        x, self.reduced = reference.expand(self.x.astype(self.wide), case.view)
        self.real = np.ones(x.shape, bool)
        if self.mask is not None:
            mask = self.mask.reshape(self.mask.shape + (1,) * (self.x.ndim - self.mask.ndim))
            self.real = reference.expand(np.broadcast_to(mask, self.x.shape), case.view)[0]
        self.groups = tuple(1 if i in self.reduced else n for i, n in enumerate(x.shape))
        self.expanded = x
        self.count = self.total(np.ones(x.shape))
        n = np.maximum(self.count, 1)
        self.mean = self.total(x) / n * case.centered
        # Long sums lose digits here too.
        self.mean = self.mean + self.total(x - self.mean) / n * case.centered
        self.variance = self.total((x - self.mean) ** 2) / n

    def total(self, terms):
        """The sum over the real elements of each group."""
        return np.where(self.real, terms, 0).sum(self.reduced, keepdims=True)

    def other(self):
        """Statistics that are not those of x, in the compute dtype, and flat."""
        size = int(np.prod(self.groups))
        mean, rest = self.rng.standard_normal((2, size)) * [[1], [1e-4]] * self.case.centered
        variance, count = self.rng.uniform(0.5, 2, size), np.full(size, self.count.max(initial=0))
        return [one.astype(self.compute) for one in (5 * (mean != 0) + mean, rest, variance, count)]

    def parameters(self, *tensors):
        """Gamma, and beta where there is one, of the tensors that begin with them; the others."""
        return (
            (*tensors[:2], tensors[2:]) if self.case.has_beta else (tensors[0], None, tensors[1:])
        )

    def check_statistics(self, statistics):
        """Those of `moments`, as arrays."""
        for one in statistics:
            assert one.shape == (self.mean.size,)
            assert one.dtype == self.compute
        found = [one.astype(self.wide).reshape(self.groups) for one in statistics]
        unit, spread = FORWARD[self.dtype], np.sqrt(self.variance + EPSILON)
        assert (abs(found[0] + found[1] - self.mean) <= unit * spread).all()
        assert (abs(found[2] - self.variance) <= 2 * unit * spread**2).all()
        np.testing.assert_array_equal(found[3], self.count)

    def check_gradient_of_statistics(self, dx, drest, dvariance):
        """dx of these cotangents: the mean is a constant, and has its derivative in the rest."""
        drest, dvariance = (
            one.astype(self.wide).reshape(self.groups) for one in (drest, dvariance)
        )
        n = np.maximum(self.count, 1)
        terms = (2 * dvariance / n * (self.expanded - self.mean), drest / n * self.case.centered)
        exact = np.where(self.real, sum(terms), 0)
        size = sum(abs(one) for one in terms).max(self.reduced, keepdims=True, initial=0)
        allowed = self._rounded(BACKWARD.get(self.dtype, 4e-6) * size, exact)
        found = reference.expand(dx.astype(self.wide), self.case.view)[0]
        assert (abs(found - exact) <= allowed).all()

    def check_y_of(self, given, y, dx, gradients):
        """y of the statistics that `other` gave, and the gradients of gamma, of beta where there is
        one, of the variance, and where the call is centered of the mean and its rest.
        """
        mean, rest, variance, _ = given
        case, wide, dtype = self.case, self.wide, self.dtype
        one_mean = (mean.astype(wide) + rest).reshape(self.groups)
        rstd = (1 / np.sqrt(variance.astype(wide) + EPSILON)).reshape(self.groups)
        xhat = reference.collapse((self.expanded - one_mean) * rstd, case.shape, case.view)
        scale = reference.parameter(self.gamma.astype(wide), 1, xhat, case.view)
        shift = reference.parameter(self.beta.astype(wide) * case.has_beta, 0, xhat, case.view)
        exact, dy = scale * xhat + shift, self.dy.astype(wide)
        allowed = FORWARD[dtype] * np.maximum(1, abs(scale * xhat) + abs(shift))
        if dtype in DIGITS:
            size = np.floor(np.log2(np.maximum(abs(exact), 2.0**-14)))
            allowed += 2.0 ** (size - DIGITS[dtype] + 1)
        assert (abs(y.astype(wide) - exact) <= allowed).all()

        unit = BACKWARD.get(dtype, 4e-6)
        g = reference.expand(scale * dy, case.view)[0]
        exact = g * rstd
        allowed = self._rounded(unit * abs(exact).max(self.reduced, keepdims=True), exact)
        assert (abs(reference.expand(dx.astype(wide), case.view)[0] - exact) <= allowed).all()

        def to_parameter(terms):
            return reference.sum_to_parameter(terms, self.gamma, case.view)

        def to_groups(terms):
            return terms.sum(self.reduced).ravel()

        # A sum of one term has the error of xhat itself, as y has it.
        size = np.maximum(1, abs(xhat))
        expected = [(to_parameter, dy * xhat, dy * size)]
        if case.has_beta:
            expected.append((to_parameter, dy, dy))
        size = reference.expand(size, case.view)[0]
        terms = -0.5 * rstd**2 * g * reference.expand(xhat, case.view)[0]
        expected.append((to_groups, terms, 0.5 * rstd**2 * g * size))
        if case.centered:
            expected += 2 * [(to_groups, -rstd * g, rstd * g)]
        for one, (total, terms, size) in zip(gradients, expected, strict=True):
            assert one.dtype == self.compute
            assert (abs(one - total(terms)) <= unit * np.sqrt(total(size**2))).all()

    def _rounded(self, allowed, exact):
        """The same for a result that is rounded to half precision."""
        if self.dtype not in DIGITS:
            return allowed
        return allowed + abs(exact) * 2.0 ** -DIGITS[self.dtype] + 2.0**-24
