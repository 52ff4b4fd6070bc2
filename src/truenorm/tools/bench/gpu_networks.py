"""A training step of two networks for PyTorch, with fused normalizations and torch.nn's."""

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import truenorm.torch.functional as ours

ROUNDS = 10


class _Convolution(nn.Module):
    """Convolution, group normalization, SiLU, in channels-last memory."""

    def __init__(self, before: int, after: int, fused: bool, stride: int = 1) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(before, after, 3, stride, 1)
        self.weight, self.bias = nn.Parameter(torch.ones(after)), nn.Parameter(torch.zeros(after))
        self.groups, self.fused = min(32, after // 2), fused

    def forward(self, x: Tensor) -> Tensor:
        """SiLU of the normalized convolution."""
        x = self.convolution(x)
        if self.fused:
            y: Tensor = ours.group_norm(x, self.groups, self.weight, self.bias, activation="silu")
            return y
        return functional.silu(functional.group_norm(x, self.groups, self.weight, self.bias))


class UNet(nn.Module):
    """Two steps down and up, with the skips of Ronneberger et al., 2015, arXiv:1505.04597."""

    def __init__(self, width: int, fused: bool) -> None:
        super().__init__()
        sizes = [width, 2 * width, 4 * width]
        self.start = _Convolution(3, width, fused)
        self.down = nn.ModuleList(
            nn.Sequential(_Convolution(a, b, fused, 2), _Convolution(b, b, fused))
            for a, b in itertools.pairwise(sizes)
        )
        self.up = nn.ModuleList(
            _Convolution(b + a, a, fused) for a, b in zip(sizes[-2::-1], sizes[:0:-1], strict=True)
        )
        self.end = nn.Conv2d(width, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """An image of x's size."""
        x = self.start(x)
        skips = []
        for step in self.down:
            skips.append(x)
            x = step(x)
        for step, skip in zip(self.up, reversed(skips), strict=True):
            x = step(torch.cat([functional.interpolate(x, scale_factor=2.0), skip], 1))
        y: Tensor = self.end(x)
        return y


class Transformer(nn.Module):
    """Blocks of attention and a feed-forward network, normalized before, by the RMS."""

    def __init__(self, width: int, blocks: int, fused: bool) -> None:
        super().__init__()
        self.fused, self.heads = fused, max(width // 64, 1)
        self.weights = nn.ParameterList(torch.ones(width) for _ in range(2 * blocks))
        self.attend = nn.ModuleList(nn.Linear(width, 3 * width, bias=False) for _ in range(blocks))
        self.project = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(blocks))
        self.feed = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
            for _ in range(blocks)
        )

    def _normalize(self, x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The normalized sum, and the sum."""
        if self.fused:
            pair: tuple[Tensor, Tensor] = ours.rms_norm(x, len(weight), weight, residual=residual)
            return pair
        total = x + residual
        return functional.rms_norm(total, (len(weight),), weight), total

    def forward(self, x: Tensor) -> Tensor:
        """Of (N, T, width), another."""
        total, x = x, torch.zeros_like(x)
        for i, (attend, project, feed) in enumerate(
            zip(self.attend, self.project, self.feed, strict=True)
        ):
            y, total = self._normalize(x, total, self.weights[2 * i])
            q, k, v = (
                one.unflatten(-1, (self.heads, -1)).transpose(1, 2)
                for one in attend(y).chunk(3, -1)
            )
            attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = project(attended.transpose(1, 2).flatten(2))
            y, total = self._normalize(x, total, self.weights[2 * i + 1])
            x = feed(y)
        return x + total


def training_steps(tiny: bool = False) -> dict[str, dict[str, float]]:
    """Milliseconds of a step, forward, gradient and update, by network and candidate."""
    device, dtype = ("cpu", torch.float32) if tiny else ("cuda", torch.bfloat16)
    makers: dict[str, tuple[Callable[[bool], nn.Module], tuple[int, ...]]] = {
        "U-Net, group + SiLU, channels last": (
            lambda fused: UNet(8 if tiny else 64, fused),
            (1, 3, 8, 8) if tiny else (16, 3, 256, 256),
        ),
        "transformer, add + RMS": (
            lambda fused: Transformer(64 if tiny else 1024, 1 if tiny else 8, fused),
            (1, 4, 64) if tiny else (8, 1024, 1024),
        ),
    }
    found: dict[str, dict[str, float]] = {}
    for title, (make, shape) in makers.items():
        x = torch.randn(shape, device=device, dtype=dtype)
        if x.ndim == 4:
            x = x.to(memory_format=torch.channels_last)
        for name in ("truenorm", "torch.nn", "torch.compile"):
            if tiny and name == "torch.compile":
                continue
            model: Any = make(name == "truenorm").to(device, dtype)
            if x.ndim == 4:
                model = model.to(memory_format=torch.channels_last)
            optimizer = torch.optim.SGD(model.parameters(), 1e-3)
            run = torch.compile(model) if name == "torch.compile" else model
            found.setdefault(title, {})[name] = 1e3 * _step(run, optimizer, x, tiny)
    return found


def _step(run: Any, optimizer: Any, x: Tensor, tiny: bool) -> float:
    """The median of the seconds of a step."""
    times = []
    for _ in range(3 if tiny else ROUNDS + 3):
        start = time.perf_counter()
        loss = run(x).float().square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if not tiny:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[-ROUNDS:])
