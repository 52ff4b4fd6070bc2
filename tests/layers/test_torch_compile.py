"""torch.compile traces the layers and functions whole, and again where their view differs."""

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
