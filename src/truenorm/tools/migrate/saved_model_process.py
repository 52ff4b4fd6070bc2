"""A process of its own in which TensorFlow runs a SavedModel, which is a program.

A broken one can crash TensorFlow; here that ends this process only. A malicious one is not run:
`unsafe` says what it does beyond computing. It is run by its path, by `verify.py`, and imports
nothing of truenorm.

It reads in.npz and names.json of a folder, and leaves out.npz or error.txt there.
"""

import json
import pathlib
import re
import sys
from typing import Any

import numpy as np

SECONDS = 300  # of computing

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


def unsafe(folder: pathlib.Path) -> str:
    """What a SavedModel's program does beyond computing, or "".

    Functions that read and write checkpoints are in every SavedModel; they count where another
    function or an object calls them.
    """
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


def run(folder: str, names: list[str], batch: list[Any]) -> dict[str, Any]:
    """The outputs by their names."""
    import tensorflow as tf

    program = tf.saved_model.load(folder).signatures["serving_default"]
    specs = program.structured_input_signature[1]
    if len(specs) == 1:
        names = list(specs)
    arguments = {
        name: tf.constant(array, specs[name].dtype)
        for name, array in zip(names, batch, strict=True)
    }
    return {name: one.numpy() for name, one in program(**arguments).items()}


def limit() -> None:
    """End the process after so much computing time, where the system can."""
    try:
        import resource
    except ImportError:  # Windows
        return
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    seconds = SECONDS if hard == resource.RLIM_INFINITY else min(SECONDS, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def main() -> None:
    """Run the program of argument 1 on what is in the folder of argument 2."""
    limit()
    folder, exchange, mode = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3]
    try:
        reason = unsafe(pathlib.Path(folder)) if mode == "safe" else ""
        if reason:
            reason += ", which is not run unless safe_mode=False is passed"
        else:
            with np.load(exchange / "in.npz") as stored:
                batch = [stored[name] for name in stored.files]
            names = json.loads((exchange / "names.json").read_text())
            np.savez(exchange / "out.npz", **run(folder, names, batch))
            return
    except Exception as error:  # TensorFlow's many
        reason = f"TensorFlow says: {type(error).__name__}: {str(error)[:200]}"
    (exchange / "error.txt").write_text(reason)


if __name__ == "__main__":
    main()
