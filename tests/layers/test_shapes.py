"""The right numbers for every place of the channel axis and for sizes that are not known."""

import itertools

import keras
import numpy as np
import pytest
from keras import ops
from kinds import MAKERS, assert_close, compiled, expected, make, randomize

BACKEND = keras.backend.backend()


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((3, 5, 7, 4), -1),
        ((3, 4, 5, 7), 1),
        ((3, 5, 4, 7), 2),
        ((3, 5, 4, 7), -2),
        ((3, 4), 1),
        ((2, 9, 4), -1),
        ((2, 4, 9), 1),
        ((2, 3, 4, 5, 6), 2),
    ],
    ids=str,
)
def test_channels_first_in_the_middle_and_last(kind, shape, axis, rng):
    layer = make(kind, axis=axis)
    layer.build(shape)
    randomize(layer, rng)
    x = rng.normal(0.5, 2, shape).astype("float32")
    assert_close(compiled(layer)(x), expected(layer, x))


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("axis", [[1, 2, 3], [-1, 1], [3, 1], [2, 1], [-2]], ids=str)
def test_several_axes(kind, axis, rng):
    layer = make(kind, axis=axis)
    layer.build((3, 5, 4, 7))
    randomize(layer, rng)
    x = rng.normal(0.5, 2, (3, 5, 4, 7)).astype("float32")
    assert_close(compiled(layer)(x), expected(layer, x))


@pytest.mark.parametrize("kind", MAKERS)
def test_built_by_the_first_call_and_the_same_for_other_sizes_afterwards(kind, rng):
    layer = make(kind)
    assert not layer.built
    for shape in [(2, 5, 4), (7, 3, 4)]:
        x = rng.normal(0.5, 2, shape).astype("float32")
        assert_close(layer(x), expected(layer, x))


@pytest.mark.parametrize("kind", MAKERS)
def test_an_empty_batch_stays_empty(kind):
    assert tuple(make(kind)(np.zeros((0, 5, 4), "float32")).shape) == (0, 5, 4)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("axis", [-1, 1])
def test_a_functional_model_of_unknown_sizes_takes_any(kind, axis, rng):
    known, shapes = {
        -1: ((None, None, 4), [(2, 5, 3, 4), (3, 1, 6, 4), (1, 70, 40, 4)]),
        1: ((4, None, None), [(2, 4, 5, 3), (3, 4, 1, 6), (1, 4, 70, 40)]),
    }[axis]
    layer = make(kind, axis=axis)
    inputs = keras.Input(known)
    model = keras.Model(inputs, layer(inputs))
    assert model.output_shape == (None, *known)
    randomize(layer, rng)
    for shape in shapes:
        x = rng.normal(0.5, 2, shape).astype("float32")
        assert_close(model.predict(x, verbose=0), expected(layer, x))


@pytest.mark.parametrize("kind", MAKERS)
def test_compute_output_shape_is_the_input_shape(kind):
    layer = make(kind)
    assert layer.compute_output_shape((None, 5, 4)) == (None, 5, 4)
    assert layer.compute_output_shape([2, None, 4]) == (2, None, 4)
    spec = layer.compute_output_spec(keras.KerasTensor((None, 5, 4), "float32"))
    assert (spec.shape, spec.dtype) == ((None, 5, 4), "float32")


# Lengths around the squares, where a run-time length is cut evenly or with padding, and one
# beyond what is added in one go.
LENGTHS = [1, 2, 3, 4, 5, 16, 17, 24, 25, 26, 5003]


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow traces unknown sizes")
@pytest.mark.parametrize("kind", MAKERS)
def test_sequences_of_unknown_length_inside_a_tensorflow_function(kind, rng):
    import tensorflow as tf

    layer = make(kind)
    layer.build((None, None, 4))
    randomize(layer, rng)
    traced = tf.function(layer, input_signature=[tf.TensorSpec((None, None, 4), tf.float32)])
    for length in LENGTHS:
        x = rng.normal(100, 2, (2, length, 4)).astype("float32")
        assert_close(traced(x), expected(layer, x))
    assert tuple(traced(np.zeros((2, 0, 4), "float32")).shape) == (2, 0, 4)
    assert tuple(traced(np.zeros((0, 3, 4), "float32")).shape) == (0, 3, 4)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow traces unknown sizes")
@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("axis", [-1, 1])
def test_gradients_and_masks_of_unknown_sizes_inside_a_tensorflow_function(kind, rank, axis, rng):
    import tensorflow as tf

    known = [None] * rank
    known[axis] = 4
    layer = make(kind, axis=axis)
    layer.build(known)
    randomize(layer, rng)

    def gradient(x, mask, cotangent):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, mask=mask)
        return y, tape.gradient(y, x, output_gradients=cotangent)

    tensor = tf.TensorSpec(known, tf.float32)
    traced = tf.function(
        gradient, input_signature=[tensor, tf.TensorSpec((None, None), tf.bool), tensor]
    )
    for sizes in itertools.product([3, 17], repeat=rank - 2):
        shape = [2, *sizes]
        shape.insert(axis % rank, 4)
        x, cotangent = (rng.normal(1, 2, shape).astype("float32") for _ in range(2))
        mask = rng.random(shape[:2]) < 0.7
        mask[:, 0] = True
        y, dx = traced(x, mask, cotangent)
        assert_close(y, expected(layer, x, mask))
        whole, eager = gradient(*map(tf.convert_to_tensor, (x, mask, cotangent)))
        assert_close(whole, expected(layer, x, mask))
        assert_close(dx, ops.convert_to_numpy(eager).astype("float64"))


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow traces unknown sizes")
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_unknown_sizes_that_are_themselves_normalized(kind, rng):
    import tensorflow as tf

    layer = make(kind, axis=[1, 3], scale=False, center=False)
    layer.build((None, None, 3, None))
    traced = tf.function(layer, input_signature=[tf.TensorSpec((None, None, 3, None), tf.float32)])
    for shape in [(2, 5, 3, 4), (1, 1, 3, 40)]:
        x = rng.normal(1, 2, shape).astype("float32")
        assert_close(traced(x), expected(layer, x))
