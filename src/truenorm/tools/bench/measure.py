"""Time candidates in turn, on tensors that take turns."""

import collections
import dataclasses
import statistics
import textwrap
import time
from collections.abc import Callable
from typing import Any

import numpy as np

# Seconds: shorter calls are repeated until a measurement takes this long, so that what the
# candidate before left in the caches is a small part of it.
LEAST = 1e-2
BUFFERS = 3  # tensors that take turns, so that none is found in the cache because it was just used
CACHE = 128 << 20  # bytes that are read to have nothing else left in the caches


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
    runs: dict[str, Callable[[Any, Any], Any]],
    inputs: list[tuple[Any, Any]],
    rounds: int,
    cold: bool = False,
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Time every candidate once a round, in an order that rotates.

    Each time begins with a call that is not timed, so that no candidate pays for what the one
    before left behind: threads asleep, memory that is still being freed. With `cold` the caches are
    filled with other data before, and several calls are timed whose results are all held: else an
    operation that writes to memory which was just freed has none of the traffic of its result.

    Args:
        runs: by name; each returns when its result is there.
        inputs: the arguments, used in turn.
        rounds: how often each is timed.
        cold: whether inputs and results are in memory only.

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
            repeats[name] = max(len(inputs) if cold else 1, min(1000, round(LEAST / taken)))
    names = list(repeats)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    held = 1 + len(inputs) if cold else 1
    turn = 0
    other = np.ones(CACHE if cold else 1, np.uint8)  # not zeros, which may have no memory
    for number in range(rounds):
        first = number % len(names) if names else 0
        for name in names[first:] + names[:first]:
            run = runs[name]
            other.max()
            results = collections.deque([run(*inputs[turn % len(inputs)])], held)
            start = time.perf_counter()
            for _ in range(repeats[name]):
                turn += 1
                results.append(run(*inputs[turn % len(inputs)]))
            taken = time.perf_counter() - start
            seconds[name].append(taken / repeats[name])
            results.clear()  # frees their memory outside of the measured time
    return seconds, failed
