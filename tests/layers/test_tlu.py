"""The thresholded linear unit."""

import keras
import numpy as np
import pytest
from keras import ops

from gradients import value_and_gradients
from truenorm import TLU

HALF = {"mixed_float16": 2.0**-11, "mixed_bfloat16": 2.0**-8}


def make(shape, rng, **options):
    layer = TLU(**options)
    layer.build(shape)
    layer.set_weights([rng.uniform(-1, 1, one.shape).astype(one.dtype) for one in layer.weights])
    return layer


def expected(layer, x):
    tau, alpha = [one.astype("float64") for one in [*layer.get_weights(), np.zeros(())][:2]]
    return np.maximum(x, alpha * x.astype("float64") + tau)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize(
    ("shape", "shared", "weights"),
    [
        ((4, 5), None, (5,)),
        ((4, 3, 2, 5), None, (3, 2, 5)),
        ((4, 3, 2, 5), [1, 2], (1, 1, 5)),
        ((4, 3, 2, 5), (2, -1), (3, 1, 1)),
        ((4, 3, 5), 1, (1, 5)),
    ],
)
def test_numbers_and_shapes(shape, shared, weights, affine, rng):
    layer = make(shape, rng, affine=affine, shared_axes=shared)
    assert [one.name for one in layer.weights] == ["tau", "alpha"][: 1 + affine]
    assert {tuple(one.shape) for one in layer.weights} == {weights}
    x = rng.normal(size=shape).astype("float32")
    y = ops.convert_to_numpy(layer(x))
    np.testing.assert_allclose(y, expected(layer, x), rtol=1e-6, atol=1e-6)
    assert 0 < np.mean(y == x) < 1
    assert layer.compute_output_shape(shape) == shape


@pytest.mark.parametrize("policy", HALF)
def test_half_precision(policy, rng):
    layer = make((4, 6, 5), rng, affine=True, dtype=policy)
    assert all(one.dtype == "float32" for one in layer.weights)
    x = ops.cast(rng.normal(size=(4, 6, 5)), layer.compute_dtype)
    y = layer(x)
    assert keras.backend.standardize_dtype(y.dtype) == layer.compute_dtype
    wanted = expected(layer, ops.convert_to_numpy(ops.cast(x, "float32")))
    found = ops.convert_to_numpy(ops.cast(y, "float32"))
    np.testing.assert_allclose(found, wanted, rtol=HALF[policy], atol=1e-6)


def test_where_x_is_at_its_threshold_the_gradient_is_that_of_x():
    layer = TLU()
    layer.build((2, 3))
    x = np.zeros((2, 3), "float32")
    cotangent = np.arange(1, 7, dtype="float32").reshape(2, 3)

    def function(x, tau):
        return layer.stateless_call([tau], [], x)[0]

    _, (dx, dtau) = value_and_gradients(function, [x, np.zeros(3, "float32")], cotangent)
    np.testing.assert_array_equal(dx, cotangent)
    np.testing.assert_array_equal(dtau, np.zeros(3))


@pytest.mark.parametrize("affine", [False, True])
def test_nan_is_passed_on(affine):
    x = np.array([[np.nan, 1, np.inf, -np.inf]], "float32")
    layer = TLU(affine=affine)
    layer.build(x.shape)
    if affine:
        layer.set_weights([np.zeros(4), np.full(4, 0.5)])
    wanted = [[np.nan, 1, np.inf, -np.inf if affine else 0]]
    np.testing.assert_array_equal(ops.convert_to_numpy(layer(x)), wanted)
    layer.set_weights([np.full(4, np.nan) for _ in layer.weights])
    assert np.isnan(ops.convert_to_numpy(layer(x))).all()


def test_unknown_sizes_need_shared_axes(rng):
    message = (
        r"TLU 'act' has a threshold for each element of a sample and needs the size of axes "
        r"\[1, 2\], but its input shape is \(None, None, None, 3\); give those sizes, or pass "
        r"shared_axes=\[1, 2\]"
    )
    with pytest.raises(ValueError, match=message):
        TLU(name="act").build((None, None, None, 3))
    inputs = keras.Input((None, None, 3))
    layer = TLU(shared_axes=[1, 2])
    model = keras.Model(inputs, layer(inputs))
    layer.set_weights([rng.uniform(-1, 1, (1, 1, 3))])
    for size in (2, 5):
        x = rng.normal(size=(2, size, size, 3)).astype("float32")
        np.testing.assert_array_equal(model.predict(x, verbose=0), expected(layer, x))


@pytest.mark.parametrize(
    ("shared", "error", "message"),
    [
        (0, ValueError, r"axis=0 names the batch axis"),
        ([1, 1], ValueError, r"axis=\[1, 1\] names an axis twice"),
        ("w", TypeError, r"axis='w' must be an integer"),
    ],
)
def test_bad_shared_axes_are_refused(shared, error, message):
    with pytest.raises(error, match=message):
        TLU(shared_axes=shared)
    with pytest.raises(ValueError, match=r"axis=5 is out of range for an input of rank 3"):
        TLU(shared_axes=5).build((2, 3, 4))


def test_an_input_of_another_size_is_refused():
    layer = TLU()
    layer.build((None, 1, 3))
    with pytest.raises(ValueError, match=r"expected axis 1 of input shape to have value 1"):
        layer(np.zeros((2, 4, 3), "float32"))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {
            "affine": True,
            "shared_axes": (1, 2),
            "tau_initializer": keras.initializers.RandomUniform(seed=1),
            "tau_regularizer": keras.regularizers.L2(0.25),
            "tau_constraint": "non_neg",
            "alpha_initializer": keras.initializers.RandomNormal(seed=2),
            "alpha_regularizer": keras.regularizers.L1(0.5),
            "alpha_constraint": keras.constraints.MaxNorm(3.0),
        },
    ],
    ids=str,
)
def test_the_config_survives_build_and_round_trip(options):
    layer = TLU(name="act", **options)
    before = layer.get_config()
    layer.build((2, 3, 4, 5))
    assert layer.get_config() == before
    again = TLU.from_config(before)
    assert again.get_config() == before
    again.build((2, 3, 4, 5))
    for one, other in zip(layer.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    keys = {"affine", "tau_initializer", "tau_regularizer", "tau_constraint"}
    if options:
        keys |= {"alpha_initializer", "alpha_regularizer", "alpha_constraint", "shared_axes"}
        tau, alpha = layer.get_weights()
        loss = 0.25 * np.sum(tau**2) + 0.5 * np.sum(np.abs(alpha))
        found = sum(float(ops.convert_to_numpy(one)) for one in layer.losses)
        np.testing.assert_allclose(found, loss, rtol=1e-6)
    assert set(before) == {"name", "trainable", "dtype"} | keys


def test_it_passes_a_mask_on():
    inputs = keras.Input((4, 3))
    outputs = TLU()(keras.layers.Masking()(inputs))
    assert getattr(outputs, "_keras_mask", None) is not None
