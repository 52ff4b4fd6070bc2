"""What the kernels for GPUs share.

    y = gamma * (x - mean) / sqrt(variance + epsilon) + beta

Two families, of a pass forward and one backward each: those of `held.py` have whole groups in
registers and read x once; those of `looped_forward.py` and `looped_backward.py` read it in tiles
and twice, the second time mostly from the cache. A sample, or a batch, that would have few programs
is split: then the first launch leaves sums of each chunk, the second combines them, the third
applies the result. No program waits for another, and nothing is added by atomic operations: results
have the same bits from run to run. `plan.py` chooses, and says what the numbers mean.

The mean is in two parts, a pivot and the rest, and the variance is of deviations from a pivot that
is near the mean: what a chunk's first tile says of it, and where that is off by more than two
standard deviations, the better one of a second pass. Squares are divided by their number before
they are added, so that they do not overflow.

With a residual, x + residual, rounded to the dtype of x, is normalized and written to `total`;
where samples are split, the framework adds before.
Parameters that are not there are passed as None, and so are results that nobody wants. Every kernel
has first what it reads, then what it writes, then what only PyTorch's operations have: jax-triton
wants them so.
"""

import triton
import triton.language as tl


@triton.jit
def read(pointer, residual, place, inside, COMPUTE: tl.constexpr):
    """x, or x + residual as it is in the dtype of x, and zero outside."""
    x = tl.load(pointer + place, mask=inside, other=0.0)
    if residual is not None:
        more = tl.load(residual + place, mask=inside, other=0.0)
        x = (x.to(COMPUTE) + more.to(COMPUTE)).to(x.dtype)
    return x.to(COMPUTE)


@triton.jit
def inverse_deviation(variance, EPSILON: tl.constexpr):
    """1 / sqrt(variance + epsilon)."""
    return 1.0 / tl.sqrt(variance + EPSILON)


@triton.jit
def _sigmoid(u):
    return 1.0 / (1.0 + tl.exp(-u))


@triton.jit
def _tanh_argument(u):
    """Twice the argument of gelu's tanh, and its derivative; (1 + tanh(v)) / 2 is sigmoid(2 v).

    Beyond 20 the sigmoid is zero or one anyway, and the cube could overflow.
    """
    u = tl.where(u > 20.0, 20.0, tl.where(u < -20.0, -20.0, u))
    v = 1.5957691216057308 * (u + 0.044715 * u * u * u)
    return v, 1.5957691216057308 * (1.0 + 0.134145 * u * u)


@triton.jit
def activate(u, ACTIVATION: tl.constexpr):
    """The activation of this name, as `core/activation.py` has it."""
    if ACTIVATION == "relu":
        u = tl.where(u < 0.0, 0.0, u)  # NaN stays
    elif ACTIVATION == "silu":
        u = u * _sigmoid(u)
    elif ACTIVATION == "gelu":
        u = 0.5 * u * (1.0 + tl.erf(u * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        v, _ = _tanh_argument(u)
        u = u * _sigmoid(v)
    return u


@triton.jit
def slope(u, ACTIVATION: tl.constexpr):
    """The derivative of the activation."""
    if ACTIVATION == "relu":
        d = tl.where(u <= 0.0, 0.0, 1.0)
    elif ACTIVATION == "silu":
        s = _sigmoid(u)
        d = s * (1.0 + u * (1.0 - s))
    elif ACTIVATION == "gelu":
        d = 0.5 * (1.0 + tl.erf(u * 0.7071067811865476))
        d = d + u * 0.3989422804014327 * tl.exp(-0.5 * u * u)
    else:
        v, dv = _tanh_argument(u)
        s = _sigmoid(v)
        d = s + u * s * (1.0 - s) * dv
    return d
