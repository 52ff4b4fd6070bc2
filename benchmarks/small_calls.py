"""What a small call of truenorm.torch costs beside torch.nn, in microseconds, as a Markdown table.

    python benchmarks/small_calls.py

The tensors are so small that what is measured is everything around the arithmetic. Each case is
timed in turn with torch.nn's module of the same name, on one thread, in many rounds; the table has
the shortest round of each, which other programs on the machine disturb least.
"""

import time
from collections.abc import Callable
from typing import Any

import torch

import truenorm.torch

ROUNDS, CALLS = 40, 200
CASES = [
    ("LayerNorm", (64,), (8, 64)),
    ("RMSNorm", (64,), (8, 64)),
    ("GroupNorm", (8, 32), (2, 32, 8, 8)),
]


def forward(module: torch.nn.Module, x: torch.Tensor) -> Callable[[], Any]:
    """The module's result, without gradients."""

    def run() -> None:
        with torch.no_grad():
            module(x)

    return run


def in_training(module: torch.nn.Module, x: torch.Tensor) -> Callable[[], Any]:
    """The module's result, of which the gradients could be asked."""
    x = x.clone().requires_grad_()
    return lambda: module(x)


def with_backward(module: torch.nn.Module, x: torch.Tensor) -> Callable[[], Any]:
    """The module's result, and the gradients of x and of its parameters."""
    inputs = [x.clone().requires_grad_(), *module.parameters()]
    cotangent = torch.randn_like(x)
    return lambda: torch.autograd.grad(module(inputs[0]), inputs, cotangent)


PASSES = {
    "forward": forward,
    "forward, in training": in_training,
    "forward+backward": with_backward,
}


def shortest(runs: list[Callable[[], Any]]) -> list[float]:
    """The microseconds of a call of each, in its best round."""
    best = [float("inf")] * len(runs)
    for _ in range(ROUNDS):
        for i, run in enumerate(runs):
            begin = time.perf_counter()
            for _ in range(CALLS):
                run()
            best[i] = min(best[i], (time.perf_counter() - begin) / CALLS * 1e6)
    return best


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print("| module, shape | passes | truenorm.torch | torch.nn | difference |")
    print("|---|---|---|---|---|")
    for name, arguments, shape in CASES:
        for passes, made in PASSES.items():
            x = torch.randn(shape)
            runs = [
                made(getattr(library, name)(*arguments), x)
                for library in (truenorm.torch, torch.nn)
            ]
            ours, theirs = shortest(runs)
            print(
                f"| {name}, {'×'.join(map(str, shape))} | {passes} | {ours:.1f} | {theirs:.1f} | "
                f"{ours - theirs:+.1f} |"
            )


if __name__ == "__main__":
    main()
