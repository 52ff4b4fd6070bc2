"""The projection into the Poincaré ball."""

import keras
import ml_dtypes
import numpy as np
import pytest
from keras import ops

from gradients import value_and_gradients
from truenorm import PoincareNormalize

AXES = [1, -1, [1, 2], (2, 1), 0, None]


def expected(x, axis, epsilon):
    axis = tuple(axis) if isinstance(axis, (list, tuple)) else axis
    norm = np.sqrt(np.sum(x.astype("float64") ** 2, axis, keepdims=True))
    return np.where(norm > 1 - epsilon, x * ((1 - epsilon) / np.where(norm > 0, norm, 1)), x)


@pytest.mark.parametrize("axis", AXES, ids=str)
def test_numbers(axis, rng):
    for scale in (0.1, 0.5, 30, 1e25):
        x = (scale * rng.normal(size=(3, 4, 5))).astype("float32")
        y = ops.convert_to_numpy(PoincareNormalize(axis=axis, epsilon=1e-2)(x))
        np.testing.assert_allclose(y, expected(x, axis, 1e-2), rtol=1e-6)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_is_finite_and_right(policy, rng):
    layer = PoincareNormalize(dtype=policy)
    dtype = np.float16 if policy == "mixed_float16" else ml_dtypes.bfloat16
    for scale in (1e-3, 1, 6e4):
        x = (scale * rng.uniform(-1, 1, (2, 50, 3))).astype(dtype)
        y = layer(ops.cast(x.astype("float32"), layer.compute_dtype))
        assert keras.backend.standardize_dtype(y.dtype) == layer.compute_dtype
        wanted = expected(x.astype("float32"), 1, 1e-5)
        found = ops.convert_to_numpy(ops.cast(y, "float32"))
        np.testing.assert_allclose(found, wanted, rtol=float(ml_dtypes.finfo(dtype).eps), atol=1e-7)


def test_the_gradient_of_zero_short_and_long_vectors(rng):
    x = rng.normal(size=(3, 4)).astype("float32")
    x *= np.array([[0], [0.1], [9]], "float32")
    cotangent = rng.normal(size=x.shape).astype("float32")
    layer = PoincareNormalize()
    _, (found,) = value_and_gradients(layer, [x], cotangent)
    norm = np.linalg.norm(x[2].astype("float64"))
    unit = x[2] / norm
    wanted = cotangent.astype("float64")
    wanted[2] = (1 - 1e-5) / norm * (cotangent[2] - unit * (unit @ cotangent[2]))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_nan_and_inf_stay_in_their_vector():
    x = np.full((3, 4), 0.1, "float32")
    x[0, 0], x[1, 0] = np.nan, np.inf
    y = ops.convert_to_numpy(PoincareNormalize()(x))
    assert np.isnan(y[0]).all()
    assert np.isnan(y[1, 0])
    np.testing.assert_array_equal(y[2], x[2])


def test_unknown_sizes_and_masks(rng):
    inputs = keras.Input((None, 3))
    outputs = PoincareNormalize(axis=-1)(keras.layers.Masking()(inputs))
    assert getattr(outputs, "_keras_mask", None) is not None
    x = rng.normal(size=(2, 5, 3)).astype("float32")
    y = keras.Model(inputs, outputs).predict(x, verbose=0)
    np.testing.assert_allclose(y, expected(x, -1, 1e-5), rtol=1e-6)


@pytest.mark.parametrize("axis", AXES, ids=str)
def test_the_config_round_trips(axis):
    layer = PoincareNormalize(axis=axis, epsilon=0.1, name="ball")
    before = layer.get_config()
    layer.build((2, 3, 4))
    assert layer.get_config() == before
    assert before["axis"] == (list(axis) if isinstance(axis, tuple) else axis)
    assert before["epsilon"] == 0.1
    assert PoincareNormalize.from_config(before).get_config() == before
    assert PoincareNormalize().get_config()["axis"] == 1
    assert PoincareNormalize().get_config()["epsilon"] == 1e-5


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"epsilon": 1}, ValueError, r"epsilon=1 must be less than 1, the radius of the ball"),
        ({"epsilon": -0.1}, ValueError, r"epsilon=-0.1 must be a finite number of zero or more"),
        ({"axis": []}, ValueError, r"axis=\[\] must name at least one axis, and none twice; None"),
        ({"axis": [1, 1]}, ValueError, r"axis=\[1, 1\] must name at least one axis, and none twic"),
        ({"axis": 1.5}, TypeError, r"axis=1.5 must be an integer or a list of integers; got float"),
    ],
)
def test_bad_arguments_are_refused_at_construction(options, error, message):
    with pytest.raises(error, match=message):
        PoincareNormalize(**options)


def test_axes_that_do_not_exist_are_refused_at_build():
    message = r"axis=3 is out of range for an input of rank 3; allowed axes are -3 to 2\."
    with pytest.raises(ValueError, match=message):
        PoincareNormalize(axis=3).build((2, 3, 4))
    with pytest.raises(ValueError, match=r"axis=\[1, -2\] names an axis twice for an input of"):
        PoincareNormalize(axis=[1, -2]).build((2, 3, 4))
