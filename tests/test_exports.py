"""Programs that are exported have no operation of truenorm, and compute the same without it.

A road exports a model as a first batch asks for, looks at the program, and returns what it computes
for a second batch, whose sizes are others where the model leaves them open.
"""

import functools
import re
from pathlib import Path

import keras
import numpy as np
import pytest

import truenorm
from truenorm import ops

BACKEND = keras.backend.backend()
PAGE = Path(__file__).parents[1] / "docs/exporting.md"
CONSTANT = np.array([0.5, -1.0, 2.0, 1.5], "float32")


def batch(axis):
    """Batch normalization with moving statistics as after a training."""
    constant = keras.initializers.Constant
    return truenorm.BatchNormalization(
        axis, moving_mean_initializer=constant(0.5), moving_variance_initializer=constant(2.0)
    )


CHANNELS_LAST = {
    "batch": lambda: batch(-1),
    "group": lambda: truenorm.GroupNormalization(2),
    "instance": truenorm.InstanceNormalization,
    "layer": truenorm.LayerNormalization,
    "RMS": truenorm.RMSNormalization,
    "filter response": lambda: truenorm.FilterResponseNormalization(learned_epsilon=True),
    "group function": lambda: lambda x: ops.group_normalization(x, CONSTANT, groups=2),
    "RMS function": lambda: ops.rms_normalization,
}
CHANNELS_FIRST = {
    "batch": lambda: batch(1),
    "group": lambda: truenorm.GroupNormalization(2, axis=1),
    "instance": lambda: truenorm.InstanceNormalization(axis=1),
    "layer": lambda: truenorm.LayerNormalization(axis=1),
    "RMS": lambda: truenorm.RMSNormalization(axis=1),
    "filter response": lambda: truenorm.FilterResponseNormalization(axis=[2, 3]),
}
EVERY_LAYER = {
    **CHANNELS_LAST,
    "group in the middle": lambda: truenorm.GroupNormalization(3, axis=2),
    "batch over two axes": lambda: batch([1, 3]),
    "layer over two axes": lambda: truenorm.LayerNormalization(axis=[1, 3]),
    "instance function": lambda: lambda x: ops.instance_normalization(x, axis=1),
    "layer function": lambda: lambda x: ops.layer_normalization(x, beta=CONSTANT),
    "filter response function": lambda: ops.filter_response_normalization,
    "TLU": lambda: truenorm.TLU(affine=True),
    "weight": lambda: truenorm.WeightNormalization(keras.layers.Conv2D(4, 3, padding="same")),
    "spectral": lambda: truenorm.SpectralNormalization(keras.layers.Dense(4)),
    "Poincare": lambda: truenorm.PoincareNormalize(axis=-1),
}
# The input's shape, the layers, their axis of channels, and the shapes of two batches.
MODELS = {
    "every layer": ((6, 6, 4), EVERY_LAYER, -1, (2, 6, 6, 4), (3, 6, 6, 4)),
    "channels last": ((None, None, 4), CHANNELS_LAST, -1, (2, 6, 7, 4), (3, 9, 70, 4)),
    "channels first": ((4, None, None), CHANNELS_FIRST, 1, (2, 4, 6, 7), (3, 4, 9, 70)),
}


@functools.cache
def exporting(name):
    """The names of layers, a model with their results side by side, its axis, and two batches."""
    shape, layers, axis, *batches = MODELS[name]
    rng = np.random.default_rng(0)
    inputs = keras.Input(shape, name="x")
    results = [make()(inputs) for make in layers.values()]
    model = keras.Model(inputs, keras.layers.Concatenate(axis)(results))
    for one in model.trainable_weights:
        one.assign(one + rng.normal(0, 0.3, one.shape).astype("float32"))
    first, second = (rng.normal(3, 2, one).astype("float32") for one in batches)
    model.predict(first, verbose=0)  # as before an export: compiled, and initialized
    return list(layers), model, axis, first, second


def package(name):
    """A module that a road needs; without it the test is skipped."""
    return pytest.importorskip(name, reason=f"{name} is not installed")


def plain_graph(graph_def):
    """Assert that a graph of TensorFlow has nothing of truenorm's."""
    nodes = [
        *graph_def.node,
        *(node for one in graph_def.library.function for node in one.node_def),
    ]
    assert not {node.op for node in nodes if "truenorm" in node.op.lower()}


def run_onnx(path, x):
    package("onnxruntime")
    import onnx
    import onnxruntime

    graph = onnx.load(path)
    functions = {(one.domain, one.name) for one in graph.functions}
    nodes = [*graph.graph.node, *(node for one in graph.functions for node in one.node)]
    for node in nodes:
        assert node.domain in ("", "ai.onnx") or (node.domain, node.op_type) in functions
        assert node.op_type != "If"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def run_lite(content, x):
    from tensorflow import lite

    interpreter = lite.Interpreter(model_content=content)
    given = interpreter.get_input_details()[0]["index"]
    interpreter.resize_tensor_input(given, x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(given, x)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def run_saved_model(path, x, endpoint="serve"):
    import tensorflow as tf
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    content = SavedModel.FromString((Path(path) / "saved_model.pb").read_bytes())
    plain_graph(content.meta_graphs[0].graph_def)
    loaded = tf.saved_model.load(path)
    return getattr(loaded, endpoint)(x)


def run_openvino(path, x):
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    return package("openvino").Core().compile_model(path, "CPU", options)(x)[0]


def run_torch(path, x):
    import torch

    return run_exported(torch.export.load(path), x)


def run_exported(program, x):
    import torch

    assert not any("truenorm" in str(node.target) for node in program.graph.nodes)
    return program.module()(torch.from_numpy(x))


def concrete(model, first):
    """An ordinary tf.function of the model, traced; nothing told it that it will be exported."""
    import tensorflow as tf

    sizes = [None, *model.input_shape[1:]]
    return tf.function(lambda x: model(x)).get_concrete_function(tf.TensorSpec(sizes, name="x"))


def frozen_graph(model, first, second, folder):
    import tensorflow as tf
    from tensorflow.python.framework import convert_to_constants

    frozen = convert_to_constants.convert_variables_to_constants_v2(concrete(model, first))
    plain_graph(frozen.graph.as_graph_def())
    return frozen(tf.constant(second))[0]


def lite_of_a_function(model, first, second, folder):
    from tensorflow import lite

    converter = lite.TFLiteConverter.from_concrete_functions([concrete(model, first)])
    return run_lite(converter.convert(), second)


def lite_of_a_model(model, first, second, folder):
    from tensorflow import lite

    return run_lite(lite.TFLiteConverter.from_keras_model(model).convert(), second)


def tensorflow_to_onnx(model, first, second, folder):
    import tensorflow as tf

    path = str(folder / "model.onnx")
    specification = tf.TensorSpec([None, *model.input_shape[1:]], name="x")
    package("tf2onnx").convert.from_function(
        tf.function(lambda x: model(x)), [specification], output_path=path
    )
    return run_onnx(path, second)


def saved_module(model, first, second, folder):
    """A module whose function was called before, and so is saved as it was traced."""
    import tensorflow as tf

    module = tf.Module()
    module.model = model
    specification = tf.TensorSpec([None, *model.input_shape[1:]])
    module.function = tf.function(lambda x: model(x), input_signature=[specification])
    module.function(first)
    tf.saved_model.save(module, str(folder / "saved"))
    return run_saved_model(str(folder / "saved"), second, "function")


def jax_export(model, first, second, folder):
    import jax

    open_sizes = jax.export.symbolic_shape(",".join(f"n{axis}" for axis in range(first.ndim)))
    sizes = zip([None, *model.input_shape[1:]], open_sizes, strict=True)
    shape = tuple(symbol if size is None else size for size, symbol in sizes)
    asked = jax.ShapeDtypeStruct(shape, "float32")
    program = jax.export.export(jax.jit(lambda x: model(x)))(asked)
    assert "@truenorm" not in program.mlir_module()
    return jax.export.deserialize(program.serialize()).call(second)


def torch_jit_trace(model, first, second, folder):
    import torch

    traced = torch.jit.trace(model, torch.from_numpy(first))
    assert not any("truenorm" in node.kind() for node in traced.inlined_graph.nodes())
    return traced(torch.from_numpy(second))


def open_axes(model):
    return [axis for axis, size in enumerate([None, *model.input_shape[1:]]) if size is None]


def torch_export(model, first, second, folder):
    import torch

    dynamic = {axis: torch.export.Dim(f"n{axis}") for axis in open_axes(model)}
    program = torch.export.export(
        model, (torch.from_numpy(first),), dynamic_shapes=((dynamic,),), strict=False
    )
    return run_exported(program, second)


def torch_onnx(model, first, second, folder):
    import torch

    package("onnxscript")
    path = str(folder / "model.onnx")
    dynamic = {axis: torch.export.Dim(f"n{axis}") for axis in open_axes(model)}
    torch.onnx.export(
        model, (torch.from_numpy(first),), path, dynamic_shapes=((dynamic,),), verbose=False
    )
    return run_onnx(path, second)


def torch_onnx_of_a_trace(model, first, second, folder):
    import torch

    package("onnxscript")
    path = str(folder / "model.onnx")
    dynamic = {"x": {axis: f"n{axis}" for axis in open_axes(model)}}
    torch.onnx.export(
        model, (torch.from_numpy(first),), path,
        input_names=["x"], dynamic_axes=dynamic, dynamo=False,
    )  # fmt: skip
    return run_onnx(path, second)


def keras_export(model, folder, form, suffix="", **options):
    path = str(folder / f"model{suffix}")
    model.export(path, format=form, verbose=False, **options)
    return path


def keras_saved_model(model, first, second, folder):
    return run_saved_model(keras_export(model, folder, "tf_saved_model"), second)


def keras_onnx(model, first, second, folder):
    for name in {"tensorflow": ["tf2onnx"], "jax": ["flax", "jax2onnx"]}.get(BACKEND, []):
        package(name)
    return run_onnx(keras_export(model, folder, "onnx", ".onnx"), second)


def keras_openvino(model, first, second, folder):
    package("openvino")
    return run_openvino(keras_export(model, folder, "openvino", ".xml"), second)


def keras_lite(model, first, second, folder):
    content = Path(keras_export(model, folder, "litert", ".tflite")).read_bytes()
    return run_lite(content, second)


def keras_torch(model, first, second, folder):
    import torch

    dynamic = {axis: torch.export.Dim(f"n{axis}") for axis in open_axes(model)}
    return run_torch(keras_export(model, folder, "torch", ".pt2", dynamic_shapes=dynamic), second)


KERAS = 'keras.Model.export(format="{}")'
ROADS = {
    "tensorflow": {
        "convert_variables_to_constants_v2": frozen_graph,
        "tf.lite.TFLiteConverter.from_concrete_functions": lite_of_a_function,
        "tf.lite.TFLiteConverter.from_keras_model": lite_of_a_model,
        "tf.saved_model.save": saved_module,
        "tf2onnx.convert.from_function": tensorflow_to_onnx,
        KERAS.format("tf_saved_model"): keras_saved_model,
        KERAS.format("onnx"): keras_onnx,
        KERAS.format("openvino"): keras_openvino,
        KERAS.format("litert"): keras_lite,
    },
    "jax": {
        "jax.export.export": jax_export,
        KERAS.format("tf_saved_model"): keras_saved_model,
        KERAS.format("onnx"): keras_onnx,
    },
    "torch": {
        "torch.jit.trace": torch_jit_trace,
        "torch.export.export": torch_export,
        "torch.onnx.export": torch_onnx,
        "torch.onnx.export(dynamo=False)": torch_onnx_of_a_trace,
        KERAS.format("onnx"): keras_onnx,
        KERAS.format("openvino"): keras_openvino,
        KERAS.format("torch"): keras_torch,
    },
}


# The others are a step to or from one of these.
WITH_OPEN_SIZES = (
    *(frozen_graph, lite_of_a_function, jax_export),
    *(torch_jit_trace, torch_export, torch_onnx, torch_onnx_of_a_trace),
)
CASES = [
    (road, model)
    for road, take in ROADS[BACKEND].items()
    for model in MODELS
    if model == "every layer" or take in WITH_OPEN_SIZES
]


@pytest.mark.filterwarnings("ignore")  # the exporters'
@pytest.mark.parametrize(("road", "model"), CASES)
def test_an_exported_program(road, model, tmp_path):
    names, model, axis, first, second = exporting(model)
    expected = model.predict(second, verbose=0)
    found = ROADS[BACKEND][road](model, first, second, tmp_path)
    found = np.asarray(found.detach() if BACKEND == "torch" and hasattr(found, "detach") else found)
    assert found.shape == expected.shape
    parts = (np.split(one, len(names), axis) for one in (found, expected))
    for name, one, other in zip(names, *parts, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5, err_msg=name)


def test_the_page_names_every_road():
    """A row for each road, with yes under the backends for which it is tested here."""
    table = re.findall(r"^\| `(.+?)` \| (.*) \| (.*) \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    backends = ("tensorflow", "jax", "torch")
    tested = {road: ["yes" if road in ROADS[one] else "–" for one in backends]
              for roads in ROADS.values() for road in roads}  # fmt: skip
    assert {road: cells for road, *cells in table} == tested
