"""Which batch normalization goes into which layer, and why another does not."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from truenorm.tools.carry.modules import Normalization
from truenorm.tools.fold.arithmetic import Affine, Linear


@dataclasses.dataclass(frozen=True)
class Call:
    """One call in a model.

    Attributes:
        module: what is called; None for an operation that has no parameters of its own.
        what: what a report calls it.
        inputs: the values that go in; a value is any number.
        output: the value that comes out, or one for all.
    """

    module: Any
    what: str
    inputs: tuple[int, ...]
    output: int


@dataclasses.dataclass(frozen=True)
class Folded:
    """One batch normalization that was folded.

    Attributes:
        name: its name in the model.
        into: the name of the layer.
        where: "after" or "before" the layer.
        note: what else there is to know.
    """

    name: str
    into: str
    where: str
    note: str = ""

    def __str__(self) -> str:
        note = f" ({self.note})" if self.note else ""
        preposition = "into" if self.where == "after" else "forward into"
        return f"{self.name}: {preposition} {self.into}{note}"


class Graph:
    """The calls of a model, from which normalizations are taken out one by one."""

    def __init__(self, calls: Iterable[Call], outputs: Iterable[int]) -> None:
        self.calls = list(calls)
        self.outputs = set(outputs)
        self._same: dict[int, int] = {}  # the output of what was taken out is its input

    def _value(self, value: int) -> int:
        while value in self._same:
            value = self._same[value]
        return value

    def of(self, module: Any) -> list[Call]:
        """The calls of a module."""
        return [one for one in self.calls if one.module is module]

    def producer(self, call: Call) -> Call | None:
        """Where the input of a call with one input comes from; None from the model's."""
        value = self._value(call.inputs[0])
        return next((one for one in self.calls if self._value(one.output) == value), None)

    def consumers(self, call: Call) -> list[Call | None]:
        """What takes the result of a call, once for each time; None is the model's result."""
        value = self._value(call.output)
        taking: list[Call | None] = [
            one for one in self.calls for into in one.inputs if self._value(into) == value
        ]
        return [*taking, *(None for out in self.outputs if self._value(out) == value)]

    def take_out(self, call: Call) -> None:
        """Let the input of a call be its result."""
        self.calls.remove(call)
        self._same[call.output] = call.inputs[0]


def chains(sequences: Iterable[list[tuple[str, Any]]]) -> Graph:
    """The graph of modules that are called one after the other, each with the one result."""
    calls: list[Call] = []
    outputs, value = [], 0
    for sequence in sequences:
        for name, module in sequence:
            calls.append(Call(module, name, (value,), value + 1))
            value += 1
        outputs.append(value)
        value += 1
    return Graph(calls, outputs)


@dataclasses.dataclass
class Plan:
    """What was found out, layer by layer.

    Attributes:
        linear: tells of a layer what is linear in it, or None of another, or why it cannot be used.
        fits: tells why a normalization and a layer have not the same channels; "" where they do.
        layers: the layers that take something in, each with its new numbers, by identity.
        read: what `linear` told of each layer, by identity: it copies the kernel.
        removed: the normalizations that are no longer needed.
        folded, left: for the report.
    """

    linear: Callable[[Any], Linear | str | None]
    fits: Callable[[Normalization, Any], str]
    layers: dict[int, tuple[Any, Linear]] = dataclasses.field(default_factory=dict)
    read: dict[int, Linear | str | None] = dataclasses.field(default_factory=dict)
    removed: list[Normalization] = dataclasses.field(default_factory=list)
    folded: list[Folded] = dataclasses.field(default_factory=list)
    left: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    def in_graph(self, graph: Graph, one: Normalization, numbers: Affine, unknown: str) -> None:
        """Fold one into the layer before or after it; `unknown` says why it is in no graph."""
        calls = graph.of(one.module)
        if len(calls) != 1:
            why = f"it is called {len(calls)} times" if calls else unknown
            self.left.append((one.name, why))
            return
        (call,) = calls
        if len(call.inputs) != 1:
            self.left.append((one.name, "it is called with more than its input"))
            return
        before, reason = graph.producer(call), "its input is the model's"
        if before is not None:
            reason = self._alone(graph, before, call, f"its input comes from {before.what}")
            reason = reason or self.into(one, numbers, before.module, before.what, after=True)
        if reason:
            others = graph.consumers(call)
            if len(others) != 1 or others[0] is None:
                other = "its result goes to " + (
                    f"{len(others)} places" if len(others) > 1 else "the model's result"
                )
            else:
                after = others[0]
                other = self._alone(graph, after, after, f"its result goes to {after.what}")
                other = other or self.into(one, numbers, after.module, after.what, after=False)
            if other:
                self.left.append((one.name, f"{reason}; {other}"))
                return
        graph.take_out(call)

    def _linear(self, layer: Any) -> Linear | str | None:
        if id(layer) not in self.read:
            self.read[id(layer)] = self.linear(layer)
        return self.read[id(layer)]

    def _alone(self, graph: Graph, layer: Call, other: Call, what: str) -> str:
        """Why the layer cannot take anything in, for where it stands; "" where it can."""
        if layer.module is None or self._linear(layer.module) is None:
            return f"{what}, which is not linear in a way that is known"
        if len(graph.of(layer.module)) != 1:
            return f"{what}, which is called in several places"
        if layer is not other and len(graph.consumers(layer)) != 1:
            return f"{what}, whose result goes to other places too"
        return ""

    def into(
        self, one: Normalization, numbers: Affine, layer: Any, name: str, *, after: bool
    ) -> str:
        """Fold it into this layer, which stands next to it; returns why not, or ""."""
        linear = self._linear(layer)
        if linear is None:
            return f"{name} is a {type(layer).__name__}, which cannot take it in"
        if isinstance(linear, str):
            return f"{name} {linear}"
        if after and linear.activation:
            return f"{name} has an activation of its own"
        if not after and linear.zeros and numbers.shift.any():
            return f"{name} puts zeros, which the normalization does not shift, beside its input"
        reason = self.fits(one, layer)
        if reason or linear.channels(after) != len(numbers.shift):
            return reason or (
                f"{name} has {linear.channels(after)} channels, and it has {len(numbers.shift)}"
            )
        linear.fold(numbers, after)
        self.layers[id(layer)] = layer, linear
        self.removed.append(one)
        self.folded.append(Folded(one.name, name, "after" if after else "before", linear.note))
        return ""
