"""What a wrapper refuses: layers without one kernel, and what would change it unseen."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from kinds import assert_close

import truenorm

both = pytest.mark.parametrize(
    "wrap", [truenorm.WeightNormalization, truenorm.SpectralNormalization]
)


def numpy(value):
    return ops.convert_to_numpy(value).astype("float64")


@both
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: layers.MultiHeadAttention(2, 4), (None, 5, 8)),
        (lambda: layers.GroupQueryAttention(4, 2, 2), (None, 5, 8)),
        (lambda: layers.SeparableConv2D(3, 2), (None, 5, 5, 8)),
        (lambda: layers.Bidirectional(layers.SimpleRNN(3)), (None, 5, 8)),
        (lambda: layers.StackedRNNCells([layers.GRUCell(2)]), (None, 8)),
        (lambda: keras.Sequential([layers.Dense(2)]), (None, 8)),
        (lambda: keras.Model(x := keras.Input((8,)), layers.Dense(2)(x)), (None, 8)),
        (lambda: layers.Lambda(lambda x: x), (None, 8)),
        (lambda: layers.Dense(2, dtype="int8_from_float32"), (None, 8)),
    ],
)
def test_layers_without_one_kernel(wrap, layer, shape):
    layer = layer()
    wanted = rf"normalizes a variable named kernel.*{type(layer).__name__} '{layer.name}' has none"
    with pytest.raises(ValueError, match=wanted):
        wrap(layer, name="mine").build(shape)


@both
@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have a `quantize`")
@pytest.mark.parametrize("mode", ["int8", "int4", "float8"])
def test_quantization_leaves_a_wrapped_layer_as_it_is(wrap, mode, rng):
    x = rng.normal(0, 1, (32, 16)).astype("float32")
    wrapper, other = wrap(layers.Dense(8, name="inner")), layers.Dense(4)
    model = keras.Sequential([keras.Input((16,)), wrapper, other])
    model(x, training=True)
    before = numpy(wrapper(x))
    with pytest.warns(UserWarning, match=r"'inner' cannot quantize inside.*remove\(\) returns"):
        model.quantize(mode)
    np.testing.assert_array_equal(numpy(wrapper(x)), before)
    assert (wrapper.layer.quantization_mode, other.quantization_mode) == (None, mode)
    alone = wrapper.remove()
    assert_close(alone(x), before)
    keras.Sequential([keras.Input((16,)), alone]).quantize(mode)
    assert alone.quantization_mode == mode
    assert np.corrcoef(numpy(alone(x)).ravel(), before.ravel())[0, 1] > 0.99
    with pytest.raises(ValueError, match="or computes it"):
        wrapper(x)


@both
def test_lora_waits_for_remove(wrap, rng):
    x = rng.normal(0, 1, (8, 4)).astype("float32")
    wrapper = wrap(layers.Dense(8))
    wrapper(x, training=True)
    before = numpy(wrapper(x))
    with pytest.raises(NotImplementedError, match=r"cannot enable_lora inside.*remove\(\)"):
        wrapper.layer.enable_lora(2)
    assert_close(wrapper(x), before)
    layer = wrapper.remove()
    layer.enable_lora(2)
    assert_close(layer(x), before)


def test_spectral_normalization_is_removed(rng):
    x = rng.normal(0, 1, (8, 4)).astype("float32")
    wrapper = truenorm.SpectralNormalization(layers.Dense(3))
    with pytest.raises(ValueError, match=r"has no kernel yet: call it, or build it, before remove"):
        wrapper.remove()
    wrapper(x, training=True)
    y = numpy(wrapper(x))
    assert_close(wrapper.remove()(x), y)
    assert_close(wrapper(x), y)
