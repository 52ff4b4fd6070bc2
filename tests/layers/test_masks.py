"""Masks: what they hide stays out of the statistics, the gradients and the weights' gradients."""

import keras
import numpy as np
import pytest
from keras import ops
from kinds import MAKERS, assert_close, compiled, expected, make, randomize

from gradients import value_and_gradients


def sequences(rng, hidden=0.0):
    """Sequences (N, T, C) and their mask; the first is whole, the last has two real steps."""
    x = rng.normal(0.5, 2, (3, 6, 4)).astype("float32")
    mask = np.arange(6) < np.array([6, 4, 2])[:, None]
    x[~mask] = hidden
    return x, mask


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_an_explicit_mask_of_any_prefix_shape(kind, dimensions, rng):
    shape = (3, 6, 5, 4)
    layer = make(kind)
    layer.build(shape)
    randomize(layer, rng)
    x = rng.normal(0.5, 2, shape).astype("float32")
    mask = rng.random(shape[:dimensions]) < 0.6
    wanted = expected(layer, x, mask)
    assert_close(compiled(layer)(x, mask=mask), wanted)
    if kind in ("group", "instance") and dimensions > 1:  # there the mask cuts through groups
        assert np.max(np.abs(wanted - expected(layer, x))) > 0.1


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("axis", [-1, 1])
def test_use_mask_false_ignores_the_mask_and_passes_it_on(kind, axis, rng):
    x, mask = sequences(rng, hidden=9.0)
    if axis == 1:
        mask = mask[:, 0]
        mask[0] = False
    layer = make(kind, axis=axis, use_mask=False)
    layer.build(x.shape)
    randomize(layer, rng)
    y = layer(x, mask=mask)
    np.testing.assert_array_equal(ops.convert_to_numpy(y), ops.convert_to_numpy(layer(x)))
    assert layer.compute_mask(x, mask) is mask


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("use_mask", [True, False])
def test_the_mask_of_a_masking_layer_arrives_and_reaches_the_next_layer(kind, use_mask, rng):
    x, mask = sequences(rng)
    layer = make(kind, use_mask=use_mask)
    seen = []

    class Next(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.supports_masking = True

        def call(self, inputs, mask=None):
            seen.append(mask)
            return inputs

    inputs = keras.Input((6, 4))
    model = keras.Model(inputs, Next()(layer(keras.layers.Masking()(inputs))))
    randomize(layer, rng)
    seen.clear()
    y = model(x)
    assert_close(y, expected(layer, x, mask if use_mask else None))
    assert len(seen) == 1
    np.testing.assert_array_equal(ops.convert_to_numpy(seen[0]), mask)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("hidden", [np.nan, np.inf, -np.inf])
def test_what_is_hidden_reaches_no_other_output_and_no_gradient(kind, hidden, rng):
    x, mask = sequences(rng, hidden)
    layer = make(kind)
    layer.build(x.shape)
    randomize(layer, rng)
    names = [one.name for one in layer.weights]

    def function(x, *weights):
        variables = list(zip(layer.weights, weights, strict=True))
        return ops.where(mask[..., None], stateless(layer, variables, x, mask), 0.0)

    arguments = [x, *layer.get_weights()]
    cotangent = rng.standard_normal(x.shape).astype("float32")
    y, gradients = value_and_gradients(function, arguments, cotangent)
    harmless = np.where(mask[..., None], x, 3.0)
    wanted, others = value_and_gradients(function, [harmless, *arguments[1:]], cotangent)
    np.testing.assert_allclose(y, wanted, rtol=1e-6, atol=1e-6)
    for name, one, other in zip(["x", *names], gradients, others, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5, err_msg=name)
        assert np.any(one != 0)
    assert np.all(gradients[0][~mask] == 0)


def stateless(layer, variables, x, mask):
    """The layer with other weights, from which gradients can be taken on every backend."""
    with keras.StatelessScope(variables):
        return layer.call(x, mask=mask)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_training_step_does_not_see_what_is_hidden(kind, rng):
    def trained(x, mask):
        # A Masking layer would multiply, and zero times NaN is NaN: so the mask is an input.
        layer = make(kind)
        inputs, given = keras.Input((6, 4)), keras.Input((6,), dtype="bool")
        y = layer(inputs, mask=given)
        y = ops.where(ops.expand_dims(given, -1), y, 0.0)
        model = keras.Model([inputs, given], keras.layers.Dense(1)(keras.layers.Flatten()(y)))
        keras.utils.set_random_seed(1)
        model.set_weights([np.random.default_rng(2).random(one.shape) for one in model.weights])
        model.compile("sgd", "mse")
        model.fit([x, mask], np.ones((3, 1)), verbose=0)
        return [one.name for one in model.weights], model.get_weights()

    x, mask = sequences(rng, np.nan)
    names, weights = trained(x, mask)
    _, others = trained(np.where(mask[..., None], x, 3.0), mask)
    _, without = trained(np.where(mask[..., None], x, 3.0), np.ones_like(mask))
    for name, one, other in zip(names, weights, others, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6, err_msg=name)
    # The mask matters: the last weights are the dense layer's, which see every element.
    assert not np.allclose(weights[-2], without[-2], rtol=1e-3)


@pytest.mark.parametrize("hidden", [1e3, np.nan, np.inf])
@pytest.mark.parametrize("use_mask", [True, False])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_what_is_hidden_does_not_enter_the_variance_of_rms_scaling(
    hidden, use_mask, dimensions, rng
):
    x = rng.normal(1.5, 1, (3, 6, 4)).astype("float32")
    mask = rng.random(x.shape[:dimensions]) < 0.6
    real = np.broadcast_to(mask.reshape(mask.shape + (1,) * (3 - dimensions)), x.shape)
    if use_mask:
        x[~real] = hidden
    layer = make("layer", axis=[1, 2], epsilon=0.3, use_mask=use_mask, rms_scaling=True)
    layer.build(x.shape)
    randomize(layer, rng)
    y = ops.convert_to_numpy(layer(x, mask=mask))
    gamma = ops.convert_to_numpy(layer.gamma).astype("float64")
    for one, result, seen in zip(x.astype("float64"), y, real, strict=True):
        variance = np.var(one[seen] if use_mask else one)
        wanted = gamma * one / np.sqrt(variance + 0.3)
        shown = seen if use_mask else np.ones_like(seen)
        assert_close(result[shown], wanted[shown])


@pytest.mark.parametrize("hidden", [np.nan, np.inf])
def test_what_is_hidden_reaches_no_gradient_of_rms_scaling(hidden, rng):
    x = rng.normal(1.5, 1, (3, 6, 4)).astype("float32")
    mask = np.arange(6) < np.array([6, 2, 0])[:, None]  # the last sample is hidden whole
    gamma = rng.uniform(0.5, 2, (6, 4)).astype("float32")
    cotangent = np.where(mask[..., None], rng.normal(size=x.shape), 0).astype("float32")
    layer = make("layer", axis=[1, 2], rms_scaling=True)
    layer.build(x.shape)

    def function(x, gamma):
        object.__setattr__(layer, "gamma", gamma)  # not the weight: what is differentiated
        return layer.call(x, mask=ops.convert_to_tensor(mask))

    results = []
    for value in (0, hidden):
        x[~mask] = value
        y, gradients = value_and_gradients(function, [x, gamma], cotangent)
        np.testing.assert_array_equal(y[2], 0)
        results.append([y[mask], *gradients])
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_group_that_is_wholly_masked_yields_beta(kind, rng):
    x = rng.normal(0.5, 2, (3, 6, 4)).astype("float32")
    x[1] = np.nan
    mask = np.array([True, False, True])
    layer = make(kind)
    layer.build(x.shape)
    randomize(layer, rng)
    y = ops.convert_to_numpy(layer(x, mask=mask))
    beta = 0 if kind == "rms" else ops.convert_to_numpy(layer.beta)
    np.testing.assert_array_equal(y[1], np.broadcast_to(beta, (6, 4)))
    assert_close(y[[0, 2]], expected(layer, x[[0, 2]]))


@pytest.mark.parametrize("hidden", [0.0, 1e4, np.nan])
def test_instance_normalization_of_a_padded_sequence_is_that_of_the_sequence(hidden, rng):
    x, mask = sequences(rng, hidden)
    layer = make("instance")
    layer.build(x.shape)
    randomize(layer, rng)
    y = ops.convert_to_numpy(layer(x, mask=mask))
    for one, result, real in zip(x, y, mask, strict=True):
        alone = one[None, real]
        assert_close(result[None, real], expected(layer, alone))
        assert_close(result[None, real], ops.convert_to_numpy(layer(alone)).astype("float64"))


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (
            np.ones((3, 5), bool),
            ValueError,
            r"mask has the shape \(3, 5\), which is not the beginning of x's shape \(3, 6, 4\); "
            r"expected \(3,\), \(3, 6\) or longer",
        ),
        (np.ones((3, 6, 4, 1), bool), ValueError, r"mask has the shape \(3, 6, 4, 1\)"),
        (np.ones((3, 6), "float32"), TypeError, r"mask must be boolean; got float32"),
    ],
)
def test_a_wrong_mask_is_refused(kind, mask, error, message, rng):
    with pytest.raises(error, match=message):
        make(kind)(rng.normal(size=(3, 6, 4)).astype("float32"), mask=mask)
