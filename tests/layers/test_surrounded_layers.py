"""Activation and residual in the layers: numbers, masks, shapes, dtypes, configs and files."""

import keras
import numpy as np
import pytest
from keras import ops
from kinds import MAKERS, assert_close, expected, make, randomize

import truenorm
from surrounded import ACTIVATIONS
from truenorm.core import reference

LAYERS = MAKERS | {
    "filter_response": lambda **options: truenorm.FilterResponseNormalization(
        axis=1, learned_epsilon=True, **options
    ),
    "rms_scaling": lambda **options: truenorm.LayerNormalization(rms_scaling=True, **options),
}


def drawn(rng, shape=(3, 6, 4)):
    """x and a residual, and their sum."""
    x, residual = rng.normal(0.5, 2, (2, *shape)).astype("float32")
    return x, residual, x + residual


def numpy(t):
    return ops.convert_to_numpy(ops.cast(t, "float32"))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", MAKERS)
def test_numbers(kind, activation, rng):
    x, residual, total = drawn(rng)
    mask = rng.random((3, 6)) < 0.7
    layer = make(kind, activation=activation)
    layer.build(x.shape)
    randomize(layer, rng)
    for given in (None, mask):
        wanted, _ = reference.activation(activation, expected(layer, total, given))
        y, s = layer(x, mask=given, residual=residual)
        np.testing.assert_array_equal(numpy(s), total)
        assert_close(y, wanted)
        assert_close(layer(total, mask=given), wanted)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("kind", LAYERS)
def test_one_step_after_the_other(kind, dtype, rng):
    """The layers of their own formulas too, and half precision with one rounding."""
    policy = keras.DTypePolicy(dtype)
    x, residual = (ops.cast(one, policy.compute_dtype) for one in drawn(rng)[:2])
    total = x + residual
    plain = LAYERS[kind](dtype="float32")
    layer = LAYERS[kind](dtype=policy, activation="gelu_tanh")
    for one in (plain, layer):
        one.build(x.shape)
    randomize(plain, rng)
    layer.set_weights(plain.get_weights())
    y, s = layer(x, residual=residual)
    np.testing.assert_array_equal(numpy(s), numpy(total))
    assert keras.backend.standardize_dtype(y.dtype) == policy.compute_dtype
    wanted, _ = reference.activation("gelu_tanh", numpy(plain(total)).astype("float64"))
    close = 2e-6 if dtype == "float32" else 2.0**-8
    assert np.all(abs(numpy(y) - wanted) <= close * np.maximum(1, abs(wanted)))


@pytest.mark.parametrize("kind", LAYERS)
def test_config(kind):
    layer = LAYERS[kind](activation="silu")
    assert layer.get_config()["activation"] == "silu"
    assert type(layer).from_config(layer.get_config()).activation == "silu"
    plain = LAYERS[kind]()
    assert "activation" not in plain.get_config()
    assert type(plain).from_config(plain.get_config()).activation is None
    for name in ("tanh", keras.activations.relu):
        with pytest.raises(ValueError, match="expected None or one of 'relu', 'silu', 'gelu', 'ge"):
            LAYERS[kind](activation=name)


@pytest.mark.parametrize("kind", LAYERS)
def test_in_a_functional_model(kind, rng, tmp_path):
    """Built, saved and loaded, with a mask that comes from the first input and goes on."""
    x, residual, _ = drawn(rng)
    x[:, 4:] = 0
    inputs = keras.Input((6, 4)), keras.Input((6, 4))
    masked = keras.layers.Masking()(inputs[0])
    layer = LAYERS[kind](activation="relu")
    y, s = layer(masked, residual=inputs[1])
    assert y.shape == s.shape == (None, 6, 4)
    model = keras.Model(inputs, [y, s, keras.layers.GlobalAveragePooling1D()(y)])
    randomize(layer, rng)
    mask = np.arange(6) < 4
    mask = np.broadcast_to(mask, (3, 6))
    wanted, total = layer(x, mask=mask, residual=residual)
    hidden = layer(x, residual=residual)[0]
    assert kind in ("rms", "layer", "rms_scaling") or np.max(abs(numpy(hidden - wanted))) > 0.01
    mean = numpy(wanted)[:, :4].mean(1)
    model.save(tmp_path / "model.keras")
    for one in (model, keras.models.load_model(tmp_path / "model.keras")):
        for found, right in zip(one([x, residual]), (wanted, total, mean), strict=True):
            np.testing.assert_allclose(numpy(found), numpy(right), rtol=1e-5, atol=1e-5)
    model.compile("sgd", "mse")
    before = model.get_weights()
    model.fit([x, residual], [x, x, x[:, 0]], epochs=1, verbose=0)
    assert all(np.any(one != other) for one, other in zip(before, model.get_weights(), strict=True))


def test_symbolic_dtypes_and_shapes():
    layer = truenorm.LayerNormalization(dtype="mixed_bfloat16")
    x = keras.Input((6, 4), dtype="float32")
    y, s = layer(x, residual=keras.Input((6, 4), dtype="float32"))
    assert (y.dtype, s.dtype) == ("bfloat16", "float32")
    y, s = layer(np.ones((2, 6, 4), "float32"), residual=np.ones((2, 6, 4), "float32"))
    given = [keras.backend.standardize_dtype(one.dtype) for one in (y, s)]
    assert given == ["bfloat16", "float32"]
    with pytest.raises(ValueError, match="residual has the shape"):
        layer(x, residual=keras.Input((5, 4)))
    with pytest.raises(TypeError, match="residual is of dtype bfloat16, but x is of float32"):
        layer(x, residual=keras.Input((6, 4), dtype="bfloat16"))
    with pytest.raises(ValueError, match="residual has the shape"):
        layer(np.ones((2, 6, 4), "float32"), residual=np.ones((2, 6, 1), "float32"))
    scaled = truenorm.LayerNormalization(rms_scaling=True)
    with pytest.raises(ValueError, match="residual has the shape"):
        scaled(np.ones((2, 6, 4), "float32"), residual=np.ones((2, 6, 1), "float32"))
