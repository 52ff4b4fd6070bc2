"""What to watch for in a normalization of a given shape: the sentences of `explain`."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from truenorm.tools.explain.parts import Part, counted, plural

if TYPE_CHECKING:
    from truenorm.tools.explain.explanation import Explanation


def cautions(explanation: "Explanation") -> Iterator[str]:
    """What to watch for, most surprising first."""
    for part in explanation.parts:
        yield from _on_size(explanation, part)
    names, learned = explanation.axis_names, explanation.learned
    reduced = sorted({factor.axis for factor in explanation.view.factors if factor.reduced})
    spatial = [axis for axis in range(1, len(names)) if names[axis] != "C"]
    letters = ", ".join(names[axis] for axis in spatial)
    channels = explanation.parameter_shape[0]

    if explanation.name == "batch":
        yield from _on_batches(explanation)

    if explanation.name in ("layer", "rms") and spatial:
        if len(reduced) == 1:
            place = {"H, W": "pixel", "T": "step"}.get(letters, f"position ({letters})")
            plural = "s" if channels != 1 else ""
            tutorials = (
                ", although tutorials say 'all activations of a sample'"
                if explanation.name == "layer"
                else ""
            )
            yield (
                f"axis={reduced[0]} normalizes each {place} over its {channels} channel{plural}, "
                f"not each sample{tutorials}; for that take axis={list(range(1, len(names)))}."
            )
        elif len(reduced) == len(names) - 1:
            if learned:
                yield (
                    f"{' and '.join(learned)} ha{'ve' if len(learned) > 1 else 's'} an entry for "
                    "every element of a sample, whose size is therefore fixed once built."
                )
            if explanation.name == "layer":
                yield (
                    "Group normalization with groups=1 has the same statistics, but gamma and beta "
                    "vary over the channels alone."
                )
    if explanation.name == "rms":
        yield "No mean is subtracted: adding a constant to x changes the output."

    if explanation.view.groups is not None:
        groups = explanation.view.groups
        if explanation.name == "group" and groups in (-1, channels):
            yield "One channel per group: this is instance normalization."
        elif groups == 1:
            yield (
                f"One group: the statistics of layer normalization over ({letters}, C), but gamma "
                "and beta vary over the channels alone."
                if spatial
                else "One group: this is layer normalization."
            )
        elif groups not in (-1, channels):
            width = channels // groups
            yield (
                f"A channel group is {width} neighbouring channels, 0 to {width - 1} the first: "
                "the order of the channels matters."
            )
        if groups in (-1, channels) and explanation.elements_per_group != 1:
            yield (
                "The mean of each channel is removed from each sample: averaging the output over "
                f"{letters} gives {explanation.constant}, whatever the input."
            )
    if letters == "T" and spatial[0] in reduced and explanation.name != "batch":
        yield (
            "The statistics run over all steps, later ones too: where T is time, the model is "
            "not causal."
        )


def _on_batches(explanation: "Explanation") -> Iterator[str]:
    """What follows from statistics of samples that are together by chance."""
    split = explanation.split
    virtual = split is not None and split.batches > 1
    apart = split is not None and split.devices > 1 and not split.synchronized
    noun = "virtual batch" if virtual else "batch"
    sizes = " and ".join(filter(None, map(_samples, explanation.parts)))
    yield (
        f"In training the samples of a {noun}{' on one device' if apart else ''} share statistics: "
        f"the output for one depends on the others, and small {plural(noun)}"
        f" give noisy statistics{f'; here they are of {sizes}' if sizes else ''}."
    )
    if virtual:
        yield "The moving mean and variance follow the average over the virtual batches."
    if apart:
        yield (
            "Each device moves a moving mean and variance of its own; with synchronized=True they "
            "are the same. On JAX keras.distribution takes statistics of the whole batch anyway."
        )
    yield (
        "In inference nothing of the batch is shared: the moving mean and variance take the place "
        "of its own, so training and inference differ (with frozen=True they do not). They are "
        f"{2 * math.prod(explanation.parameter_shape):,} more numbers, stored but not trained."
    )


def _samples(part: Part) -> str | None:
    """Of how many samples and elements one mean is; None where the samples are unknown."""
    samples, (elements, _, _) = part.shape[part.axis_names.index("N")], part.count(reduced=True)
    if samples is None:
        return None
    words = counted(samples, "sample")
    return words if elements is None else f"{words} with {counted(elements, 'element')}"


def _on_size(explanation: "Explanation", part: Part) -> Iterator[str]:
    """What follows from groups of one or two elements."""
    elements, view, shape = part.count(reduced=True)[0], part.view, part.shape
    last = " in the last virtual batch" if part != explanation.parts[0] else ""
    training = " in training" if explanation.name == "batch" else ""
    if explanation.name == "rms":
        if elements == 1:
            yield "One element per group: of x only the sign is left, unless it is nearly 0."
    elif elements == 1:
        yield (
            f"One element per group{last}: it equals its own mean, so the output{training} is "
            f"{explanation.constant}, whatever the input."
        )
    elif elements == 2:
        yield (
            f"Two elements per group{last}: unless they are nearly equal, they become about +1 and "
            "−1 (before gamma and beta)."
        )
    elif elements is None:
        reduced = [factor for factor in view.factors if factor.reduced]
        unknown = [part.axis_names[f.axis] for f in reduced if shape[f.axis] is None]
        if all(shape[f.axis] is None or view.size(f, shape) == 1 for f in reduced):
            yield (
                f"Where {' = '.join(unknown)} = 1, a group has one element{last} and the output"
                f"{training} is {explanation.constant}."
            )
