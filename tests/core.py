"""The native core called from NumPy through its C interface."""

import ctypes

import numpy as np

from truenorm.native.library import load
from truenorm.native.recipe import recipe

CENTERED, GIVEN = 1, 2
DTYPES = {"float32": 0, "float64": 1, "bfloat16": 2, "float16": 3}


class Call(ctypes.Structure):
    """truenorm_call of src/native/truenorm.h."""

    _fields_ = (
        ("dtype", ctypes.c_int32),
        ("flags", ctypes.c_int32),
        ("epsilon", ctypes.c_double),
        ("groups", ctypes.c_int64),
        ("rank", ctypes.c_int32),
        ("factor_count", ctypes.c_int32),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("factors", ctypes.POINTER(ctypes.c_int64)),
    )


def array(numbers):
    return (ctypes.c_int64 * len(numbers))(*numbers)


def address(one):
    return None if one is None else ctypes.c_void_p(one.ctypes.data)


def check(status):
    if status:
        raise ValueError(load()[0].truenorm_error().decode())


def misaligned(values, offset):
    """A copy of an array that starts `offset` elements behind a multiple of 64 bytes."""
    values = np.ascontiguousarray(values)
    raw = np.empty(values.nbytes + 128 + offset * values.itemsize, np.uint8)
    start = -raw.ctypes.data % 64 + offset * values.itemsize
    view = raw[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    view[...] = values
    return view


class Core:
    """One normalization, computed by the C++ core on NumPy arrays.

    Arrays begin `offset` elements behind a multiple of 64 bytes.
    """

    def __init__(self, view, shape, dtype, *, epsilon, centered, per_sample=False, offset=0):
        self.recipe = recipe(view.vary_over(0) if per_sample else view)
        self.shape = tuple(shape[axis] for axis in self.recipe.order)
        self.offset = offset
        self.compute = np.dtype("float64" if dtype == "float64" else "float32")
        self.call = Call(
            DTYPES[dtype],
            CENTERED * centered,
            epsilon,
            self.recipe.groups,
            len(shape),
            len(self.recipe.factors) // 4,
            array(self.shape),
            array(self.recipe.factors),
        )
        groups, parameters = ctypes.c_int64(), ctypes.c_int64()
        check(
            load()[0].truenorm_sizes(
                ctypes.byref(self.call), ctypes.byref(groups), ctypes.byref(parameters)
            )
        )
        self.groups = groups.value

    def arrange(self, x):
        return misaligned(x.transpose(self.recipe.order), self.offset)

    def parameter(self, one):
        if one is None:
            return None
        one = np.asarray(one, self.compute)
        return misaligned(one.transpose(self.recipe.parameter_order), self.offset)

    def empty(self, like):
        return misaligned(np.zeros(like.shape, like.dtype), self.offset)

    def moments(self, x):
        """The statistics alone."""
        x = self.arrange(x)
        statistics = np.zeros((self.groups, 3), self.compute)
        check(
            load()[0].truenorm_forward(
                ctypes.byref(self.call), address(x), None, None, None, address(statistics), None
            )
        )
        return statistics

    def forward(self, x, gamma, beta, statistics=None):
        x, gamma, beta = self.arrange(x), self.parameter(gamma), self.parameter(beta)
        y = self.empty(x)
        if statistics is None:
            statistics = np.zeros((self.groups, 3), self.compute)
        check(
            load()[0].truenorm_forward(
                ctypes.byref(self.call), address(x), address(gamma), address(beta), address(y),
                address(statistics), None,
            )
        )  # fmt: skip
        return y.transpose(self.recipe.inverse), statistics

    def backward(self, x, gamma, dy, statistics, parameters=True, dstatistics=None):
        x, gamma, dy = self.arrange(x), self.parameter(gamma), self.arrange(dy)
        dx = self.empty(x)
        sums = [self.empty(gamma) if parameters and gamma is not None else None for _ in range(2)]
        check(
            load()[0].truenorm_backward(
                ctypes.byref(self.call), address(x), address(gamma), address(dy),
                address(statistics), address(dx), address(sums[0]), address(sums[1]),
                address(dstatistics), None,
            )
        )  # fmt: skip
        inverse = self.recipe.parameter_inverse
        return dx.transpose(self.recipe.inverse), *(
            None if one is None else one.transpose(inverse) for one in sums
        )
