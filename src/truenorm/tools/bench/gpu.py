"""`truenorm bench --device cuda`: the speed table of GPU kernels, as shares of a copy's bandwidth.

A normalization must move 2 tensors forward and 5 with the gradient (x, y; then x, dy, dx). The
share is what that takes at the speed of a copy of a large tensor on the same device, over the time
that was measured. It needs no Keras.
"""

import json
import pathlib
import statistics
import textwrap
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from truenorm.core.errors import InputError
from truenorm.tools.bench.gpu_cases import (
    CASES,
    DTYPES,
    TINY,
    Case,
    jax_candidates,
    torch_candidates,
)
from truenorm.tools.writing import check_folder, write

ROUNDS = 15
MOVED = {"forward": 2, "both": 5}  # tensors; one more each where a residual is added
COPY = 1 << 28  # elements of float32 that are copied


class Row(NamedTuple):
    """One candidate at one case: seconds, and shares of the copy's bandwidth; or why not."""

    framework: str
    case: str
    dtype: str
    candidate: str
    seconds: dict[str, float]
    shares: dict[str, float]
    failed: str = ""


class Clock(NamedTuple):
    """How a framework is timed.

    Attributes:
        name: of the framework.
        device: what computes, as the table says it.
        inputs: of a case and a dtype: x, gamma, beta, the residual or None, and dy.
        candidates: of a case.
        passes: of a candidate's function: by pass, a function of the inputs.
        seconds: of a function without arguments: how long it takes.
        copy: copies a large tensor; its bytes, read and written.
    """

    name: str
    device: str
    inputs: Callable[[Case, str], Any]
    candidates: Callable[[Case], Any]
    passes: Callable[[Callable[..., Any]], dict[str, Callable[..., Any]]]
    seconds: Callable[[Callable[[], Any]], float]
    copy: tuple[Callable[[], Any], int]


def speed_table(frameworks: Sequence[str], tiny: bool = False) -> tuple[list[Row], dict[str, str]]:
    """Time all cases; rows, and the device of each framework.

    Args:
        frameworks: of "torch" and "jax".
        tiny: small cases on the CPU, which show that the program runs and nothing else.
    """
    rows, devices = [], {}
    for name in frameworks:
        clock = {"torch": _torch_clock, "jax": _jax_clock}[name](tiny)
        devices[name] = clock.device
        function, moved = clock.copy
        bandwidth = moved / clock.seconds(function)
        for case in TINY if tiny else CASES:
            for dtype in DTYPES:
                rows += _case(clock, case, dtype, bandwidth)
    return rows, devices


def _case(clock: Clock, case: Case, dtype: str, bandwidth: float) -> list[Row]:
    inputs = clock.inputs(case, dtype)
    size = inputs[0].nbytes
    rows = []
    for candidate, function in clock.candidates(case):
        seconds: dict[str, float] = {}
        failed = ""
        try:
            for name, run in clock.passes(function).items():
                seconds[name] = clock.seconds(lambda run=run: run(*inputs))  # type: ignore[misc]
        except Exception as error:  # what a peer cannot do is a finding
            failed = textwrap.shorten(f"{type(error).__name__}: {error}", 120)
        more = 2 if case.fused == "add" else 0  # the residual is read and the sum written
        shares = {
            name: (MOVED[name] + more) * size / bandwidth / taken for name, taken in seconds.items()
        }
        rows.append(Row(clock.name, case.name, dtype, candidate, seconds, shares, failed))
    return rows


def _torch_clock(tiny: bool) -> Clock:
    import torch

    device = "cpu" if tiny else "cuda"

    def draw(shape: Sequence[int], dtype: str, gradient: bool = True) -> Any:
        drawn = torch.randn(tuple(shape), device=device, dtype=getattr(torch, dtype))
        return drawn.requires_grad_(gradient)

    def inputs(case: Case, dtype: str) -> Any:
        gamma, beta = (draw((case.size,), "float32") for _ in range(2))
        residual = draw(case.shape, dtype) if case.fused == "add" else None
        return draw(case.shape, dtype), gamma, beta, residual, draw(case.shape, dtype, False)

    def passes(function: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
        def forward(*operands: Any) -> Any:
            with torch.no_grad():
                return function(*operands[:-1])

        def both(*operands: Any) -> Any:
            y = function(*operands[:-1])
            wanted = [one for one in operands[:-1] if one is not None]
            results = list(y) if isinstance(y, tuple) else [y]
            given = [operands[-1]] * len(results)
            return torch.autograd.grad(results, wanted, given, allow_unused=True)

        return {"forward": forward, "both": both}

    def seconds(run: Callable[[], Any]) -> float:
        for _ in range(3):
            run()
        if tiny:
            return _wall(run, 3)
        other = torch.empty(1 << 28, dtype=torch.uint8, device=device)  # larger than any L2
        times = []
        for _ in range(ROUNDS):
            other.zero_()
            torch.cuda._sleep(1_000_000)  # the host is ahead: what it takes is not measured
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1e3)
        return float(statistics.median(times))

    count = 1 << 12 if tiny else COPY
    source = torch.ones(count, device=device)
    target = torch.empty_like(source)
    name = "CPU (tiny tensors)" if tiny else torch.cuda.get_device_name()
    return Clock(
        "torch", f"{name}, PyTorch {torch.__version__}", inputs, torch_candidates, passes, seconds,
        (lambda: target.copy_(source), 8 * count),
    )  # fmt: skip


def _jax_clock(tiny: bool) -> Clock:
    import jax
    import jax.numpy as jnp

    device = jax.devices("cpu")[0] if tiny else jax.devices()[0]

    def inputs(case: Case, dtype: str) -> Any:
        keys = iter(jax.random.split(jax.random.key(0), 5))

        def draw(shape: Sequence[int], dtype: str) -> Any:
            drawn = jax.random.normal(next(keys), tuple(shape), jnp.float32).astype(dtype)
            return jax.device_put(drawn, device)

        gamma, beta = (draw((case.size,), "float32") for _ in range(2))
        residual = draw(case.shape, dtype) if case.fused == "add" else None
        return draw(case.shape, dtype), gamma, beta, residual, draw(case.shape, dtype)

    def passes(function: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
        def both(*operands: Any) -> Any:
            y, pullback = jax.vjp(function, *operands[:-1])
            given = (operands[-1],) * 2 if isinstance(y, tuple) else operands[-1]
            return y, pullback(given)

        jitted = jax.jit(both)
        forward = jax.jit(lambda *operands: function(*operands[:-1]))
        return {"forward": forward, "both": jitted}

    def seconds(run: Callable[[], Any]) -> float:
        jax.block_until_ready(run())
        return _wall(lambda: jax.block_until_ready([run() for _ in range(10)]), 5) / 10

    count = 1 << 12 if tiny else COPY
    source = jax.device_put(jnp.ones(count, jnp.float32), device)
    scale = jax.jit(lambda one: one * 1.01)
    kind = "CPU (tiny tensors)" if tiny else device.device_kind
    return Clock(
        "jax", f"{kind}, JAX {jax.__version__}", inputs, jax_candidates, passes, seconds,
        (lambda: scale(source), 8 * count),
    )  # fmt: skip


def _wall(run: Callable[[], Any], rounds: int) -> float:
    """The median time of a call on the clock of the host."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def small_calls(tiny: bool = False) -> dict[str, dict[str, float]]:
    """Microseconds that the host takes to start small calls of PyTorch, ours and torch.nn's."""
    import torch

    case = Case("", "layer", (8, 64))
    clock = _torch_clock(tiny)
    inputs = clock.inputs(case, "float32")
    found: dict[str, dict[str, float]] = {}
    for name, function in torch_candidates(case):
        if name in ("truenorm", "torch.nn"):
            for step, run in clock.passes(function).items():
                for _ in range(10):
                    run(*inputs)
                if not tiny:
                    torch.cuda.synchronize()
                taken = _wall(lambda run=run: [run(*inputs) for _ in range(50)], 5)  # type: ignore[misc]
                found.setdefault(step, {})[name] = taken / 50 * 1e6
    return found


def markdown(rows: Sequence[Row], devices: dict[str, str]) -> str:
    """A table for each framework and dtype: milliseconds forward / with gradient (shares)."""
    parts = []
    for framework, device in devices.items():
        for dtype in DTYPES:
            chosen = [row for row in rows if (row.framework, row.dtype) == (framework, dtype)]
            names = list(dict.fromkeys(row.candidate for row in chosen))
            lines = [
                f"### {device}, {dtype}",
                "",
                "Milliseconds forward / forward and gradient (share of the copy bandwidth).",
                "",
                f"| case | {' | '.join(names)} |",
                "|---" * (len(names) + 1) + "|",
            ]
            for case in dict.fromkeys(row.case for row in chosen):
                found = {row.candidate: row for row in chosen if row.case == case}
                cells = [_cell(found[name]) if name in found else "" for name in names]
                lines.append(f"| {case} | {' | '.join(cells)} |")
            parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _cell(row: Row) -> str:
    if row.failed:
        return row.failed.replace("|", " ")
    times = " / ".join(f"{1e3 * one:.3g}" for one in row.seconds.values())
    return f"{times} ({' / '.join(f'{100 * one:.0f}' for one in row.shares.values())} %)"


def report(
    out: pathlib.Path | None, frameworks: Sequence[str], tiny: bool = False, force: bool = False
) -> str:
    """Time everything, print the tables, and write speed.json and speed.md into a folder.

    Raises:
        InputError: no framework finds a GPU, or there are such files and not `force`.
    """
    if out is not None:
        check_folder(out, [out / "speed.json", out / "speed.md"], force)
    if not tiny:
        frameworks = [name for name in frameworks if _finds_gpu(name)]
        if not frameworks:
            raise InputError("--device cuda: neither PyTorch nor JAX finds a GPU; leave it out.")
    rows, devices = speed_table(frameworks, tiny)
    text = markdown(rows, devices)
    facts: dict[str, Any] = {"devices": devices, "rows": [row._asdict() for row in rows]}
    if "torch" in frameworks:
        from truenorm.tools.bench.gpu_networks import training_steps

        facts["small calls, us"] = small_calls(tiny)
        facts["training steps, ms"] = training_steps(tiny)
        for title in ("small calls, us", "training steps, ms"):
            text += f"\n### {title}\n\n" + _listed(facts[title])
    print(text)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write(out / "speed.json", json.dumps(facts, indent=1))
        write(out / "speed.md", text)
    return text


def _listed(found: dict[str, dict[str, float]]) -> str:
    lines = (
        f"- {title}: " + ", ".join(f"{name} {one:.3g}" for name, one in entries.items())
        for title, entries in found.items()
    )
    return "\n".join(lines) + "\n"


def _finds_gpu(framework: str) -> bool:
    try:
        if framework == "torch":
            import torch

            return bool(torch.cuda.is_available())
        import jax

        return bool(jax.default_backend() == "gpu")
    except ImportError:
        return False
