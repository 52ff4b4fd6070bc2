"""The normalizations by name: one row for each, which everything else reads.

A row says how a normalization's view is made from its arguments, which statistic it takes, what it
learns, what each framework calls it and adds to the variance, and who described it. The layers and
functions of the fronts compute what the rows say; `explain`, `compare`, `bench`, the command line,
the tables of the documents and the tests go through them.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from truenorm.core.view import (
    View,
    axes_view,
    canonical_axes,
    channel_view,
    check_groups,
    group_view,
)

Shape = Sequence[Any]
Axis = int | Sequence[int]


@dataclasses.dataclass(frozen=True, eq=False)
class Kind:
    """One normalization.

    Attributes:
        name: short, as the commands take it.
        title: as a heading has it.
        keras, torch, flax: its class in `keras.layers` or truenorm, in `torch.nn` or
            truenorm.torch, in `flax.nnx` or truenorm.flax; None where there is none.
        partition: which axes share statistics, as a function of the input's shape, the axis, the
            groups, and the first axis that may be named: 1 where axis 0 holds samples that no
            layer may mix, else 0.
        axis_is: what the argument `axis` names: "channels", which are one axis, "channel axes",
            which may be several, or "statistics".
        axis: its default; None is all axes but the first and the last.
        centered: whether the mean is subtracted; else the statistic is the root mean square.
        epsilon: each front's default; None is the dtype's own, the smallest x with 1 + x > 1.
        learned: ("gamma", "beta"), or those of the two that there are.
        optional: whether a layer may do without them.
        groups: whether the number of groups is an argument.
        paper: authors, year and where to find it.
        sentence: what it does.
    """

    name: str
    title: str
    keras: str
    torch: str | None
    flax: str | None
    partition: Callable[[Shape, Axis, int | None, int], View]
    axis_is: str
    axis: int | None
    centered: bool
    epsilon: Mapping[str, float | None]
    learned: tuple[str, ...]
    optional: bool
    groups: bool
    paper: str
    sentence: str

    @property
    def function(self) -> str:
        """Its function of Keras' tensors, as truenorm.ops and the configs of models have it."""
        return self.title.lower().replace(" ", "_")

    def default_axis(self, rank: int) -> Axis:
        """The axis, or the axes, of an input of this rank where none is given."""
        return list(range(1, rank - 1)) if self.axis is None else self.axis

    def view(self, shape: Shape, axis: Axis, groups: int | None = None, first: int = 0) -> View:
        """Which elements of an input of this shape share statistics; sizes may be None.

        Raises:
            ValueError: an axis does not exist or is refused, groups do not divide the channels, or
                the axes leave no axis, or several, for the channels.
            TypeError: an axis is not an integer.
        """
        return self.partition(shape, axis, groups, first)


def _groups(shape: Shape, axis: Axis, groups: int | None, first: int) -> View:
    (channel,) = canonical_axes(axis, len(shape), first)
    count = -1 if groups is None else groups
    check_groups(count, shape[channel], channel)
    return group_view(len(shape), channel, count)


def _channels(shape: Shape, axis: Axis, groups: int | None, first: int) -> View:
    (channel,) = canonical_axes(axis, len(shape), first)
    return group_view(len(shape), channel, -1)


def _axes(shape: Shape, axis: Axis, groups: int | None, first: int) -> View:
    return axes_view(len(shape), canonical_axes(axis, len(shape), first))


def _all_but_channels(shape: Shape, axis: Axis, groups: int | None, first: int) -> View:
    return channel_view(len(shape), axis, first)


def _batch(shape: Shape, axis: Axis, groups: int | None, first: int) -> View:
    channels = canonical_axes(axis, len(shape), first)
    others = [one for one in range(len(shape)) if one not in channels]
    return axes_view(len(shape), others, channels)


# Rows: name, title, classes; partition and axis; statistic and epsilon; what is learned; the paper.
KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "batch", "Batch normalization", "BatchNormalization", "BatchNorm2d", "BatchNorm",
            _batch, "channel axes", -1,
            True, {"keras": 1e-3, "torch": 1e-5, "flax": 1e-5},
            ("gamma", "beta"), True, False,
            "Ioffe and Szegedy, 2015, arXiv:1502.03167",
            "Each channel over the samples of a batch.",
        ),
        Kind(
            "layer", "Layer normalization", "LayerNormalization", "LayerNorm", "LayerNorm",
            _axes, "statistics", -1,
            True, {"keras": 1e-3, "torch": 1e-5, "flax": 1e-6},
            ("gamma", "beta"), True, False,
            "Ba, Kiros and Hinton, 2016, arXiv:1607.06450",
            "The given axes, separately at each place of the others.",
        ),
        Kind(
            "instance", "Instance normalization", "InstanceNormalization", "InstanceNorm2d",
            "InstanceNorm",
            _channels, "channels", -1,
            True, {"keras": 1e-3, "torch": 1e-5, "flax": 1e-6},
            ("gamma", "beta"), True, False,
            "Ulyanov, Vedaldi and Lempitsky, 2016, arXiv:1607.08022",
            "Each channel of each sample.",
        ),
        Kind(
            "group", "Group normalization", "GroupNormalization", "GroupNorm", "GroupNorm",
            _groups, "channels", -1,
            True, {"keras": 1e-3, "torch": 1e-5, "flax": 1e-6},
            ("gamma", "beta"), True, True,
            "Wu and He, 2018, arXiv:1803.08494",
            "Each group of neighbouring channels of each sample.",
        ),
        Kind(
            "rms", "RMS normalization", "RMSNormalization", "RMSNorm", "RMSNorm",
            _axes, "statistics", -1,
            False, {"keras": 1e-6, "torch": None, "flax": 1e-6},
            ("gamma",), True, False,
            "Zhang and Sennrich, 2019, arXiv:1910.07467",
            "The given axes by their root mean square, separately at each place of the others.",
        ),
        Kind(
            "frn", "Filter response normalization", "FilterResponseNormalization",
            "FilterResponseNorm", None,
            _all_but_channels, "statistics", None,
            False, {"keras": 1e-6, "torch": 1e-6},
            ("gamma", "beta"), False, False,
            "Singh and Krishnan, 2019, arXiv:1911.09737",
            "Each channel of each sample by its root mean square.",
        ),
    )
}  # fmt: skip
