"""The parts of an input that are normalized each by itself, and how a batch is cut into them.

Of most normalizations the input is the one part. Batch normalization takes each device's batch by
itself, unless they are synchronized, and each virtual batch; those of one size are one stack.
"""

import dataclasses
import math
import operator
from collections.abc import Iterator

from truenorm.core.arguments import check_virtual
from truenorm.core.errors import brief
from truenorm.core.view import Factor, View

SPATIAL = {0: (), 1: ("T",), 2: ("H", "W"), 3: ("D", "H", "W")}
NOUNS = {"N": "sample", "T": "step", "D": "slice", "H": "row", "W": "column", "C": "channel"}
NOUNS |= {"I": "input", "O": "output unit"}  # of a kernel
# Of a stack.
NOUNS |= {"devices": "device", "batches": "virtual batch", "rest": "smaller virtual batch"}

Shape = tuple[int | None, ...]


@dataclasses.dataclass(frozen=True)
class Part:
    """An input, or a stack of inputs of one shape.

    Attributes:
        view: which elements of it share statistics.
        shape: its sizes; None where unknown.
        axis_names: a key of NOUNS, or another letter, for each axis.
    """

    view: View
    shape: Shape
    axis_names: tuple[str, ...]

    def count(self, reduced: bool) -> tuple[int | None, str, str]:
        """The product of the kept or reduced factors: as a number, as text, and spelled out."""
        known, unknown, words = 1, [], []
        for factor in self.view.factors:
            if factor.reduced != reduced:
                continue
            letter = self.axis_names[factor.axis]
            if self.shape[factor.axis] is None:
                unknown.append(letter)
                words.append(f"{letter} {plural(self._noun(factor))}")
            else:
                size = self.view.size(factor, self.shape)
                known *= size
                words.append(counted(size, self._noun(factor)))
        text = [*unknown, f"{known:,}"] if known != 1 or not unknown else unknown
        return None if unknown else known, " × ".join(text), " × ".join(words)

    def _noun(self, factor: Factor) -> str:
        if factor.part == "group" and self.view.groups != -1:
            return "channel group"
        letter = self.axis_names[factor.axis]
        return NOUNS.get(letter, f"{letter} position")


@dataclasses.dataclass(frozen=True)
class Split:
    """How a batch is cut.

    Attributes:
        samples: of the batch.
        devices: over which they are split evenly.
        size: the samples of a virtual batch; where there are none, those of a device.
        synchronized: whether all devices share statistics.
    """

    samples: int
    devices: int
    size: int
    synchronized: bool

    @property
    def each(self) -> int:
        """The samples of a device."""
        return self.samples // self.devices

    @property
    def batches(self) -> int:
        """The virtual batches of a device."""
        return math.ceil(self.each / self.size)

    def batch(self, device: int, index: int) -> range:
        """The samples of one virtual batch."""
        begin = device * self.each + index * self.size
        return range(begin, min(begin + self.size, (device + 1) * self.each))

    def parts(self, whole: Part) -> Iterator[Part]:
        """The stacks that are normalized each by itself; what is left is the second."""
        if self.synchronized:
            yield whole
            return
        devices = {"devices": self.devices} if self.devices > 1 else {}
        if self.batches == 1:
            yield _stack(whole, self.each, devices)
            return
        yield _stack(whole, self.size, devices | {"batches": self.each // self.size})
        if self.each % self.size:
            yield _stack(whole, self.each % self.size, devices | {"rest": 1})

    def __str__(self) -> str:
        devices = ["…" if at is None else self._words(at) for at in shown(self.devices)]
        who = "All samples" if self.synchronized else "Samples that"
        return f"{who} share statistics in training: {'; '.join(devices)}."

    def _words(self, device: int) -> str:
        """The samples of a device, such as "0–3, 4–5 on device 0"."""
        batches = [
            "…" if index is None else _span(self.batch(device, index))
            for index in shown(self.batches)
        ]
        return ", ".join(batches) + f" on device {device}" * (self.devices > 1)


def _stack(whole: Part, samples: int, leading: dict[str, int]) -> Part:
    """So many inputs of so many samples, as `core.batch` stacks them."""
    view = whole.view
    for _ in leading:
        view = view.with_leading_axis()
    shape = (*leading.values(), samples, *whole.shape[1:])
    return Part(view, shape, (*leading, *whole.axis_names))


def split(
    samples: int | None, devices: object, synchronized: bool, virtual_batch_size: object
) -> Split:
    """Cut a batch over devices, and each device's into virtual batches and what is left.

    Raises:
        ValueError: a number does not fit, or virtual batches of all devices are asked for.
        TypeError: a number is not an integer.
    """
    number = _device_count(devices)
    virtual = check_virtual(virtual_batch_size, "synchronized=True" if synchronized else None)
    if samples is None:
        given = f"devices={number}" if virtual is None else f"virtual_batch_size={virtual}"
        raise ValueError(f"{given} needs the number of samples; give the first size of the shape.")
    if samples % number:
        raise ValueError(
            f"devices={number} does not divide the {samples} samples of axis 0; choose a divisor "
            f"of {samples}: every device has as many."
        )
    each = samples // number
    return Split(samples, number, min(virtual or each, each), synchronized)


def _device_count(devices: object) -> int:
    try:
        if isinstance(devices, bool):
            raise TypeError
        count = operator.index(devices)  # type: ignore[arg-type]  # what is no integer raises
    except TypeError:
        raise TypeError(f"devices={brief(devices)} must be an integer.") from None
    if count < 1:
        raise ValueError(f"devices={brief(devices)} must be 1 or more.")
    return count


def shown(number: int) -> list[int | None]:
    """The indices of a few things; of many the first, None for those between, and the last."""
    return list(range(number)) if number <= 4 else [0, None, number - 1]


def counted(number: int, noun: str) -> str:
    """The number and the noun, in the plural where it is not one."""
    return f"{number:,} {noun if number == 1 else plural(noun)}"


def plural(noun: str) -> str:
    """The plural of a noun."""
    return f"{noun}{'es' if noun.endswith('ch') else 's'}"


def _span(samples: range) -> str:
    return f"{samples[0]}–{samples[-1]}" if len(samples) > 1 else f"{samples[0]}"
