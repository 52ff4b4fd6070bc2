"""Training batch normalization beside the memory traffic that no implementation is spared.

    python benchmarks/batch_passes.py [--threads N] [--rounds 15]

The mean of a channel must be known before the first element is normalized, and both sums of the
gradient before the first element of dx is written: x is read, then read and y written; x and dy are
read, then read and dx written. The column "passes" has the times of just that, done by PyTorch's
own sums, a product with a number and an addition. All are in the yardstick a * 1.01, which reads
and writes one tensor; freed memory is kept, so that no time has page faults in it.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import truenorm.torch
from truenorm.tools.allocator import kept_pages
from truenorm.tools.bench.measure import Spread, measure

CASES = [((32, 56, 56, 64), -1), ((32, 64, 56, 56), 1), ((32, 28, 28, 512), -1)]
BUFFERS = 6  # pairs of tensors that take turns


def yardstick(x: Tensor, dy: Tensor) -> Tensor:
    """One tensor read and written."""
    return x * 1.01


def passes_forward(x: Tensor, dy: Tensor) -> Any:
    """Read x; read x and write y."""
    return x.sum(), x * 1.01


def passes(x: Tensor, dy: Tensor) -> Any:
    """The same; read x and dy; read them and write dx."""
    return *passes_forward(x, dy), x.sum(), dy.sum(), x + dy


def forward(module: nn.Module) -> Callable[[Tensor, Tensor], Any]:
    """y, in training."""

    def run(x: Tensor, dy: Tensor) -> Any:
        with torch.no_grad():
            return module(x)

    return run


def both(module: nn.Module) -> Callable[[Tensor, Tensor], Any]:
    """y and the gradients of x, weight and bias."""

    def run(x: Tensor, dy: Tensor) -> Any:
        x = x.detach().requires_grad_()
        y = module(x)
        return y, torch.autograd.grad(y, [x, *module.parameters()], dy)

    return run


class OfTorch(nn.Module):
    """torch.nn's module; channels that are last come to it in PyTorch's way."""

    def __init__(self, channels: int, axis: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        """Y of x."""
        result: Tensor = self.norm(x.movedim(self.axis, 1)).movedim(1, self.axis)
        return result


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(f"PyTorch {torch.__version__}, float32, threads: {given.threads}; in yardsticks")
    print("| x | pass | truenorm | passes | torch.nn | yardstick, ms |")
    print("|---|---|---|---|---|---|")
    with kept_pages():
        for shape, axis in CASES:
            ours = truenorm.torch.BatchNorm2d(shape[axis], axis=axis)
            theirs = OfTorch(shape[axis], axis)
            pairs = [(torch.randn(shape), torch.randn(shape)) for _ in range(BUFFERS)]
            for name, way, alone in (
                ("forward", forward, passes_forward),
                ("forward+backward", both, passes),
            ):
                runs = {"": yardstick, "ours": way(ours), "passes": alone, "nn": way(theirs)}
                seconds, failed = measure(runs, pairs, given.rounds)
                assert not failed, failed
                median = {key: Spread.of(values).median for key, values in seconds.items()}
                one = median[""]
                print(
                    f"| {'×'.join(map(str, shape))}, axis {axis} | {name} | "
                    f"{median['ours'] / one:.2f} | {median['passes'] / one:.2f} | "
                    f"{median['nn'] / one:.2f} | {one * 1e3:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
