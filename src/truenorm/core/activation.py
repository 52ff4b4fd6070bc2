"""What can stand around a normalization: a residual added before it, an activation after it.

    s = x + residual        y = activation(normalization(s))

The formulas are written once, in the functions of a front's arrays, for float32 and float64. NaN
stays NaN, and no intermediate of a finite number, or of its derivative, is Inf.
"""

import math
from typing import Any

Tensor = Any

NAMES = ("relu", "silu", "gelu", "gelu_tanh")
HALF = ("float16", "bfloat16")


def activate(arrays: Any, name: str | None, y: Tensor, masked: bool = False) -> Tensor:
    """The activation of this name, element by element; y itself where there is none.

    relu is max(y, 0), with the derivative 0 at 0; silu is y * sigmoid(y) (Elfwing et al., 2017,
    arXiv:1702.03118); gelu is y times the normal distribution at y, and gelu_tanh its approximation
    with tanh (both Hendrycks and Gimpel, 2016, arXiv:1606.08415).

    Where a mask hides NaN and Inf, the derivative there is zero: what hides y, too, hands down a
    cotangent of zero, and 0 * NaN is NaN.
    """
    if name is None:
        return y
    if masked:
        finite = arrays.isfinite(y)
        there = activate(arrays, name, arrays.where(finite, y, 0.0))
        return arrays.where(finite, there, activate(arrays, name, arrays.stop_gradient(y)))
    if name == "relu":
        return arrays.where(y <= 0.0, 0.0, y)  # not y > 0, which makes 0 of NaN
    if name == "silu":
        return y * arrays.sigmoid(y)
    if name == "gelu":
        return 0.5 * y * (1.0 + arrays.erf(y * math.sqrt(0.5)))
    # (1 + tanh(u)) / 2 is sigmoid(2 u). Beyond 30 that is 0 or 1, and the cube would overflow.
    z = arrays.where(y > 30.0, 30.0, arrays.where(y < -30.0, -30.0, y))
    return y * arrays.sigmoid(math.sqrt(8 / math.pi) * (z + 0.044715 * z * z * z))


def add(arrays: Any, x: Tensor, residual: Tensor) -> Tensor:
    """X + residual, rounded to their dtype; in half precision frameworks add in float32."""
    s = x + residual
    if arrays.dtype(s) not in HALF:
        return s
    if hasattr(arrays, "rounded"):
        return arrays.rounded(s)
    # XLA drops a rounding whose result is made wider again, unless something stands between.
    return arrays.where(s == s, s, float("nan"))
