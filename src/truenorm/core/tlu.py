"""The thresholded linear unit (Singh and Krishnan, 2019, arXiv:1911.09737): max(x, threshold)."""

from collections.abc import Sequence
from typing import Any

from truenorm.core.view import canonical_axes


def sizes(
    shape: Sequence[Any], axis: int, learned: dict[str, Sequence[Any] | None], input: str = "x"
) -> list[Any]:
    """What tau and alpha of shape (C,) are reshaped to, to be broadcast over the other axes.

    Args:
        shape: the input's.
        axis: the channel axis.
        learned: the shapes of tau and alpha by their names; None where there is none.
        input: what the front calls the input.

    Raises:
        ValueError: one has not the size of the channel axis, or there is no such axis.
    """
    (channel,) = canonical_axes(axis, len(shape))
    expected = (shape[channel],)
    for name, given in learned.items():
        if given is not None and tuple(given) != expected:
            raise ValueError(
                f"{name} has the shape {tuple(given)}, but {input} of shape {tuple(shape)} with "
                f"channels in axis {channel} needs {expected}."
            )
    return [size if one == channel else 1 for one, size in enumerate(shape)]


def compute(arrays: Any, x: Any, tau: Any, alpha: Any = None) -> Any:
    """X, or tau (plus alpha * x) where that is larger: tensors of one dtype that broadcast to x's.

    `arrays` are a framework's functions, as in truenorm.arrays.
    """
    threshold = tau if alpha is None else tau + alpha * x
    # Not maximum, which differs between frameworks in its gradient where both are equal; there it
    # is that of x. x != x is NaN, which stays.
    return arrays.where(arrays.logical_or(x >= threshold, x != x), x, threshold)
