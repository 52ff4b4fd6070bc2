"""The cases that every engine and every front is held to, shared by the tests and the benchmarks.

`Case.call` computes one with Keras; the tests of the other fronts call their own functions with its
`partition`.
"""

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from truenorm.core.kinds import KINDS, Kind
from truenorm.core.view import View


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of a normalization, with the options that `truenorm.ops` takes."""

    name: str
    function: str
    shape: tuple[int, ...]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    mask: str | None = None  # "samples", "steps", "elements" or "empty group"
    per_sample: bool = False  # gamma and beta have a row for each sample

    @property
    def kind(self) -> Kind:
        return KINDS["frn" if self.function == "filter_response" else self.function]

    @property
    def centered(self) -> bool:
        return self.kind.centered

    @property
    def has_beta(self) -> bool:
        return "beta" in self.kind.learned

    @property
    def view(self) -> View:
        return self.kind.view(self.shape, **self.partition)

    @property
    def partition(self) -> dict[str, Any]:
        """The axis, and of group normalization the number of groups."""
        defaults = {"filter_response": {"axis": (1, 2)}, "group": {"groups": 32}}
        return {"axis": -1, **defaults.get(self.function, {}), **self.options}

    @property
    def parameter_shape(self) -> tuple[int, ...]:
        shape = self.view.parameter_shape(self.shape)
        return (self.shape[0], *shape) if self.per_sample else shape

    def call(self, x: Any, gamma: Any, beta: Any, mask: Any = None, **more: Any) -> Any:
        """Compute the case with `truenorm.ops`; RMS normalization takes no beta."""
        ops = importlib.import_module("truenorm.ops")  # where Keras is there
        function = getattr(ops, f"{self.function}_normalization")
        parameters = (gamma, beta) if self.has_beta else (gamma,)
        return function(x, *parameters, epsilon=EPSILON, mask=mask, **self.options, **more)

    def make_mask(self, rng: np.random.Generator) -> np.ndarray | None:
        """The mask, of the shape that is passed (a prefix of x's)."""
        if self.mask is None:
            return None
        if self.mask == "samples":
            mask = rng.random(self.shape[:1]) < 0.7
        elif self.mask == "elements":
            mask = rng.random(self.shape) < 0.7
        else:
            mask = rng.random(self.shape[:2]) < 0.7
        if self.mask == "empty group":
            mask[0] = False
        return mask

    def __str__(self) -> str:
        return self.name


EPSILON = 1e-3

CASES = [
    Case("group last", "group", (3, 14, 13, 10), {"groups": 5}),
    Case("group first", "group", (3, 10, 14, 13), {"groups": 5, "axis": 1}),
    Case("group middle", "group", (2, 5, 12, 7), {"groups": 3, "axis": 2}),
    Case("group middle, negative axis", "group", (2, 5, 12, 7), {"groups": 3, "axis": -2}),
    Case("group of all channels", "group", (3, 6, 5, 8), {"groups": 1}),
    Case("group, rank 2", "group", (5, 64)),
    Case("group, rank 5", "group", (2, 3, 4, 6, 5), {"groups": 2, "axis": 3}),
    Case("group, width 1", "group", (3, 1, 1, 4), {"groups": 2}),
    Case("group, no samples", "group", (0, 4, 4, 6), {"groups": 3}),
    Case("group, no pixels", "group", (2, 0, 4, 6), {"groups": 3}),
    Case("group, per sample", "group", (3, 7, 5, 6), {"groups": 2}, per_sample=True),
    Case("group first, per sample", "group", (6, 6, 5, 3), {"groups": 2, "axis": 1}, None, True),
    Case("group, long even column", "group", (2, 65536, 2), {"groups": 1}),
    Case("group, long prime column", "group", (1, 100003, 2), {"groups": 1}),
    Case("group first, long row", "group", (1, 2, 100003), {"groups": 1, "axis": 1}),
    Case("group, masked samples", "group", (5, 4, 4, 6), {"groups": 3}, "samples"),
    Case("group, masked steps", "group", (4, 9, 6), {"groups": 3}, "steps"),
    Case("group first, masked elements", "group", (4, 6, 9), {"groups": 3, "axis": 1}, "elements"),
    Case("group, masked prime column", "group", (2, 2503, 2), {"groups": 1}, "steps"),
    Case("group, an empty group", "group", (4, 9, 6), {"groups": 3}, "empty group"),
    Case("instance last", "instance", (3, 14, 13, 5)),
    Case("instance first", "instance", (3, 5, 14, 13), {"axis": 1}),
    Case("instance middle", "instance", (3, 4, 5, 6), {"axis": 2}),
    Case("instance, one element", "instance", (4, 1, 1, 7)),
    Case("instance, masked steps", "instance", (4, 9, 6), {}, "steps"),
    Case("layer", "layer", (33, 20)),
    Case("layer, width 1", "layer", (9, 1)),
    Case("layer, rank 3", "layer", (4, 7, 96)),
    Case("layer, awkward width", "layer", (6, 1009)),
    Case("layer, many rows", "layer", (30011, 5)),
    Case("layer over pixels' channels", "layer", (2, 9, 8, 10), {"axis": 3}),
    Case("layer over samples", "layer", (3, 7, 6, 5), {"axis": [1, 2, 3]}),
    Case("layer, axes unsorted", "layer", (3, 7, 6, 5), {"axis": [-1, 2]}),
    Case("layer over axis 1", "layer", (2, 96, 6, 5), {"axis": 1}),
    Case("layer over axes 1 and 3", "layer", (3, 7, 6, 5), {"axis": (1, 3)}),
    Case("layer, transposed", "layer", (3, 4, 5, 6, 2), {"axis": [1, 3]}),
    Case("layer, long column", "layer", (1, 10007, 3), {"axis": 1}),
    Case("layer, per sample", "layer", (4, 5, 24), {}, None, True),
    Case("layer, no rows", "layer", (0, 12)),
    Case("layer, masked steps", "layer", (4, 6, 16), {}, "steps"),
    Case("layer, masked elements", "layer", (4, 6, 16), {"axis": [1, 2]}, "elements"),
    Case("group of one sample", "group", (6, 14, 13), {"groups": 3, "axis": 0}),
    Case("group, rank 1", "group", (12,), {"groups": 4, "axis": 0}),
    Case("group, no channels", "group", (2, 3, 0), {"groups": -1}),
    Case("instance of one sample", "instance", (6, 14, 13), {"axis": 0}),
    Case("instance, no channels", "instance", (2, 3, 0)),
    Case("layer over the batch axis", "layer", (33, 5, 4), {"axis": 0}),
    Case("layer over all axes", "layer", (7, 5, 6), {"axis": [0, 1, 2]}),
    Case("layer over axes 0 and 2", "layer", (7, 5, 6), {"axis": [0, 2]}),
    Case("layer over axes 0, 2 and 4", "layer", (3, 2, 4, 3, 5), {"axis": [0, 2, 4]}),
    Case("layer, rank 1", "layer", (50,)),
    Case("layer, no channels", "layer", (3, 0)),
    Case("layer over the batch axis, masked", "layer", (9, 5), {"axis": 0}, "samples"),
    Case("rms over the batch axis", "rms", (33, 20), {"axis": 0}),
    Case("rms, rank 1", "rms", (50,), {"axis": 0}),
    Case("filter response over the batch axis", "filter_response", (4, 9, 6), {"axis": [0, 1]}),
    Case("rms", "rms", (33, 20)),
    Case("rms over axis 1", "rms", (2, 96, 6, 5), {"axis": 1}),
    Case("rms over axes 1 and 3", "rms", (3, 7, 6, 5), {"axis": [1, 3]}),
    Case("rms, transposed", "rms", (3, 4, 5, 6, 2), {"axis": [1, 3]}),
    Case("rms, width 1", "rms", (9, 1)),
    Case("rms, per sample", "rms", (4, 5, 24), {}, None, True),
    Case("rms, masked elements", "rms", (4, 6, 16), {}, "elements"),
    Case("filter response", "filter_response", (3, 14, 13, 5)),
    Case("filter response first", "filter_response", (3, 5, 14, 13), {"axis": [2, 3]}),
    Case("filter response middle", "filter_response", (2, 5, 6, 7), {"axis": (-1, 1)}),
    Case("filter response, rank 2", "filter_response", (5, 7), {"axis": []}),
    Case("filter response, per sample", "filter_response", (3, 9, 4), {"axis": 1}, None, True),
    Case("filter response, masked steps", "filter_response", (4, 9, 6), {"axis": 1}, "steps"),
]
