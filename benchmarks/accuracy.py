"""How far truenorm's and Keras' normalizations are from float64, as a Markdown table.

    KERAS_BACKEND=jax python benchmarks/accuracy.py     this backend
    python benchmarks/accuracy.py --all                 every installed backend, merged

Input: normal float32 numbers of the given mean and standard deviation; gamma is 1, beta 0,
epsilon the layers' own. The exact result is computed in float64 from the same float32 input.
Each function is compiled as `fit` does: with XLA on TensorFlow and JAX, eager on PyTorch.

- y: the largest |y - exact| / max(1, |exact|). truenorm promises 2e-6.
- dx: the largest error of the gradient for a random cotangent dy, in units of the largest |dy|
  over sqrt(variance + epsilon) of its group. truenorm promises 4e-6.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

BACKENDS = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}
GRID = [(0, 1), (100, 1), (1000, 1), (1000, 0.1), (10000, 1)]  # mean, standard deviation
# Layer, shape of the input, and the arguments.
LAYERS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "GroupNormalization": ((8, 28, 28, 64), {"groups": 32, "axis": -1}),
    "LayerNormalization": ((2048, 768), {"axis": -1}),
    "RMSNormalization": ((2048, 768), {"axis": -1}),
}
Result = dict[str, Any]


def forward_and_gradient(layer: Any, x: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, ...]:
    """y and the gradient of sum(dy * y) with respect to x, on the active backend."""
    import keras

    layer.build(x.shape)
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        weights = [weight.value for weight in layer.variables]

        def both(x: Any, dy: Any) -> tuple[Any, Any]:
            y, pull = jax.vjp(lambda one: layer.stateless_call(weights, [], one)[0], x)
            return y, pull(dy)[0]

        y, dx = jax.jit(both)(x, dy)
        return np.asarray(y), np.asarray(dx)
    if backend == "tensorflow":
        import tensorflow as tf

        def both_on_tape(x: Any, dy: Any) -> tuple[Any, Any]:
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x)
            return y, tape.gradient(y, x, output_gradients=dy)

        y, dx = tf.function(both_on_tape, jit_compile=True)(tf.constant(x), tf.constant(dy))
        return y.numpy(), dx.numpy()
    import torch

    leaf = torch.tensor(x, requires_grad=True)
    y = layer(leaf)
    y.backward(torch.tensor(dy))
    assert leaf.grad is not None
    return y.detach().numpy(), leaf.grad.numpy()


def measure(name: str, mean: float, sd: float) -> dict[str, dict[str, float]]:
    """The errors of truenorm's and Keras' layer of this name: {"y" or "dx": {library: error}}."""
    import keras

    import truenorm
    from truenorm.core import reference
    from truenorm.core.kinds import KINDS

    shape, options = LAYERS[name]
    rng = np.random.default_rng(0)
    x = (mean + sd * rng.standard_normal(shape)).astype("float32")
    dy = rng.standard_normal(shape).astype("float32")
    errors: dict[str, dict[str, float]] = {"y": {}, "dx": {}}
    for library, layers in (("truenorm", truenorm.layers), ("Keras", keras.layers)):
        if not hasattr(layers, name):
            continue
        layer = getattr(layers, name)(**options)
        y, dx = forward_and_gradient(layer, x, dy)
        kind = next(one for one in KINDS.values() if one.keras == name)
        view = kind.view(shape, **{"axis": -1, **options})
        setting = {"epsilon": layer.epsilon, "centered": kind.centered}
        x64, dy64 = x.astype("float64"), dy.astype("float64")
        exact = reference.normalize(x64, None, None, view, **setting)
        slope, _, _ = reference.gradient(x64, None, None, dy64, view, **setting)
        # (samples, reduced, groups, reduced): for layer and RMS (1, 1, rows, width).
        sizes = view.sizes(shape)

        def grouped(t: np.ndarray, sizes: tuple[int, ...] = sizes) -> np.ndarray:
            return t.reshape(sizes)

        xv = grouped(x64)
        power = xv.var((1, 3)) if setting["centered"] else (xv**2).mean((1, 3))
        unit = np.abs(grouped(dy64)).max((1, 3)) / np.sqrt(power + layer.epsilon)
        errors["y"][library] = float((np.abs(y - exact) / np.maximum(1, np.abs(exact))).max())
        errors["dx"][library] = float((np.abs(grouped(dx - slope)).max((1, 3)) / unit).max())
    return errors


def measure_all() -> Result:
    """Every layer at every point of the grid: {"layer mean sd": errors}."""
    return {
        f"{name} {mean:g} {sd:g}": measure(name, mean, sd) for name in LAYERS for mean, sd in GRID
    }


def in_subprocess(backend: str) -> Result:
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, __file__, "--json"]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    result: Result = json.loads(done.stdout.splitlines()[-1])
    return result


def table(results: dict[str, Result], quantity: str) -> str:
    """A Markdown table with a row for each layer and input, and two columns for each backend."""

    def number(errors: dict[str, float], library: str) -> str:
        error = errors.get(library)
        return "" if error is None else "NaN" if np.isnan(error) else f"{error:.0e}"

    heads = [f"{library}, {name}" for name in results for library in ("truenorm", "Keras")]
    lines = [f"| {quantity} | mean, sd | {' | '.join(heads)} |", "|---" * (len(heads) + 2) + "|"]
    for key in next(iter(results.values())):
        name, mean, sd = key.split()
        cells = [
            number(result[key][quantity], library)
            for result in results.values()
            for library in ("truenorm", "Keras")
        ]
        lines.append(f"| {name} | {mean}, {sd} | {' | '.join(cells)} |")
    return "\n".join(lines)


def show(results: dict[str, Result], say: Callable[[str], None] = print) -> None:
    for quantity in ("y", "dx"):
        say(f"\n{table(results, quantity)}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--all", action="store_true", help="run every installed backend")
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of tables")
    options = parser.parse_args()
    if options.all:
        installed = [name for name in BACKENDS if importlib.util.find_spec(name)]
        results = {BACKENDS[name]: in_subprocess(name) for name in installed}
    else:
        import keras

        backend = keras.backend.backend()
        if backend not in BACKENDS:
            parser.error(f"KERAS_BACKEND={backend} has no gradients; use {', '.join(BACKENDS)}")
        results = {BACKENDS[backend]: measure_all()}
    if options.json:
        print(json.dumps(results if options.all else next(iter(results.values()))))
    else:
        show(results)


if __name__ == "__main__":
    main()
