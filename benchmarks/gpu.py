"""The GPU kernels on a GPU: first every number, then the speed table. At most five minutes.

    python benchmarks/gpu.py [--out FOLDER] [--frameworks torch,jax] [--interpreted]

Numbers: cases of every kind against the formula in float64 on the CPU, with the bounds of the
promise; the same bits from run to run, and for a sample alone or in a batch; more elements than 32
bits count; a second stream, a CUDA graph, torch.compile, autocast. Then the table of `truenorm
bench --device cuda`. It writes numbers.json, speed.json and speed.md, and ends with exit code 1
when a number is wrong. It needs PyTorch, Triton and NumPy, for JAX also jax-triton, and no pytest.

With --interpreted the numbers come from Triton's interpreter on the CPU, a few for each check, and
the table from tiny tensors: that shows that the program runs, nothing else.
"""

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import pathlib
import sys
import time
import traceback

ROOT = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ.setdefault("KERAS_BACKEND", "torch")

DTYPES = ("float32", "bfloat16", "float16", "float64")
ACTIVATIONS = ("relu", "silu", "gelu", "gelu_tanh")


def runs(interpreted):
    """What is computed: way or shape, and the options of `gpu_kernels.running.Run`."""
    from gpu_kernels.running import BATCH, WAYS

    ways = ["rows", "columns", "batch: last"] if interpreted else [*WAYS, *map(of_batch, BATCH)]
    for way in ways:
        for dtype in DTYPES[:2] if interpreted else DTYPES:
            yield way, {"dtype": dtype}
        yield way, {"mean": -1e4}
        yield way, {"mean": 1000.0, "sd": 0.1}
        yield way, {"act": "silu", "residual": True}
        yield way, {"act": "silu", "dtype": "bfloat16"}
    for way in ways if interpreted else ("rows", "pixels", "columns", "wide rows"):
        for act in ACTIVATIONS:
            yield way, {"act": act, "residual": act == "gelu"}
    for way in () if interpreted else LARGE:
        yield way, {"mean": 1000.0, "sd": 0.1}
        yield way, {"dtype": "bfloat16"}


# Shapes as networks have them, small enough for float64 on the CPU.
LARGE = {
    "rows of 1024": ("layer", (512, 1024), {}),
    "rows of 8192": ("rms", (64, 8192), {}),
    "rows of 50257": ("layer", (32, 50257), {}),
    "rows of 65536": ("layer", (32, 65536), {}),
    "rows of a million": ("instance", (2, 2, 1024, 1024), {"axis": 1}),
    "pixels of 256 channels": ("layer", (4, 256, 56, 56), {"axis": 1}),
    "pixels of 768 channels": ("layer", (4, 768, 14, 14), {"axis": 1}),
    "group last": ("group", (4, 56, 56, 256), {"groups": 32}),
    "group last, split": ("group", (2, 256, 256, 128), {"groups": 32}),
    "instance last, split": ("instance", (2, 128, 128, 64), {}),
    "group first": ("group", (4, 256, 56, 56), {"groups": 32, "axis": 1}),
    "batch last": ("batch", (8, 56, 56, 256), {}),
    "batch first": ("batch", (8, 256, 56, 56), {"axis": 1}),
    "batch first, few samples": ("batch", (2, 8, 1024, 1024), {"axis": 1}),
    "batch of rows": ("batch", (4096, 1024), {}),
}


def of_batch(way):
    """A way of batch normalization by its name here."""
    return f"batch: {way}"


def case_of(way):
    from cases import Case
    from gpu_kernels.running import BATCH, WAYS

    cases = WAYS | {of_batch(one): case for one, case in BATCH.items()}
    return cases[way] if way in cases else Case(way, *LARGE[way])


def torch_numbers(task):
    """One run of PyTorch: its errors, and whether bits stay, from run to run and alone."""
    import torch

    from gpu_kernels.running import Run

    way, options, device = task
    name = " ".join([f"torch, {way}", *(f"{k}={v}" for k, v in options.items())])
    try:
        case = case_of(way)
        run, again = (Run(case, device=device, **options) for _ in range(2))
        errors = run.errors()
        assert again.compute() is None
        wrong = [
            f"{k} errs {one:.2f} times the promise" for k, one in errors.items() if not one <= 1
        ]
        pairs = {"y": (run.y, again.y), "dx": (run.x.grad, again.x.grad)}
        pairs["dgamma"] = run.gamma.grad, again.gamma.grad
        mixes = case.function == "batch"
        if not mixes and (0 in case.view.parameter_axes or case.shape[0] > 1):
            alone = Run(case, device=device, **options)
            kept = ("gamma", "beta") if case.per_sample else ()
            for one in (
                "x",
                "dy",
                *kept,
                *(("residual", "ds") if run.residual is not None else ()),
            ):
                part = getattr(run, one).detach()[1:2].clone().requires_grad_()
                setattr(alone, one, part)
            assert alone.compute() is None
            pairs["y of a sample alone"] = run.y[1:2], alone.y
            pairs["dx of a sample alone"] = run.x.grad[1:2], alone.x.grad
        wrong += [f"{k}: other bits" for k, (a, b) in pairs.items() if not torch.equal(a, b)]
        return {"name": name, "errors": {k: float(v) for k, v in errors.items()}, "wrong": wrong}
    except Exception:
        return {"name": name, "errors": {}, "wrong": [traceback.format_exc(limit=-3)]}


def jax_numbers(task):
    """One run of JAX under jit: its errors, and whether it was the kernels that computed it."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from cases import EPSILON
    from gpu_kernels.running import errors_of
    from promise import Expected
    from truenorm.core.call import Call
    from truenorm.core.engine import normalize
    from truenorm.jax import FRONT

    way, options, _ = task
    name = " ".join([f"jax, {way}", *(f"{k}={v}" for k, v in options.items())])
    try:
        case, dtype = case_of(way), options.get("dtype", "float32")
        rng = np.random.default_rng(0)
        view = case.view.vary_over(0) if case.per_sample else case.view
        act = options.get("act")
        call = Call(view, case.centered, EPSILON, act)
        mean, sd = options.get("mean", 5.0), options.get("sd", 1.0)
        x = jnp.asarray(mean + sd * rng.standard_normal(case.shape), dtype)
        dy = jnp.asarray(rng.standard_normal(case.shape), dtype)
        gamma, beta = (
            jnp.asarray(rng.standard_normal(case.parameter_shape), jnp.float32) for _ in range(2)
        )
        beta = beta if case.has_beta else None

        def function(x, gamma, beta):
            return normalize(FRONT, None, call, x, gamma, beta)

        @jax.jit
        def both(x, gamma, beta, dy):
            y, pullback = jax.vjp(function, x, gamma, beta)
            return y, pullback(dy)

        text = both.lower(x, gamma, beta, dy).as_text()
        y, (dx, dgamma, dbeta) = both(x, gamma, beta, dy)
        wide = [None if one is None else np.asarray(one, np.float64) for one in (x, gamma, beta)]
        expected = Expected(
            case, wide[0], wide[1], 0 * wide[1] if beta is None else wide[2], dtype=dtype
        )
        given = [
            None if one is None else np.asarray(one, np.float64) for one in (dx, dgamma, dbeta)
        ]
        y, dy = (np.asarray(one, np.float64) for one in (y, dy))
        errors = errors_of(expected, act, dy, y, given)
        wrong = [
            f"{k} errs {one:.2f} times the promise" for k, one in errors.items() if not one <= 1
        ]
        if "triton_kernel_call" not in text:
            wrong.append("XLA was not given the kernels")
        return {"name": name, "errors": {k: float(v) for k, v in errors.items()}, "wrong": wrong}
    except Exception:
        return {"name": name, "errors": {}, "wrong": [traceback.format_exc(limit=-3)]}


def check(name, function):
    """A check that raises where it fails, as a row."""
    start = time.monotonic()
    try:
        function()
        wrong = []
    except Exception:
        wrong = [traceback.format_exc(limit=-3)]
    return {"name": f"torch, {name}", "errors": {}, "wrong": wrong, "s": time.monotonic() - start}


def torch_checks():
    """What only a GPU shows, besides the cases."""
    import torch

    import truenorm.torch.functional as F

    def draw(*shape, dtype=torch.float32):
        return torch.randn(*shape, device="cuda", dtype=dtype)

    def second_stream():
        x = draw(64, 56, 56, 64)
        wanted = F.group_norm(x, 8, axis=-1)
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            slow = x
            for _ in range(20):
                slow = slow * 1.0
            found = F.group_norm(slow, 8, axis=-1)
        stream.synchronize()
        assert torch.equal(found, wanted)

    def cuda_graph():
        x = draw(8, 28, 28, 64)
        F.group_norm(x, 8, axis=-1)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = F.group_norm(x, 8, axis=-1)
        x.copy_(draw(8, 28, 28, 64))
        graph.replay()
        assert torch.equal(y, F.group_norm(x, 8, axis=-1))

    def compiled():
        x, weight = draw(8, 28, 28, 64).requires_grad_(), draw(64).requires_grad_()

        def function(x, weight):
            return F.group_norm(x, 8, weight, axis=-1, activation="silu")

        wanted = function(x, weight)
        dx, dweight = torch.autograd.grad(wanted, (x, weight), torch.ones_like(wanted))
        found = torch.compile(function, fullgraph=True)(x, weight)
        gradients = torch.autograd.grad(found, (x, weight), torch.ones_like(found))
        torch.testing.assert_close((found, *gradients), (wanted, dx, dweight), rtol=2e-6, atol=1e-5)

    def autocast():
        x, weight = draw(64, 256, dtype=torch.bfloat16), draw(256)
        with torch.autocast("cuda", torch.bfloat16):
            y = F.layer_norm(x, 256, weight)
        assert y.dtype is torch.bfloat16
        torch.testing.assert_close(
            y.float(), F.layer_norm(x.float(), 256, weight), rtol=8e-3, atol=8e-3
        )

    def other_device():
        if torch.cuda.device_count() > 1:
            x = draw(8, 28, 28, 64)
            y = F.group_norm(x.to("cuda:1"), 8, axis=-1)
            assert torch.equal(y.to("cuda:0"), F.group_norm(x, 8, axis=-1))

    def channels_last_memory():
        x = draw(8, 64, 28, 28).to(memory_format=torch.channels_last)
        y = F.group_norm(x, 8)
        assert y.is_contiguous(memory_format=torch.channels_last)
        wanted = F.group_norm(x.double(), 8, implementation="plain")
        torch.testing.assert_close(y.double(), wanted, rtol=2e-6, atol=4e-6)

    def halves():
        """Training by halves, as over several devices, and inference, on the module's path."""
        from truenorm.core.call import Call
        from truenorm.core.kinds import KINDS
        from truenorm.torch import functional

        for shape, axis in (((8, 28, 28, 96), -1), ((8, 96, 28, 28), 1), ((2, 8, 512, 512), 1)):
            call = Call(KINDS["batch"].view(shape, axis), True, 1e-5)
            given = draw(*shape) + 10, draw(shape[axis]), draw(shape[axis])
            dy, results = draw(*shape), []
            for name, dtype in (("triton", torch.float32), ("plain", torch.float64)):
                engine = next(one for one in functional.FRONT.engines if one.name == name)
                x, gamma, beta = (one.to(dtype).requires_grad_() for one in given)
                statistics = engine.moments(call, x)
                y = engine.apply(call, x, statistics, gamma, beta)
                gradients = torch.autograd.grad(y, (x, gamma, beta), dy.to(dtype))
                results.append((y, statistics.variance, *gradients))
            for found, wanted in zip(*results, strict=True):
                size = float(wanted.detach().abs().max())
                torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5 * size)

    def many_rows():
        x = draw(2_200_000, 1024, dtype=torch.bfloat16)
        y = F.layer_norm(x, 1024)
        for part in (slice(0, 3), slice(2_097_150, 2_097_154), slice(-3, None)):
            assert torch.equal(y[part], F.layer_norm(x[part].clone(), 1024))

    def large_sample():
        x = draw(1, 40, 8000, 7000, dtype=torch.bfloat16)
        y = F.layer_norm(x, 40, axis=1)
        part = x[:, :, -2:].clone()
        assert torch.equal(y[:, :, -2:], F.layer_norm(part, 40, axis=1))

    checks = (
        second_stream, cuda_graph, compiled, autocast, other_device, channels_last_memory,
        halves, many_rows, large_sample,
    )  # fmt: skip
    for one in checks:
        yield check(one.__name__.replace("_", " "), one)
        torch.cuda.empty_cache()


def numbers(arguments):
    """All rows; the cases in several processes, as it is the compiler that takes the time."""
    device = "cpu" if arguments.interpreted else "cuda"
    tasks = [(way, options, device) for way, options in runs(arguments.interpreted)]
    rows = []
    context = multiprocessing.get_context("spawn")
    workers = 1 if arguments.interpreted else min(8, os.cpu_count() or 1)
    with concurrent.futures.ProcessPoolExecutor(workers, context) as pool:
        if "torch" in arguments.frameworks:
            rows += pool.map(torch_numbers, tasks)
    if arguments.interpreted:
        return rows
    if "torch" in arguments.frameworks:
        rows += torch_checks()
    if "jax" in arguments.frameworks:
        alone = [task for task in tasks if not task[1].get("residual")]
        wanted = [task for task in alone if task[1].get("dtype", "float32") in DTYPES[:2]]
        with concurrent.futures.ProcessPoolExecutor(min(workers, 4), context) as pool:
            rows += pool.map(jax_numbers, wanted)
    return rows


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "runs" / "gpu")
    parser.add_argument("--frameworks", default="torch,jax", type=lambda text: text.split(","))
    parser.add_argument("--interpreted", action="store_true")
    arguments = parser.parse_args()
    if arguments.interpreted:
        os.environ["TRITON_INTERPRET"] = "1"
    else:
        import torch

        if not torch.cuda.is_available():
            sys.exit("make gpu: PyTorch finds no GPU; --interpreted tries the program without one.")
    start = time.monotonic()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = numbers(arguments)
    (arguments.out / "numbers.json").write_text(json.dumps(rows, indent=1))
    wrong = [row for row in rows if row["wrong"]]
    worst = {}
    for row in rows:
        for name, error in row["errors"].items():
            worst[name] = max(worst.get(name, 0.0), error)
    for row in wrong:
        print(f"WRONG: {row['name']}: {'; '.join(row['wrong'])}")
    print(f"{len(rows) - len(wrong)} of {len(rows)} right in {time.monotonic() - start:.0f} s; the")
    print("largest errors, where 1 is what the promise allows:", json.dumps(worst))

    from truenorm.tools.bench import gpu

    gpu.report(arguments.out, arguments.frameworks, tiny=arguments.interpreted, force=True)
    print(f"{time.monotonic() - start:.0f} s in all")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
