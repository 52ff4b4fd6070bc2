"""The native operations under TensorFlow: graphs, XLA, saving, second derivatives."""

import functools
import os
import subprocess
import sys
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework.config import disable_op_determinism

import truenorm
from truenorm import native, ops
from truenorm.core.call import Call
from truenorm.core.kinds import KINDS

REASON = native.unavailable("tensorflow")
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))


def group(x, gamma=None, beta=None, **options):
    return ops.group_normalization(x, gamma, beta, groups=3, **options)


def inputs(*shape):
    rng = np.random.default_rng(0)
    return [tf.constant(rng.standard_normal(one).astype("float32")) for one in (shape, 6, 6)]


def operations(function, *arguments):
    """The types of the operations in a concrete function, and in what it calls."""
    concrete = function.get_concrete_function(*arguments)
    found = {one.type for one in concrete.graph.get_operations()}
    for called in concrete.graph._functions.values():
        found |= {node.op for node in getattr(called, "cached_definition", called).node_def}
    return found


@pytest.mark.parametrize("spec", [(None, 4, 5, 6), (None, None, None, 6), (2, 4, 5, 6)], ids=str)
def test_graphs_with_unknown_sizes(spec):
    signature = tf.TensorSpec(spec, tf.float32)
    function = tf.function(lambda x: group(x, implementation="native"), [signature])
    assert function.get_concrete_function().output_shapes.as_list() == list(spec)
    for samples in (1, 2):
        x, *_ = inputs(2, 4, 5, 6)
        x = x if spec[0] else x[:samples]
        np.testing.assert_allclose(function(x), group(x, implementation="plain"), atol=2e-6)


def gradients(x, gamma, beta, implementation=None):
    with tf.GradientTape() as tape:
        tape.watch((x, gamma, beta))
        y = group(x, gamma, beta, implementation=implementation)
    return y, *tape.gradient(y, (x, gamma, beta), tf.reverse(x, [0]))


def nested(*arguments):
    return tf.function(tf.function(gradients, autograph=False), autograph=False)(*arguments)


def loop(x, gamma, beta):
    """The same after a loop of one turn, differentiated from outside."""
    with tf.GradientTape() as tape:
        tape.watch((x, gamma, beta))
        _, y = tf.while_loop(
            lambda i, _: i < tf.size(x) // 720,
            lambda i, _: (i + 1, group(x, gamma, beta)),
            (0, tf.zeros_like(x)),
        )
    return y, *tape.gradient(y, (x, gamma, beta), tf.reverse(x, [0]))


def tape_outside(x, gamma, beta):
    inner = tf.function(group, autograph=False)
    with tf.GradientTape() as tape:
        tape.watch((x, gamma, beta))
        y = inner(x, gamma, beta)
    return y, *tape.gradient(y, (x, gamma, beta), tf.reverse(x, [0]))


@pytest.mark.parametrize("way", [gradients, nested, loop, tape_outside])
def test_a_graph_has_the_plain_formula_and_runs_the_native_one(way):
    """The kernels give the same bits in eager calls; the plain formula gives others."""
    arguments = inputs(6, 4, 5, 6)
    function = way if way is tape_outside else tf.function(way, autograph=False)
    if way is not tape_outside:
        assert not any("Truenorm" in one for one in operations(function, *arguments))
    found, native = function(*arguments), gradients(*arguments)
    plain = gradients(*arguments, implementation="plain")
    for name, *one in zip(("y", "dx", "dgamma", "dbeta"), found, native, plain, strict=True):
        found_one, native_one, plain_one = one
        np.testing.assert_array_equal(found_one, native_one, err_msg=name)
        assert not np.array_equal(found_one, plain_one), name


def test_the_optimizer_may_be_off():
    """Then a graph runs the plain formula."""
    arguments = inputs(2, 4, 5, 6)
    options = tf.config.optimizer.get_experimental_options()
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    try:
        function = tf.function(gradients, autograph=False)
        found = function(*arguments)
    finally:
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False, **options})
    for one, plain in zip(found, gradients(*arguments, implementation="plain"), strict=True):
        np.testing.assert_allclose(one, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_backward_takes_the_statistics_of_the_plain_formula(dtype):
    x, gamma, beta = inputs(2, 4, 5, 6)
    x = tf.cast(x, dtype)
    gamma, beta = (one if dtype != "float64" else tf.cast(one, dtype) for one in (gamma, beta))
    kernels = native.engine("tensorflow")
    call = Call(KINDS["group"].view(x.shape, axis=-1, groups=3), True, 1e-3)
    y, statistics = kernels._forward(call, x, gamma, beta)
    _, plain = kernels._plain_forward(call, x, gamma, beta)
    for one, other in zip(plain.numpy(), statistics.numpy(), strict=True):
        unit = np.finfo(one.dtype).eps
        (mean, rest, variance), (high, low, wanted) = one, other
        np.testing.assert_allclose(mean + rest, high + low, rtol=8 * unit, atol=8 * unit)
        np.testing.assert_allclose(variance, wanted, rtol=8 * unit)
    expected = kernels._backward(call, x, gamma, y, statistics)
    for one, other in zip(kernels._backward(call, x, gamma, y, plain), expected, strict=True):
        unit = np.finfo(one.numpy().dtype).eps
        np.testing.assert_allclose(one, other, rtol=8 * unit, atol=8 * unit)


def second(implementation, x, gamma, beta, group=group):
    """Value, gradients, and those of a gradient penalty."""
    with tf.GradientTape() as outer:
        outer.watch((x, gamma))
        with tf.GradientTape() as inner:
            inner.watch((x, gamma, beta))
            y = group(x, gamma, beta, implementation=implementation)
            loss = tf.reduce_sum(y**3)
        first = inner.gradient(loss, (x, gamma, beta))
        penalty = tf.reduce_sum((tf.norm(tf.reshape(first[0], (2, -1)), axis=1) - 1) ** 2)
    return y, *first, *outer.gradient(penalty, (x, gamma))


def second_outside(implementation, x, gamma, beta):
    """The same with a compiled function inside of the tapes."""
    return second(implementation, x, gamma, beta, tf.function(group, autograph=False))


@pytest.mark.parametrize(
    "step", [second, tf.function(second), second_outside], ids=["eager", "compiled", "around"]
)
def test_a_gradient_penalty_matches_plain(step):
    arguments = inputs(2, 4, 5, 6)
    for found, plain in zip(step("native", *arguments), step("plain", *arguments), strict=True):
        scale = np.abs(plain).max()
        np.testing.assert_allclose(found, plain, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("compiled", ["nothing", "the function", "the derivative"])
def test_forward_mode(compiled):
    x, gamma, beta = inputs(2, 4, 5, 6)
    direction = tf.reshape(tf.range(240, dtype="float32") % 7, x.shape)

    def tangent(implementation):
        function = functools.partial(group, implementation=implementation)
        if compiled == "the function":
            function = tf.function(function, autograph=False)
        with tf.autodiff.ForwardAccumulator(x, direction) as accumulator:
            y = function(x, gamma, beta)
        return accumulator.jvp(y)

    step = tf.function(tangent, autograph=False) if compiled == "the derivative" else tangent
    expected = tangent("plain")
    np.testing.assert_allclose(step("native"), expected, rtol=1e-4, atol=1e-5)
    assert np.abs(expected).max() > 0.1


@pytest.mark.parametrize("nested", ["directly", "inner function", "loop"])
def test_xla_takes_plain(nested):
    x, *_ = inputs(2, 4, 5, 6)

    def loop(x):
        return tf.while_loop(lambda i, _: i < 2, lambda i, x: (i + 1, group(x)), (0, x))[1]

    inner = {"directly": group, "inner function": tf.function(group), "loop": loop}[nested]
    function = tf.function(lambda x: inner(x), jit_compile=True)
    assert not any("Truenorm" in one for one in operations(function, x))
    expected = group(group(x)) if nested == "loop" else group(x)
    np.testing.assert_allclose(function(x), expected, atol=1e-5)
    refused = tf.function(lambda x: group(x, implementation="native"), jit_compile=True)
    with pytest.raises(NotImplementedError, match="XLA compiles this function"):
        refused(x)


def test_xla_takes_plain_in_a_function_that_was_traced_before():
    x, *_ = inputs(2, 4, 5, 6)
    inner = tf.function(group, autograph=False)
    expected = inner(x)
    function = tf.function(lambda x: inner(x), autograph=False, jit_compile=True)
    np.testing.assert_allclose(function(x), expected, atol=1e-5)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_fit(jit_compile):
    disable_op_determinism()  # `compare` turns it on for good, and Keras then refuses XLA
    layers = [keras.Input((6, 4)), truenorm.GroupNormalization(2), keras.layers.Flatten()]
    model = keras.Sequential([*layers, keras.layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=jit_compile)
    history = model.fit(np.ones((8, 6, 4)) + np.arange(4), np.ones((8, 1)), verbose=0, epochs=3)
    assert history.history["loss"][-1] < history.history["loss"][0]


def test_a_server_needs_no_truenorm(tmp_path):
    model = keras.Sequential([keras.Input((None, 8)), truenorm.GroupNormalization(4)])
    x = np.random.default_rng(0).standard_normal((2, 5, 8)).astype("float32")
    expected = model.predict(x, verbose=0)  # traced once before it is saved
    np.save(tmp_path / "x.npy", x)
    model.export(tmp_path / "exported", verbose=False)
    tf.saved_model.save(model, tmp_path / "saved")
    module = tf.Module()
    module.model, signature = model, [tf.TensorSpec((None, None, 8))]
    module.call = tf.function(lambda x: model(x), input_signature=signature, autograph=False)
    with tf.GradientTape() as tape:  # traced with its gradient before it is saved
        watched = tf.constant(x)
        tape.watch(watched)
        y = module.call(watched)
    gradient = tape.gradient(y, watched, tf.reverse(watched, [0]))
    tf.saved_model.save(module, tmp_path / "module")
    code = (
        "import sys, numpy as np, tensorflow as tf\n"
        "x = np.load('x.npy')\n"
        "exported, saved = map(tf.saved_model.load, ('exported', 'saved'))\n"
        "np.save('y0.npy', exported.serve(x))\n"
        "run = saved.signatures['serving_default']\n"
        "np.save('y1.npy', list(run(tf.constant(x)).values())[0])\n"
        "x, module = tf.constant(x), tf.saved_model.load('module')\n"
        "with tf.GradientTape() as tape:\n"
        "    tape.watch(x)\n"
        "    y = module.call(x)\n"
        "np.save('y2.npy', y)\n"
        "np.save('dx.npy', tape.gradient(y, x, tf.reverse(x, [0])))\n"
        "assert 'truenorm' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    for name in ("y0.npy", "y1.npy", "y2.npy"):
        np.testing.assert_allclose(np.load(tmp_path / name), expected, atol=1e-5)
    np.testing.assert_allclose(np.load(tmp_path / "dx.npy"), gradient, atol=1e-5)
    assert np.abs(gradient).max() > 0.1


def test_which_operations_keep_what():
    """The backward operation reads x, gamma, dy and the statistics, and nothing else."""
    x, gamma, beta = inputs(2, 4, 5, 6)

    @tf.function
    def gradient(x, gamma, beta):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = group(x, gamma, beta, implementation="native")
        return tape.gradient(y, x)

    graph = gradient.get_concrete_function(x, gamma, beta).graph
    forward, backward = (one for one in graph.get_operations() if one.type == "PartitionedCall")

    def source(tensor):
        while tensor.op.type in ("Identity", "StopGradient"):
            tensor = tensor.op.inputs[0]
        return tensor

    kept = [source(one) for one in backward.inputs]
    assert len(kept) == 4
    assert kept[0] is source(forward.inputs[0])
    assert kept[3] is forward.outputs[1]


def test_two_threads_at_once():
    x, gamma, beta = inputs(8, 60, 50, 6)
    function = tf.function(lambda x: group(x, gamma, beta, implementation="native"))
    expected, wrong = function(x).numpy(), []

    def repeat():
        for _ in range(20):
            wrong.extend([1] if not np.array_equal(function(x).numpy(), expected) else [])

    workers = [threading.Thread(target=repeat) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert not any(worker.is_alive() for worker in workers)
    assert wrong == []
