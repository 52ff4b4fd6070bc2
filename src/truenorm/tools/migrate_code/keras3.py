"""What Keras 3 breaks in code written for Keras 2, as far as one file shows it; nothing is changed.

Each row of the tables is an error of Keras 3.15, or, where the advice says "ignored" or
"deprecated", a warning. tests/migrate_code/test_keras3.py holds the rows against Keras itself.
"""

import ast
import pathlib
from collections.abc import Iterator

from truenorm.tools.migrate_code.uses import Use

OPTIMIZERS = frozenset({"Adadelta", "Adagrad", "Adam", "Adamax", "Ftrl", "Nadam", "RMSprop", "SGD"})
RECURRENT = frozenset({"GRU", "LSTM", "RNN", "SimpleRNN"})
TRAINING = frozenset({"fit", "evaluate", "predict"})
ANY: frozenset[str] = frozenset()
_CACHED = "gone: pass it to a keras.utils.PyDataset"

# Arguments, the functions that take them (any where there is none), and what to write.
ARGUMENTS: list[tuple[str, frozenset[str], str]] = [
    ("alpha", frozenset({"LeakyReLU"}), "deprecated: write negative_slope="),
    ("batch_input_shape", ANY, "gone: begin with keras.Input(batch_shape=...)"),
    ("border_mode", ANY, "gone: write padding="),
    ("by_name", frozenset({"load_weights"}), "works for old .h5 files alone"),
    ("decay", OPTIMIZERS, "ignored: pass a schedule as learning_rate"),
    ("experimental_run_tf_function", frozenset({"compile"}), "gone: leave it out"),
    ("fused", frozenset({"BatchNormalization"}), "gone: leave it out"),
    ("input_length", frozenset({"Embedding"}), "deprecated: leave it out"),
    ("lr", OPTIMIZERS, "gone: write learning_rate="),
    ("max_queue_size", TRAINING, _CACHED),
    ("nb_epoch", frozenset({"fit"}), "gone: write epochs="),
    ("period", frozenset({"ModelCheckpoint"}), "gone: save_freq counts batches"),
    ("sample_weight_mode", frozenset({"compile"}), "gone: leave it out"),
    ("save_format", frozenset({"save_weights"}), "gone: the suffix says it, .weights.h5"),
    ("schedule_decay", frozenset({"Nadam"}), "gone: leave it out"),
    ("subsample", ANY, "gone: write strides="),
    ("time_major", RECURRENT, "gone: transpose with keras.ops.swapaxes(x, 0, 1)"),
    ("use_multiprocessing", TRAINING, _CACHED),
    ("workers", TRAINING, _CACHED),
    ("write_grads", frozenset({"TensorBoard"}), "gone: leave it out"),
]
# Methods of models, layers and optimizers.
METHODS = {
    "add_update": "gone: assign to the variable in call()",
    "evaluate_generator": "gone: evaluate takes generators",
    "fit_generator": "gone: fit takes generators",
    "get_output_at": "gone: use layer.output, or keep the tensor",
    "predict_classes": "gone: take keras.ops.argmax of predict",
    "predict_generator": "gone: predict takes generators",
    "predict_proba": "gone: use predict",
}
# Names below keras or tf.keras that are in neither.
NAMES = {
    "callbacks.experimental": "gone: see keras.callbacks.BackupAndRestore",
    "engine": "gone: it was internal; import from keras or keras.layers",
    "estimator": "gone: Keras 3 has nothing in its place",
    "experimental": "gone: see the parts of keras that are not experimental",
    "layers.AbstractRNNCell": "gone: derive from keras.layers.Layer, with state_size",
    "layers.CuDNNGRU": "gone: keras.layers.GRU uses cuDNN by itself",
    "layers.CuDNNLSTM": "gone: keras.layers.LSTM uses cuDNN by itself",
    "layers.DenseFeatures": "gone: use keras.utils.FeatureSpace",
    "layers.LocallyConnected1D": "gone: Keras 3 has nothing in its place",
    "layers.LocallyConnected2D": "gone: Keras 3 has nothing in its place",
    "layers.SyncBatchNormalization": "gone: BatchNormalization(synchronized=True)",
    "layers.advanced_activations": "gone: import from keras.layers",
    "layers.core": "gone: import from keras.layers",
    "layers.experimental.preprocessing": "gone: the layers are in keras.layers",
    "layers.merge": "gone: use keras.layers.add, concatenate and so on",
    "layers.normalization": "gone: import from keras.layers",
    "mixed_precision.experimental": "gone: use keras.mixed_precision.set_global_policy",
    "models.model_from_yaml": "gone: use keras.models.model_from_json",
    "optimizers.experimental": "gone: the optimizers are in keras.optimizers",
    "utils.generic_utils": "gone: import from keras.utils",
    "utils.multi_gpu_model": "gone: use keras.distribution or tf.distribute",
    "utils.np_utils": "gone: import from keras.utils",
    "utils.vis_utils": "gone: import from keras.utils",
    "wrappers.scikit_learn": "gone: use keras.wrappers.SKLearnClassifier and SKLearnRegressor",
}
SYMBOLIC = "a function of TensorFlow takes no symbolic tensor: use keras.ops, or a layer around it"


def find(source: bytes) -> list[Use]:
    """What breaks in a file, by its lines."""
    tree = ast.parse(source)
    roots = dict(_imports(tree))
    found = [Use(line, name, f"Keras 3: {advice}") for line, name, advice in _missing(tree, roots)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            for name, advice in _call(node):
                found.append(Use(node.lineno, name, f"Keras 3: {advice}"))
    scopes = (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef)
    for scope in ast.walk(tree):
        if isinstance(scope, scopes):
            for node, name in _symbolic(scope, roots):
                found.append(Use(node.lineno, name, f"Keras 3: {SYMBOLIC}"))
    return sorted(set(found))


def _imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """What the imported names stand for: K is keras.backend, tf is tensorflow."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.asname:
                    yield alias.asname, alias.name
                else:
                    root = alias.name.split(".")[0]
                    yield root, root
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def _full(node: ast.AST, roots: dict[str, str]) -> str:
    """The dotted name with the import put in the place of its first part; or nothing."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name) or node.id not in roots:
        return ""
    return ".".join((roots[node.id], *reversed(parts)))


def _below_keras(name: str) -> str:
    for root in ("tensorflow.keras.", "tensorflow.python.keras.", "keras."):
        if name.startswith(root):
            return name.removeprefix(root)
    return ""


def _missing(tree: ast.AST, roots: dict[str, str]) -> Iterator[tuple[int, str, str]]:
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Attribute, ast.Import, ast.ImportFrom)):
            continue
        names = []
        if isinstance(node, ast.Attribute):
            names = [_full(node, roots)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            below = _below_keras(name)
            # The name itself; of an import, what it begins with too.
            for row, advice in NAMES.items():
                whole = not isinstance(node, ast.Attribute) and below.startswith(f"{row}.")
                if below == row or whole:
                    yield node.lineno, f"keras.{row}", advice


def _call(node: ast.Call) -> Iterator[tuple[str, str]]:
    """What is broken in a call, whatever its object is."""
    function = getattr(node.func, "attr", getattr(node.func, "id", ""))
    is_method = isinstance(node.func, ast.Attribute)
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    for argument, functions, advice in ARGUMENTS:
        if argument in given and (function in functions or not functions):
            yield f"{function}({argument}=)", advice
    if is_method and function in METHODS:
        yield f".{function}()", METHODS[function]
    first = node.args[0] if node.args else None
    if function == "Input":
        shape = given.get("shape", first)
        if isinstance(shape, ast.Constant) and isinstance(shape.value, int):
            yield "Input(shape=int)", f"an error: write shape=({shape.value},)"
    path = given.get("filepath", first)
    if not isinstance(path, ast.Constant) or not isinstance(path.value, str):
        return
    suffixes = pathlib.PurePath(path.value).suffixes
    last = suffixes[-1] if suffixes else ""
    if is_method and function == "save" and len(node.args) < 2 and not last:
        yield f"save({path.value!r})", "an error: the name must end in .keras; or use model.export"
    elif is_method and function == "save_weights" and not path.value.endswith(".weights.h5"):
        yield f"save_weights({path.value!r})", "an error: the name must end in .weights.h5"
    elif function == "ModelCheckpoint":
        alone = getattr(given.get("save_weights_only"), "value", False)
        if alone and not path.value.endswith(".weights.h5"):
            yield f"ModelCheckpoint({path.value!r})", "an error: must end in .weights.h5"
        elif not alone and last not in (".keras", ".h5"):
            yield f"ModelCheckpoint({path.value!r})", "an error: the name must end in .keras"


def _symbolic(scope: ast.AST, roots: dict[str, str]) -> Iterator[tuple[ast.Call, str]]:
    """Calls of TensorFlow's functions on what comes from Input, through layers, in one scope."""
    symbolic: set[str] = set()
    for node in _in_order(scope):
        if isinstance(node, ast.Assign):
            value = _is_symbolic(node.value, symbolic)
            for target in node.targets:
                if isinstance(target, ast.Name):
                    (symbolic.add if value else symbolic.discard)(target.id)
        elif isinstance(node, ast.Call):
            name = _full(node.func, roots)
            if name.startswith("tensorflow.") and not name.startswith("tensorflow.keras"):
                values = [*node.args, *(keyword.value for keyword in node.keywords)]
                if any(_is_symbolic(value, symbolic) for value in values):
                    yield node, name.replace("tensorflow.", "tf.", 1)


def _in_order(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a scope, each after those in it, as they are evaluated."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)):
            yield from _in_order(child)
            yield child


def _is_symbolic(node: ast.AST, symbolic: set[str]) -> bool:
    """Whether a value is a symbolic tensor, as far as can be told."""
    if isinstance(node, ast.Name):
        return node.id in symbolic
    if isinstance(node, (ast.List, ast.Tuple)):
        return any(_is_symbolic(one, symbolic) for one in node.elts)
    if isinstance(node, ast.BinOp):
        return any(_is_symbolic(one, symbolic) for one in (node.left, node.right))
    if isinstance(node, ast.Subscript):
        return _is_symbolic(node.value, symbolic)
    if isinstance(node, ast.Call):
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name in ("Model", "compute_output_shape", "print", "len", "int_shape", "shape"):
            return False
        return name == "Input" or any(_is_symbolic(one, symbolic) for one in node.args)
    return False
