"""Run the old model and the new one on the same batch."""

import contextlib
import importlib.util
import math
import pathlib
import re
from typing import Any

import keras
import numpy as np

from evenkeel.errors import InputError

Array = np.ndarray[Any, Any]
SAMPLES, UNKNOWN = 4, 16  # sizes of the batch, and of axes of unknown size
LARGEST = 100_000_000  # numbers in an input
# Operations of TensorFlow with a state that a model may have; all others must have none ...
STATEFUL = re.compile(
    r"(VarHandleOp|(Stateful)?PartitionedCall|Placeholder|(Read|Assign|AssignAdd|AssignSub)VariableOp|"
    r"ResourceGather(Nd)?|If|While|Case|Assert|NoOp|Stateless\w+|TensorList\w+|TensorArray\w+|"
    r"(Truncated|Standard)?Random\w+|Multinomial|Stack\w*V2|Stateful\w*Normal\w*|Stateful\w*Uniform\w*)"
)
# ... and none of these, which read or write files, run Python, or load more.
REFUSED = re.compile(
    r"File|Save|Restore|Checkpoint|ImmutableConst|Dataset|PyFunc|Reader|Iterator|Print|Summary"
)


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
    from evenkeel.migrate.weights import sublayers

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
    """What a SavedModel makes of the batch, run by TensorFlow.

    Raises:
        InputError: it cannot run here; the message says why.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise InputError("it needs TensorFlow, which is not installed")
    import tensorflow as tf

    if safe_mode and (reason := unsafe(pathlib.Path(folder))):
        raise InputError(f"{reason}, which is not run unless safe_mode=False is passed")
    try:
        with tf.device("/CPU:0"):
            program = tf.saved_model.load(folder).signatures["serving_default"]
            specs = program.structured_input_signature[1]
            names = [tensor.name for tensor in model.inputs]
            if len(specs) == 1:
                names = list(specs)
            arguments = {
                name: tf.constant(array, specs[name].dtype)
                for name, array in zip(names, batch, strict=True)
            }
            results = {name: one.numpy() for name, one in program(**arguments).items()}
    except Exception as error:  # TensorFlow's many
        raise InputError(f"TensorFlow says: {type(error).__name__}: {str(error)[:200]}") from None
    if len(results) == 1:
        return list(results.values())
    with contextlib.suppress(KeyError, AttributeError):
        return [results[name] for name in model.output_names]
    raise InputError(f"its outputs {sorted(results)} are not named as the model's")


def unsafe(folder: pathlib.Path) -> str:
    """What a SavedModel's program does beyond computing, or "".

    Functions that read and write checkpoints are in every SavedModel; they count where another
    function or an object calls them.
    """
    from tensorflow.core.framework import function_pb2  # noqa: F401
    from tensorflow.core.protobuf import saved_model_pb2
    from tensorflow.python.framework import op_def_registry

    saved = saved_model_pb2.SavedModel()
    try:
        saved.ParseFromString((folder / "saved_model.pb").read_bytes())
    except Exception as error:
        return f"its program cannot be read ({type(error).__name__})"
    for graph in saved.meta_graphs:
        functions = {one.signature.name: one for one in graph.graph_def.library.function}
        bad, called = {}, set()
        for name, function in functions.items():
            for node in function.node_def:
                for value in node.attr.values():
                    called |= {value.func.name, *(one.name for one in value.list.func)}
                if node.op in functions:
                    called.add(node.op)
                    continue
                known = op_def_registry.get(node.op)
                if (
                    REFUSED.search(node.op)
                    or not known
                    or (known.is_stateful and not STATEFUL.fullmatch(node.op))
                ):
                    bad[name] = node.op
        for node in graph.object_graph_def.nodes:
            called |= set(node.function.concrete_functions)
            called.add(node.bare_concrete_function.concrete_function_name)
            if node.HasField("resource") or node.HasField("asset"):
                return "its program has a table or a file"
        if found := sorted(bad[name] for name in called & set(bad)):
            return f"its program has the operation {found[0]}"
    return ""
