"""torch.compile traces the layers and functions whole, and again where their view differs."""

import functools

import keras
import numpy as np
import pytest
from keras import ops
from kinds import MAKERS, assert_close, expected, make, randomize

import truenorm

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="torch.compile is PyTorch's"
)


@pytest.fixture
def compile_whole():
    """torch.compile that raises where it would leave the graph, without generating code."""
    import torch

    torch.compiler.reset()
    yield lambda function: torch.compile(function, backend="aot_eager", fullgraph=True)
    torch.compiler.reset()


@pytest.mark.parametrize("kind", MAKERS)
def test_a_layer_with_and_without_a_mask(kind, rng, compile_whole):
    layer = make(kind)
    layer.build((3, 6, 4))
    randomize(layer, rng)
    x = rng.normal(0.5, 2, (3, 6, 4)).astype("float32")
    mask = rng.random((3, 6)) < 0.7
    traced = compile_whole(lambda x, mask: layer(x, mask=mask))
    tensors = ops.convert_to_tensor(x), ops.convert_to_tensor(mask)
    assert_close(traced(tensors[0], None), expected(layer, x))
    assert_close(traced(*tensors), expected(layer, x, mask))


@pytest.mark.parametrize("learned", [False, True])
def test_filter_response_normalization(learned, rng, compile_whole):
    layer = truenorm.FilterResponseNormalization(axis=1, learned_epsilon=learned)
    x = rng.normal(0.5, 2, (3, 6, 4)).astype("float32")
    layer.build(x.shape)
    randomize(layer, rng)
    traced = compile_whole(layer)
    tensor = ops.convert_to_tensor(x)
    assert_close(traced(tensor), ops.convert_to_numpy(layer(tensor)))


def test_layers_of_different_views_and_inputs_of_different_sizes(rng, compile_whole):
    # What is compiled for one layer must not serve another of the same class.
    traced = compile_whole(lambda layer, x: layer(x))
    for axis in (3, 1, [1, 3]):
        layer = make("layer", axis=axis)
        layer.build((4, 4, 5, 10))
        randomize(layer, rng)
        for samples in (4, 7):
            x = rng.normal(0.5, 2, (samples, 4, 5, 10)).astype("float32")
            assert_close(traced(layer, ops.convert_to_tensor(x)), expected(layer, x))


def test_an_axis_that_is_an_argument_of_the_compiled_function(rng, compile_whole):
    traced = compile_whole(
        lambda x, gamma, axis: truenorm.ops.layer_normalization(x, gamma, axis=axis)
    )
    x = rng.normal(0.5, 2, (3, 5, 6, 4)).astype("float32")
    for axis in (1, 2, 3, -3):
        layer = truenorm.LayerNormalization(axis=axis, center=False)
        layer.build(x.shape)
        randomize(layer, rng)
        gamma = layer.gamma.value.detach()
        assert_close(traced(ops.convert_to_tensor(x), gamma, axis), expected(layer, x))


@pytest.mark.parametrize("kind", MAKERS)
def test_gradients(kind, rng, compile_whole):
    layer = make(kind)
    layer.build((3, 6, 4))
    randomize(layer, rng)
    x, cotangent = (ops.convert_to_tensor(one) for one in rng.normal(1, 2, (2, 3, 6, 4)))
    x, cotangent = x.float(), cotangent.float()
    gradients = []
    for function in (layer, compile_whole(layer)):
        argument = x.clone().requires_grad_()
        layer.zero_grad()
        function(argument).backward(cotangent)
        gradients.append([argument.grad, *(one.value.grad.clone() for one in layer.weights)])
    for eager, traced in zip(*gradients, strict=True):
        assert_close(traced, ops.convert_to_numpy(eager).astype("float64"))


class Sevens:
    name = "native"

    def normalize(self, call, x, *operands):
        return x * 0 + 7


def test_use_implementation_compiles_again(monkeypatch, compile_whole):
    engines = (Sevens(), truenorm.ops.FRONT.engines[-1])
    monkeypatch.setattr(truenorm.ops, "FRONT", truenorm.ops.FRONT._replace(engines=engines))
    traced = compile_whole(lambda x: truenorm.ops.layer_normalization(x))
    x = ops.convert_to_tensor(np.arange(24, dtype="float32").reshape(2, 3, 4))
    with truenorm.use_implementation("plain"):
        assert np.all(ops.convert_to_numpy(traced(x)) < 7)
    assert np.all(ops.convert_to_numpy(traced(x)) == 7)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"virtual_batch_size": 4, "unbiased": True}, {"renorm": True}], ids=str
)
def test_batch_normalization_in_training(options, masked, rng, compile_whole):
    """Each call also assigns the moving statistics."""
    found = []
    batches = rng.normal(30, 2, (3, 8, 6, 5)).astype("float32")
    mask = ops.convert_to_tensor(rng.random((8, 6)) < 0.7) if masked else None
    for compiled in (False, True):
        layer = truenorm.BatchNormalization(momentum=0.8, **options)
        layer.build((None, 6, 5))
        step = compile_whole(layer) if compiled else layer
        ys = [step(ops.convert_to_tensor(x), training=True, mask=mask) for x in batches]
        found.append([*map(ops.convert_to_numpy, ys), *layer.get_weights()])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_batch_normalization_in_a_compiled_fit(rng, monkeypatch, compile_whole):
    import torch

    # Keras' own step is no single graph, and generating code for it takes a minute.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    x = rng.normal(30, 2, (24, 6, 5)).astype("float32")
    layer = truenorm.BatchNormalization(momentum=0.8)
    model = keras.Sequential([keras.Input((6, 5)), layer, keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.01), "mse", jit_compile=True)
    model.fit(x, x[..., :1], batch_size=8, epochs=2, shuffle=False, verbose=0)
    mean, variance = np.zeros(5), np.ones(5)
    for batch in [*np.split(x.astype("float64"), 3)] * 2:
        mean = 0.8 * mean + 0.2 * batch.mean((0, 1))
        variance = 0.8 * variance + 0.2 * batch.var((0, 1))
    np.testing.assert_allclose(ops.convert_to_numpy(layer.moving_mean), mean, rtol=1e-5)
    np.testing.assert_allclose(ops.convert_to_numpy(layer.moving_variance), variance, rtol=1e-5)
