"""`recompute_statistics`: the moving statistics of batch normalization, from the data itself."""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from truenorm.core.errors import InputError
from truenorm.tools.carry.modules import Normalization
from truenorm.tools.statistics.batches import batches, check_data
from truenorm.tools.statistics.found import batch_normalizations
from truenorm.tools.statistics.moments import Array, Moments


@dataclasses.dataclass(frozen=True)
class Recomputed:
    """One batch normalization that has new statistics.

    Attributes:
        name: its name in the model.
        kind: its class.
        count: how many values each channel's statistics are of; the fewest, where a mask differs.
        off: how far the old mean was from the new one in new standard deviations, the largest over
            the channels.
        ratio: the smallest and the largest of the old variances over the new ones, each with
            epsilon.
    """

    name: str
    kind: str
    count: int
    off: float
    ratio: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Report:
    """What `recompute_statistics` did; printed, a table.

    Attributes:
        recomputed: the batch normalizations with new statistics, in the model's order.
        left: names of those that are as they were, and why.
        batches: how many there were.
    """

    recomputed: tuple[Recomputed, ...]
    left: tuple[tuple[str, str], ...]
    batches: int

    def __str__(self) -> str:
        plural = "" if len(self.recomputed) == 1 else "s"
        of = f"{self.batches} batch{'es' * (self.batches != 1)}"
        rows = [("name", "class", "values", "mean was off by", "old variance / new")]
        rows += [
            (one.name, one.kind, str(one.count), f"{one.off:.3g} sd",
             "{:.3g} to {:.3g}".format(*one.ratio))
            for one in self.recomputed
        ]  # fmt: skip
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [f"{len(self.recomputed)} batch normalization{plural} recomputed from {of}"]
        for row in rows if self.recomputed else ():
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            lines.append(f"  {'  '.join(cells)}".rstrip())
        lines += [f"  {name}: left as it was: {why}" for name, why in self.left]
        return "\n".join(lines)

    __repr__ = __str__


def recompute_statistics(model: Any, data: Any, *, layer_by_layer: bool = False) -> Report:
    """Give batch normalizations the mean and variance that their inputs have over the data.

    What training leaves behind is a moving average over the last batches, of activations of
    networks that have changed since; after averaging weights, pruning, or on other data, it
    belongs to no network at all. This computes the statistics of the whole population: "precise
    BatchNorm" of Wu and Johnson, Rethinking "Batch" in BatchNorm, 2021, arXiv:2105.07576. They are
    accumulated in float64, from means and centered squares, and written at the end.

    The model runs in inference mode, without dropout and without gradients; each batch
    normalization takes the statistics of the batch, as in training. Its flags, hooks, gradients
    and parameters are afterwards as they were. What is frozen gets new statistics too, and one
    that occurs in several places those of all places together. Each process sees its own data:
    nothing is exchanged between devices.

    Args:
        model: a model of torch.nn, flax.nnx or Keras, with batch normalizations of the framework
            or of truenorm; changed in place.
        data: an iterable of batches, for instance a list, a DataLoader or a tf.data.Dataset. A
            batch is an array (N, ...), a tuple or list whose first is the array, or a dict of
            keyword arguments; for Keras also what the model takes.
        layer_by_layer: reads the data once for each batch normalization, in the order of their
            first call; those before already use their new statistics, as they will in inference.

    Returns:
        A report; printed, a table of how far the old statistics were off. The variance that is
        stored is what the framework stores: of torch the unbiased one (over count - 1), of Keras
        and flax the biased one. num_batches_tracked of torch stays, unless it is 0 and becomes the
        number of batches.

    Raises:
        InputError: a ValueError. The model has no batch normalization, none with statistics, one
            that is not built, or calls none; the data are empty, one array, or can be read only
            once with layer_by_layer=True; an input has values that are not finite, or is traced.
        TypeError: the model is of no known framework; the data or one of its batches are none.
            After any exception, also one of the model, nothing is changed.
    """
    framework, found = batch_normalizations(model)
    check_data(data, again=layer_by_layer)
    with_statistics = [one for one in found if one.parameter("mean") is not None]
    left = [(one.name, "it keeps no statistics") for one in found if one not in with_statistics]
    if not with_statistics:
        raise InputError(
            f"none of the model's batch normalizations keep statistics: "
            f"{', '.join(name for name, _ in left)}; make them with track_running_stats=True."
        )
    front = importlib.import_module(f"truenorm.tools.statistics.{framework.name}")
    collected = _Collected()
    old = {one: _statistics(one) for one in with_statistics}
    done = False
    try:
        with front.watched(model, with_statistics, collected.see) as forward:
            if layer_by_layer:
                _in_turn(collected, with_statistics, data, forward)
            else:
                collected.wanted = with_statistics
                collected.read(data, forward)
        if not collected.totals:
            raise InputError(
                "the model called none of its batch normalizations as modules, so that nothing is "
                "known of their inputs; call them, and not what they are made of."
            )
        new = {one: collected.result(one) for one in with_statistics if one in collected}
        done = True
    finally:
        for one in with_statistics:
            _write(one, *(new[one] if done and one in new else old[one]))
    rows = []
    for one in with_statistics:
        if one in new:
            front.finish(one, collected.batches)
            rows.append(_compared(one, collected.totals[one], old[one]))
        else:
            left.append((one.name, "the model did not call it"))
    return Report(tuple(rows), tuple(left), collected.batches)


class _Collected:
    """The moments of the inputs that were seen."""

    def __init__(self) -> None:
        self.totals: dict[Normalization, Moments] = {}
        self.order: dict[Normalization, None] = {}
        self.wanted: list[Normalization] = []
        self.batches = 0

    def __contains__(self, one: Normalization) -> bool:
        return one in self.totals

    def see(self, one: Normalization, moments: Callable[[], Moments]) -> None:
        """Add the moments of one input, and let that normalization use them."""
        self.order[one] = None
        if one not in self.wanted:
            return
        batch = moments()
        if not (np.isfinite(batch.mean).all() and np.isfinite(batch.squares).all()):
            raise InputError(
                f"the input of {one.name} has values that are not finite, of which there is no "
                "mean; look for them in the data and in the model's parameters."
            )
        self.totals[one] = self.totals[one] + batch if one in self.totals else batch
        _write(one, batch.mean, batch.variance())

    def read(self, data: Any, forward: Callable[[Any], None]) -> None:
        """Run the model on all data."""
        self.batches = 0
        for batch in batches(data):
            forward(batch)
            self.batches += 1
        if not self.batches:
            raise InputError("data has no batches; expected one or more.")

    def result(self, one: Normalization) -> tuple[Array, Array]:
        """The mean and the variance to store."""
        total = self.totals[one]
        return total.mean, total.variance(one.unbiased())


def _in_turn(
    collected: _Collected, found: list[Normalization], data: Any, forward: Callable[[Any], None]
) -> None:
    for batch in batches(data):  # the order of the first calls
        forward(batch)
        break
    else:
        raise InputError("data has no batches; expected one or more.")
    done: list[Normalization] = []
    while waiting := [one for one in collected.order if one not in done]:
        collected.wanted = waiting[:1]
        collected.read(data, forward)
        done += waiting[:1]
        if waiting[0] in collected:  # not where the first batch alone led there
            _write(waiting[0], *collected.result(waiting[0]))


def _statistics(one: Normalization) -> tuple[Array, Array]:
    mean, variance = one.value("mean"), one.value("variance")
    if mean is None or variance is None:
        raise InputError(f"{one.name} has a moving mean or variance without the other.")
    return mean, variance


def _write(one: Normalization, mean: Array, variance: Array) -> None:
    for name, value in (("mean", mean), ("variance", variance)):
        parameter = one.parameter(name)
        one.framework.write(parameter, value.reshape(tuple(parameter.shape)))


def _compared(one: Normalization, total: Moments, old: tuple[Array, Array]) -> Recomputed:
    epsilon = one.epsilon() or 0.0
    mean, variance = (value.astype(np.float64).reshape(-1) for value in old)
    spread = total.variance() + epsilon
    with np.errstate(divide="ignore", invalid="ignore"):
        off = np.abs(mean - total.mean) / np.sqrt(spread)
        ratio = (variance + epsilon) / spread
    return Recomputed(
        one.name,
        type(one.module).__name__,
        int(total.count.min()),
        float(off.max()),
        (float(ratio.min()), float(ratio.max())),
    )
