"""The forward kernels that add a residual, as jax-triton wants them: first all that they read.

In the kernels themselves a residual comes after what is written, as it may be absent.
"""

import triton
import triton.language as tl

from truenorm.triton import held, looped_forward


@triton.jit
def held_sum(
    x, gamma, beta, residual, y, statistics, total,
    items, varying, alike, every, sets,
    EPSILON: tl.constexpr, CENTERED: tl.constexpr, ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr, SETS: tl.constexpr,
    ITEMS: tl.constexpr, VARYING: tl.constexpr, ALIKE: tl.constexpr,
    WIDE: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """`held_forward` of x + residual."""
    held.held_forward(
        x, gamma, beta, y, statistics, residual, total, items, varying, alike, every, sets,
        EPSILON, CENTERED, ACTIVATION, ROWS, SETS, ITEMS, VARYING, ALIKE, WIDE, COMPUTE,
    )  # fmt: skip


@triton.jit
def looped_sum(
    x, gamma, beta, residual, y, statistics, total,
    rows, bundled, width, chunk, stretch, alike, every, sets,
    EPSILON: tl.constexpr, CENTERED: tl.constexpr, ACTIVATION: tl.constexpr,
    ALONG_ROWS: tl.constexpr, UNIFORM: tl.constexpr,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr, HEIGHT: tl.constexpr,
    EXACT: tl.constexpr, WIDE: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """`looped_forward` of x + residual."""
    looped_forward.looped_forward(
        x, gamma, beta, y, statistics, residual, total,
        rows, bundled, width, chunk, stretch, alike, every, sets,
        EPSILON, CENTERED, ACTIVATION, ALONG_ROWS, UNIFORM,
        GROUPS, WIDTH, HEIGHT, EXACT, WIDE, COMPUTE,
    )  # fmt: skip
