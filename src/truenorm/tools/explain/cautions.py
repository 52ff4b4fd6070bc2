"""What to watch for in a normalization of a given shape: the sentences of `explain`."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from truenorm.tools.explain.explanation import Explanation


def cautions(explanation: "Explanation") -> Iterator[str]:
    """What to watch for, most surprising first."""
    yield from _on_size(explanation)
    names, learned = explanation.axis_names, explanation.learned
    reduced = sorted({factor.axis for factor in explanation.view.factors if factor.reduced})
    spatial = [axis for axis in range(1, len(names)) if names[axis] != "C"]
    letters = ", ".join(names[axis] for axis in spatial)
    channels = explanation.parameter_shape[0]

    if explanation.name == "batch":
        samples = explanation.shape[0]
        yield (
            "In training the samples of a batch share statistics: the output for one depends on "
            f"the others, and small batches{f' (here {samples})' if samples else ''} give noisy "
            "statistics."
        )
        yield (
            "At inference it uses moving averages instead, so training and inference differ; "
            f"they are {2 * math.prod(explanation.parameter_shape):,} more numbers, stored but "
            "not trained."
        )

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


def _on_size(explanation: "Explanation") -> Iterator[str]:
    """What follows from groups of one or two elements."""
    elements, shape = explanation.elements_per_group, explanation.shape
    if explanation.name == "rms":
        if elements == 1:
            yield "One element per group: of x only the sign is left, unless it is nearly 0."
    elif elements == 1:
        yield (
            "One element per group: it equals its own mean, so the output"
            f"{' in training' if explanation.name == 'batch' else ''} is {explanation.constant}, "
            "whatever the input."
        )
    elif elements == 2:
        yield (
            "Two elements per group: unless they are nearly equal, they become about +1 and −1 "
            "(before gamma and beta)."
        )
    elif elements is None:
        reduced = [factor for factor in explanation.view.factors if factor.reduced]
        unknown = [explanation.axis_names[f.axis] for f in reduced if shape[f.axis] is None]
        if all(shape[f.axis] is None or explanation.view.size(f, shape) == 1 for f in reduced):
            yield (
                f"Where {' = '.join(unknown)} = 1, a group has one element and the output"
                f"{' in training' if explanation.name == 'batch' else ''} is "
                f"{explanation.constant}."
            )
