"""Second and directional derivatives of the specification, by central differences in longdouble."""

import dataclasses

import numpy as np
from keras import ops

import truenorm.ops
from cases import EPSILON, Case
from truenorm.core import batch, reference

STEP = np.longdouble(1e-6)


@dataclasses.dataclass(frozen=True)
class Batch(Case):
    """Batch normalization as it trains; over devices, of which there is one, in two halves."""

    over_devices: bool = False

    def call(self, x, gamma, beta, mask=None):
        """The same as of other cases, which `truenorm.ops` has no function for."""
        options = {"axis": self.partition["axis"], "epsilon": EPSILON}
        call, *given, _ = truenorm.ops.prepared(self.kind, x, gamma, beta, mask, **options)
        gather = (lambda t: t[None]) if self.over_devices else None
        return batch.train(truenorm.ops.FRONT, None, call, *given, gather=gather)[0]


CASES = [
    Case("group last", "group", (2, 3, 2, 4), {"groups": 2}),
    Case("group first", "group", (2, 4, 3), {"groups": 2, "axis": 1}),
    Case("instance, masked steps", "instance", (3, 5, 2), {}, "steps"),
    Case("layer", "layer", (3, 6)),
    Case("layer over samples", "layer", (2, 3, 2, 2), {"axis": [1, 2, 3]}),
    Case("layer, transposed", "layer", (2, 2, 3, 2, 2), {"axis": [1, 3]}),
    Case("rms", "rms", (3, 6)),
    Case("filter response", "filter_response", (2, 3, 2, 2)),
    Batch("batch", "batch", (6, 3)),
    Batch("batch first, masked elements", "batch", (3, 2, 4), {"axis": 1}, "elements"),
    Batch("batch over devices", "batch", (3, 2, 3), over_devices=True),
]


class Point:
    """Random inputs of a case, a direction to move them in, and a cotangent of y."""

    def __init__(self, case: Case, mean: float = 3.0, sd: float = 1.0):
        rng = np.random.default_rng(0)
        self.case = case
        self.mask = case.make_mask(rng)
        count = 3 if case.has_beta else 2
        shapes = [case.shape, case.parameter_shape, case.parameter_shape][:count]
        self.inputs = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
        self.inputs[0] = np.float32(mean) + np.float32(sd) * self.inputs[0]
        self.direction = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
        self.cotangent = rng.standard_normal(case.shape).astype(np.float32)
        full = self.mask
        if full is not None:
            full = full.reshape(full.shape + (1,) * (len(case.shape) - full.ndim))
            full = np.broadcast_to(full, case.shape)
        self.options = {"epsilon": EPSILON, "centered": case.centered, "mask": full}

    def call(self, *inputs):
        """The case through `truenorm.ops`."""
        return self.case.call(*inputs, *[None] * (3 - len(inputs)), mask=self.mask)

    def _along(self, function):
        wide = [one.astype(np.longdouble) for one in self.inputs]
        ahead, behind = (
            function([one + sign * STEP * by for one, by in zip(wide, self.direction, strict=True)])
            for sign in (1, -1)
        )
        return [(a - b) / (2 * STEP) for a, b in zip(ahead, behind, strict=True)]

    def tangent(self):
        """The derivative of y along the direction."""

        def value(inputs):
            x, gamma, *rest = inputs
            beta = rest[0] if rest else None
            return [reference.normalize(x, gamma, beta, self.case.view, **self.options)]

        return self._along(value)[0]

    def gradient(self):
        """The gradient of sum(cotangent * y) in every input."""
        return self._gradient([one.astype(np.longdouble) for one in self.inputs])

    def _gradient(self, inputs):
        x, gamma, *rest = inputs
        beta = rest[0] if rest else None
        cotangent = self.cotangent.astype(np.longdouble)
        found = reference.gradient(x, gamma, beta, cotangent, self.case.view, **self.options)
        return list(found[: len(inputs)])

    def second(self):
        """The derivative of that gradient along the direction: the Hessian times it."""
        return self._along(self._gradient)


def array(value):
    """A float64 array of a tensor or array."""
    return np.asarray(ops.convert_to_numpy(value) if ops.is_tensor(value) else value, np.float64)


def assert_agree(found, expected, atol):
    """Assert that two results, or lists of them, agree."""
    np.testing.assert_allclose(array(found), array(expected), rtol=0, atol=atol)


def assert_close(found, exact):
    """Assert equality to float32 precision, relative to the largest value."""
    found, exact = array(found), array(exact)
    assert found.shape == exact.shape
    assert abs(exact).max() > 1e-3  # a test against zero would prove nothing
    np.testing.assert_allclose(found, exact, rtol=0, atol=2e-5 * max(1, abs(exact).max()))
