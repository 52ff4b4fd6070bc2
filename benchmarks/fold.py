"""How much faster three networks are with their batch normalizations folded, as a Markdown table.

    python benchmarks/fold.py [--threads 1] [--batch 8] [--size 224] [--rounds 15]

Networks of torchvision in inference mode, with random weights, which changes no time. Original and
folded copy run in turn, so that whatever else the machine does slows both; the table has the median
of each, and the speed-up of the medians with the quartiles of the ratios of neighbouring runs.
"""

import argparse
import statistics
import time

import torch

from truenorm import fold

NETWORKS = ("resnet50", "mobilenet_v3_small", "efficientnet_b0")


def networks() -> list[tuple[str, torch.nn.Module]]:
    """The networks, by name."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):  # its own operators need CUDA's libraries; no network here has one
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float threshold) -> Tensor")
    from torchvision import models

    return [(name, getattr(models, name)().eval()) for name in NETWORKS]


def seconds(model: torch.nn.Module, x: torch.Tensor) -> float:
    """The time of one run."""
    begin = time.perf_counter()
    model(x)
    return time.perf_counter() - begin


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, value in (("threads", 1), ("batch", 8), ("size", 224), ("rounds", 15)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    x = torch.randn(options.batch, 3, options.size, options.size)
    print(f"torch {torch.__version__}, {options.threads} threads, input {tuple(x.shape)}\n")
    print("| network | folded | as it is, ms | folded, ms | speed-up (quartiles) |")
    print("|---|---|---|---|---|")
    with torch.no_grad():
        for name, model in networks():
            made, report = fold(model)
            pairs = [(seconds(model, x), seconds(made, x)) for _ in range(options.rounds + 2)][2:]
            before, after = (statistics.median(column) for column in zip(*pairs, strict=True))
            low, _, high = statistics.quantiles([one / other for one, other in pairs], n=4)
            count = f"{len(report.folded)} of {len(report.folded) + len(report.left)}"
            print(
                f"| {name} | {count} | {before * 1e3:.1f} | {after * 1e3:.1f} | "
                f"{before / after:.2f}x ({low:.2f} to {high:.2f}) |",
                flush=True,
            )


if __name__ == "__main__":
    main()
