"""Time candidates in turn, on tensors that take turns."""

import dataclasses
import statistics
import textwrap
import time
from collections.abc import Callable
from typing import Any

LEAST = 2e-3  # seconds: shorter calls are repeated until a measurement takes this long
BUFFERS = 3  # tensors that take turns, so that none is found in the cache because it was just used


@dataclasses.dataclass(frozen=True)
class Spread:
    """The median over the rounds, and the quartiles."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        """Of three values or more."""
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(low, median, high)


def measure(
    runs: dict[str, Callable[[Any, Any], Any]], inputs: list[tuple[Any, Any]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Time every candidate once a round, in an order that rotates.

    Args:
        runs: by name; each returns when its result is there.
        inputs: the arguments, used in turn.
        rounds: how often each is timed.

    Returns:
        By name, the seconds that a call took in each round; and, for those that raised an error
        instead, the beginning of its message.
    """
    repeats: dict[str, int] = {}
    failed: dict[str, str] = {}
    for name, run in runs.items():
        try:
            for pair in inputs:  # compiles, and fills what is cached
                run(*pair)
            start = time.perf_counter()
            run(*inputs[0])
            taken = time.perf_counter() - start
        except Exception as error:  # whatever a peer cannot do is a finding, not the end
            failed[name] = textwrap.shorten(f"{type(error).__name__}: {error}", 160)
        else:
            repeats[name] = max(1, min(100, round(LEAST / taken)))
    names = list(repeats)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    turn = 0
    for number in range(rounds):
        first = number % len(names) if names else 0
        for name in names[first:] + names[:first]:
            run, result = runs[name], None
            start = time.perf_counter()
            for _ in range(repeats[name]):
                turn += 1
                result = run(*inputs[turn % len(inputs)])
            taken = time.perf_counter() - start
            assert result is not None
            seconds[name].append(taken / repeats[name])
            del result  # frees its memory outside of the measured time
    return seconds, failed
