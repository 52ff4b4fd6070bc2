"""Run the old model and the new one on the same batch."""

import importlib.util
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import keras
import numpy as np

from truenorm.core.errors import InputError

Array = np.ndarray[Any, Any]
PROGRAM = pathlib.Path(__file__).with_name("saved_model_process.py")
SAMPLES, UNKNOWN = 4, 16  # sizes of the batch, and of axes of unknown size
LARGEST = 100_000_000  # numbers in an input


def random_batch(model: Any) -> list[Array]:
    """An input for each of the model's: numbers, or for models with an embedding its indices."""
    rng = np.random.default_rng(0)
    embeddings = [one for one in flat_layers(model) if isinstance(one, keras.layers.Embedding)]
    limit = min((one.input_dim for one in embeddings), default=None)
    batch = []
    for one in model.inputs:
        shape = (SAMPLES, *(UNKNOWN if size is None else size for size in one.shape[1:]))
        if math.prod(shape) > LARGEST:
            raise ValueError(f"its input of shape {shape} is too large to draw")
        dtype = keras.backend.standardize_dtype(one.dtype)
        integers = "int" in dtype or limit is not None
        drawn = rng.integers(0, limit or 2, shape) if integers else rng.standard_normal(shape)
        batch.append(drawn.astype("float32" if "bfloat16" in dtype else dtype))
    return batch


def flat_layers(layer: Any) -> list[Any]:
    """The layers inside a layer, at any depth."""
    from truenorm.tools.migrate.weights import sublayers

    return [one for _, _, child in sublayers(layer) for one in (child, *flat_layers(child))]


def predict(model: Any, batch: list[Array]) -> list[Array]:
    """What a Keras model makes of the batch."""
    outputs = model.predict(batch[0] if len(batch) == 1 else batch, verbose=0)
    return [np.asarray(one) for one in keras.tree.flatten(outputs)]


def difference(old: list[Array], new: list[Array]) -> float:
    """The largest |old - new| / max(1, |old|)."""
    if [one.shape for one in old] != [one.shape for one in new]:
        shapes = [one.shape for one in old], [one.shape for one in new]
        raise InputError(
            f"The old model's outputs have the shapes {shapes[0]}, the new one's {shapes[1]}."
        )
    wide = [(a.astype("float64"), b.astype("float64")) for a, b in zip(old, new, strict=True)]
    errors = [np.max(np.abs(a - b) / np.maximum(1, np.abs(a)), initial=0.0) for a, b in wide]
    return float(np.max(errors))


def run_saved_model(folder: str, model: Any, batch: list[Array], safe_mode: bool) -> list[Array]:
    """What a SavedModel makes of the batch, run by TensorFlow in another process.

    Raises:
        InputError: it cannot run here; the message says why.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise InputError("it needs TensorFlow, which is not installed")
    paths = os.pathsep.join(sys.path)
    environment = {"PYTHONPATH": paths, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    with tempfile.TemporaryDirectory() as temporary:
        exchange = pathlib.Path(temporary)
        np.savez(exchange / "in.npz", *batch)
        (exchange / "names.json").write_text(json.dumps([one.name for one in model.inputs]))
        mode = "safe" if safe_mode else "unsafe"
        done = subprocess.run(
            [sys.executable, "-P", str(PROGRAM), os.path.abspath(folder), temporary, mode],
            env=os.environ | environment,
            capture_output=True,
            check=False,
        )
        if (exchange / "error.txt").exists():
            raise InputError((exchange / "error.txt").read_text())
        if done.returncode or not (exchange / "out.npz").exists():
            raise InputError(f"TensorFlow did not survive it (exit code {done.returncode})")
        with np.load(exchange / "out.npz") as results:
            outputs = {name: results[name] for name in results.files}
    if len(outputs) == 1:
        return list(outputs.values())
    names = getattr(model, "output_names", [])
    if set(names) == set(outputs):
        return [outputs[name] for name in names]
    raise InputError(f"its outputs {sorted(outputs)} are not named as the model's")
