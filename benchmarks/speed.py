"""Time evenkeel's plain path beside Keras' layers, in one process and in turn.

    KERAS_BACKEND=jax python benchmarks/speed.py [--rounds 15] [--all]

Each round times every candidate once on the same float32 tensor: evenkeel, Keras' layer of the
same settings, and the framework's own elementwise a * 1.01, which moves two passes of memory.
The table gives evenkeel's median, and the medians over rounds of its ratio to Keras and to the
yardstick in the same round. JAX and TensorFlow run compiled (jit, tf.function), PyTorch eagerly.
--all runs it once for each backend that is installed.
"""

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import time

# name, layer, arguments of both layers, shape
CASES = [
    ("group, channels last", "Group", {"groups": 32}, (32, 56, 56, 64)),
    ("group, channels first", "Group", {"groups": 32, "axis": 1}, (32, 64, 56, 56)),
    ("group, small network", "Group", {"groups": 5}, (32, 26, 26, 10)),
    ("instance, channels last", "Group", {"groups": -1}, (8, 128, 128, 64)),
    ("instance, channels first", "Group", {"groups": -1, "axis": 1}, (8, 64, 128, 128)),
    ("layer, last axis", "Layer", {}, (8192, 768)),
    ("layer, pixels", "Layer", {"axis": 3}, (32, 26, 26, 10)),
    ("RMS, last axis", "RMS", {}, (8192, 768)),
]


def step(function, trained):
    """A callable of (x, cotangent) that computes the function, or also its gradient in x."""
    import keras

    match keras.backend.backend():
        case "jax":
            import jax

            def run(x, cotangent):
                return jax.vjp(function, x)[1](cotangent) if trained else function(x)

            compiled = jax.jit(run)
            return lambda x, cotangent: jax.block_until_ready(compiled(x, cotangent))
        case "tensorflow":
            import tensorflow as tf

            @tf.function
            def run(x, cotangent):
                if not trained:
                    return function(x)
                with tf.GradientTape() as tape:
                    tape.watch(x)
                    y = function(x)
                return tape.gradient(y, x, output_gradients=cotangent)

            return run
        case "torch":
            import torch

            def run(x, cotangent):
                if not trained:
                    with torch.no_grad():
                        return function(x)
                x = x.detach().requires_grad_()
                return torch.autograd.grad(function(x), x, cotangent)

            return run
        case other:
            sys.exit(f"the {other} backend has no gradients; set KERAS_BACKEND to another")


def measure(candidates, x, cotangent, rounds):
    """Milliseconds of each candidate in each round, after two rounds that are not counted."""
    times = [[] for _ in candidates]
    for _ in range(rounds + 2):
        for taken, run in zip(times, candidates, strict=True):
            start = time.perf_counter()
            run(x, cotangent)
            taken.append(1000 * (time.perf_counter() - start))
    return [taken[2:] for taken in times]


def report(rounds):
    """Print the table of the active backend."""
    import keras
    import numpy as np

    import evenkeel

    print(f"\nKeras {keras.__version__} on {keras.backend.backend()}, float32, {rounds} rounds\n")
    print("| case | | evenkeel, ms | times Keras | times a * 1.01 |\n|---|---|---|---|---|")
    rng = np.random.default_rng(0)
    for name, kind, options, shape in CASES:
        arrays = rng.standard_normal((2, *shape)).astype("float32")
        x, cotangent = (keras.ops.convert_to_tensor(one) for one in arrays)
        layers = [
            getattr(one, f"{kind}Normalization")(**options) for one in (evenkeel, keras.layers)
        ]
        for layer in layers:
            layer.build(shape)
        for trained in (False, True):
            candidates = [step(layer, trained) for layer in layers]
            candidates.append(step(lambda x: x * 1.01, False))
            ours, theirs, yardstick = measure(candidates, x, cotangent, rounds)
            to_keras, to_yardstick = (
                statistics.median(a / b for a, b in zip(ours, other, strict=True))
                for other in (theirs, yardstick)
            )
            what = "forward + backward" if trained else "forward"
            median = statistics.median(ours)
            print(f"| {name} | {what} | {median:.2f} | {to_keras:.2f} | {to_yardstick:.1f} |")


def main():
    """Read the options; run here or once per backend."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="counted rounds (15)")
    parser.add_argument("--all", action="store_true", help="every installed backend in turn")
    options = parser.parse_args()
    if not options.all:
        report(options.rounds)
        return
    for backend in ("tensorflow", "jax", "torch"):
        if importlib.util.find_spec(backend):
            environment = os.environ | {"KERAS_BACKEND": backend}
            command = [sys.executable, __file__, "--rounds", str(options.rounds)]
            subprocess.run(command, env=environment, check=True)


if __name__ == "__main__":
    main()
