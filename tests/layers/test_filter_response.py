"""Filter response normalization: any layout and dtype, the learned epsilon, config and errors."""

import inspect

import keras
import numpy as np
import pytest
from keras import ops
from kinds import RICH_OPTIONS

import truenorm
from gradients import value_and_gradients
from truenorm import FilterResponseNormalization, native
from truenorm.core import reference

BACKEND = keras.backend.backend()
HAS_KERNELS = native.unavailable(keras.backend.backend()) is None
# Shapes with the axes over which the mean is taken, and the channel axis that they leave.
LAYOUTS = [
    ((3, 4, 5, 6), [1, 2], 3),
    ((3, 4, 5, 6), (2, 3), 1),
    ((3, 4, 5, 6), [-1, 1], 2),
    ((3, 4, 6), 1, 2),
    ((3, 4, 6), -1, 1),
    ((2, 3, 2, 4, 5), (1, 2, 3), 4),
    ((2, 3, 2, 4, 5), [4, 3, 2], 1),
    ((4, 6), [], 1),
]


def make(shape, rng, **options):
    """A built layer with random weights."""
    layer = FilterResponseNormalization(**options)
    layer.build(shape)
    layer.set_weights([rng.uniform(-1, 1, one.shape).astype(one.dtype) for one in layer.weights])
    return layer


def expected(layer, x, mask=None):
    """What the layer must compute, in float64."""
    weights = {one.name: ops.convert_to_numpy(one).astype("float64") for one in layer.weights}
    if mask is not None:
        mask = np.broadcast_to(mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim)), x.shape)
    return reference.normalize(
        x.astype("float64"),
        weights["gamma"].ravel(),
        weights["beta"].ravel(),
        layer.kind.view(x.shape, layer.axis),
        epsilon=layer.epsilon + abs(float(weights.get("learned_epsilon", [0])[0])),
        centered=False,
        mask=mask,
    )


def assert_within_the_promise(layer, x, y, mask=None, dtype="float32"):
    y = ops.convert_to_numpy(ops.cast(y, "float32")).astype("float64")
    wanted = expected(layer, x, mask)
    beta = ops.convert_to_numpy(layer.beta).astype("float64")
    allowed = 2e-6 * np.maximum(1, np.abs(wanted - beta) + np.abs(beta))
    if dtype != "float32":
        digits = {"float16": 11, "bfloat16": 8}[dtype]
        exponent = np.floor(np.log2(np.maximum(np.abs(wanted), 2.0**-14)))
        allowed = allowed + 2.0 ** (exponent - digits + 1)
    assert y.shape == x.shape
    assert np.all(np.abs(y - wanted) <= allowed)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize(("shape", "axis", "channel"), LAYOUTS, ids=str)
def test_any_rank_and_channel_axis(shape, axis, channel, learned, rng):
    layer = make(shape, rng, axis=axis, learned_epsilon=learned)
    parameter = tuple(size if i == channel else 1 for i, size in enumerate(shape))
    shapes = [(1,)] * learned + [parameter, parameter]
    assert [tuple(one.shape) for one in layer.weights] == shapes
    x = rng.normal(0.5, 2, shape).astype("float32")
    assert_within_the_promise(layer, x, layer(x))
    assert layer.compute_output_shape((None, *shape[1:])) == (None, *shape[1:])


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((None, None, None, 3), [1, 2]), ((None, 3, None, None), [2, 3]), ((None, None, 3), 1)],
)
@pytest.mark.parametrize("learned", [False, True])
def test_unknown_sizes(shape, axis, learned, rng):
    inputs = keras.Input(shape[1:])
    layer = FilterResponseNormalization(axis=axis, learned_epsilon=learned)
    model = keras.Model(inputs, layer(inputs))
    assert model.output_shape == shape
    for size in (4, 7):
        x = rng.normal(1, 2, [size if one is None else one for one in shape]).astype("float32")
        assert_within_the_promise(layer, x, model.predict(x, verbose=0))


@pytest.mark.skipif(not HAS_KERNELS, reason="this build has no native kernels")
def test_the_native_kernels_serve_it_and_a_learned_epsilon_is_a_reason_against_them(rng):
    x = rng.normal(1, 2, (3, 4, 5, 6)).astype("float32")
    for axis in ([1, 2], [2, 3], [1, 3]):
        layer = make(x.shape, rng, axis=axis, implementation="native")
        assert_within_the_promise(layer, x, layer(x))
    learned = make(x.shape, rng, learned_epsilon=True, implementation="native")
    message = r"implementation='native' cannot compute this call: epsilon is learned: the native"
    with pytest.raises(NotImplementedError, match=message):
        learned(x)


@pytest.mark.parametrize("learned", [False, True])
def test_native_is_what_is_chosen_without_a_learned_epsilon(learned, rng, monkeypatch):
    if not HAS_KERNELS:
        pytest.skip("this build has no native kernels")
    used = []
    for engine in truenorm.ops.FRONT.engines:

        def normalize(*call, own=engine.normalize, name=engine.name):
            y = own(*call)
            used.append(name if not isinstance(y, str) else f"not {name}")
            return y

        monkeypatch.setattr(engine, "normalize", normalize)
    layer = make((2, 3, 4, 5), rng, learned_epsilon=learned)
    layer(rng.normal(size=(2, 3, 4, 5)).astype("float32"))
    used = [one for one in used if "triton" not in one]  # it serves no CPU
    assert used == (["not native", "plain"] if learned else ["native"])


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_the_gradient_of_the_learned_epsilon(policy, sign, rng):
    shape = (3, 4, 5, 6)
    layer = make(shape, rng, learned_epsilon=True, epsilon=1e-3, dtype=policy)
    learned, gamma, beta = layer.get_weights()
    learned = sign * np.float32([2e-2]) + 0 * learned
    x = (0.2 * rng.normal(size=shape)).astype("float32")
    x = ops.convert_to_numpy(ops.cast(ops.cast(x, layer.compute_dtype), "float32"))
    cotangent = rng.normal(size=shape).astype("float32")

    def function(learned, gamma, beta):
        y, _ = layer.stateless_call([learned, gamma, beta], [], ops.cast(x, layer.compute_dtype))
        return ops.cast(y, "float32")

    _, (found, *_) = value_and_gradients(function, [learned, gamma, beta], cotangent)
    assert found.shape == (1,)
    wide, g, epsilon = x.astype("float64"), gamma.astype("float64"), 1e-3 + 2e-2
    power = (wide**2).mean((1, 2), keepdims=True) + epsilon
    terms = sign * cotangent * g * wide * -0.5 * power**-1.5
    # The cotangent is rounded to the dtype of y on its way back.
    rounding = {"float32": 0, "float16": 2.0**-11, "bfloat16": 2.0**-8}[layer.compute_dtype]
    allowed = (4e-6 + rounding) * np.sqrt(np.sum(terms**2))
    assert np.abs(found[0] - terms.sum()) <= allowed
    assert np.abs(terms.sum()) > 10 * allowed


def test_the_gradient_of_a_learned_epsilon_of_zero_is_zero(rng):
    layer = make((2, 3, 3, 2), rng, learned_epsilon=True)
    _, *others = layer.get_weights()
    x = rng.normal(size=(2, 3, 3, 2)).astype("float32")

    def function(*weights):
        return layer.stateless_call(list(weights), [], x)[0]

    _, (found, *_) = value_and_gradients(function, [np.zeros(1, "float32"), *others], x)
    np.testing.assert_array_equal(found, [0.0])


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision(policy, learned, rng):
    layer = make((3, 40, 5), rng, axis=1, learned_epsilon=learned, dtype=policy)
    assert all(one.dtype == "float32" for one in layer.weights)
    half = layer.compute_dtype
    largest = 65504 if half == "float16" else 1e18
    for scale in (1e-4, 1, largest):
        x = rng.uniform(0.5, 1, (3, 40, 5)) * rng.choice([-1, 1], (3, 40, 5)) * scale
        x = ops.cast(x.astype("float32"), half)
        y = layer(x)
        assert keras.backend.standardize_dtype(y.dtype) == half
        rounded = ops.convert_to_numpy(ops.cast(x, "float32"))
        assert_within_the_promise(layer, rounded, y, dtype=half)


@pytest.mark.skipif(BACKEND == "jax", reason="JAX has no float64 unless told otherwise")
@pytest.mark.parametrize("learned", [False, True])
def test_float64(learned, rng):
    layer = make((3, 40, 5), rng, axis=1, learned_epsilon=learned, dtype="float64")
    assert all(one.dtype == "float64" for one in layer.weights)
    x = rng.normal(3, 2, (3, 40, 5))
    y = layer(x)
    assert keras.backend.standardize_dtype(y.dtype) == "float64"
    np.testing.assert_allclose(ops.convert_to_numpy(y), expected(layer, x), rtol=0, atol=4e-14)


def test_huge_inputs_are_finite(rng):
    layer = make((3, 900, 5), rng, axis=1, learned_epsilon=True)
    x = (1e18 * rng.normal(size=(3, 900, 5))).astype("float32")
    assert_within_the_promise(layer, x, layer(x))


@pytest.mark.parametrize("learned", [False, True])
def test_masks(learned, rng):
    x = rng.normal(1, 2, (4, 6, 3)).astype("float32")
    mask = rng.random((4, 6)) < 0.6
    mask[1] = False
    layer = make(x.shape, rng, axis=1, learned_epsilon=learned)
    x[~mask] = 1e6
    y = layer(x, mask=ops.convert_to_tensor(mask))
    assert_within_the_promise(layer, x[mask.any(1)], y[mask.any(1)], mask[mask.any(1)])
    beta = np.broadcast_to(layer.get_weights()[-1][0], y[1].shape)
    np.testing.assert_array_equal(ops.convert_to_numpy(y[1]), beta)
    layer.use_mask = False
    y = layer(x, mask=ops.convert_to_tensor(mask))
    assert_within_the_promise(layer, x, y)


def test_it_takes_and_passes_on_the_mask_of_keras(rng):
    x = rng.normal(1, 2, (4, 6, 3)).astype("float32")
    x[:, 4:] = 0
    layer = FilterResponseNormalization(axis=1)
    inputs = keras.Input((6, 3))
    outputs = layer(keras.layers.Masking()(inputs))
    assert getattr(outputs, "_keras_mask", None) is not None
    y = keras.Model(inputs, outputs).predict(x, verbose=0)
    assert_within_the_promise(layer, x, y, (x != 0).any(-1))


ARGUMENTS = {
    "epsilon": 1e-6,
    "axis": (1, 2),
    "beta_initializer": "zeros",
    "gamma_initializer": "ones",
    "beta_regularizer": None,
    "gamma_regularizer": None,
    "beta_constraint": None,
    "gamma_constraint": None,
    "learned_epsilon": False,
    "learned_epsilon_constraint": None,
    "name": None,
    "use_mask": True,
    "implementation": None,
    "activation": None,
}


def test_arguments_are_those_of_addons_in_their_order():
    parameters = inspect.signature(FilterResponseNormalization).parameters
    named = {name: one.default for name, one in parameters.items() if name != "kwargs"}
    assert list(named.items()) == list(ARGUMENTS.items())


def test_the_config_is_that_of_addons():
    config = FilterResponseNormalization(learned_epsilon=True).get_config()
    config.pop("name"), config.pop("dtype")
    zeros, ones = (
        {"module": "keras.initializers", "class_name": name, "config": {}, "registered_name": None}
        for name in ("Zeros", "Ones")
    )
    assert config == {
        "trainable": True,
        "axis": [1, 2],
        "epsilon": 1e-6,
        "learned_epsilon": True,
        "beta_initializer": zeros,
        "gamma_initializer": ones,
        "beta_regularizer": None,
        "gamma_regularizer": None,
        "beta_constraint": None,
        "gamma_constraint": None,
        "learned_epsilon_constraint": None,
    }


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"axis": [-2, -1], "learned_epsilon": True, "learned_epsilon_constraint": "non_neg"},
        {**RICH_OPTIONS, "axis": (1, 3), "use_mask": False, "implementation": "plain"},
    ],
    ids=str,
)
def test_the_config_survives_build_and_round_trip(options):
    layer = FilterResponseNormalization(name="norm", dtype="mixed_bfloat16", **options)
    before = layer.get_config()
    layer.build((2, 3, 4, 5))
    assert layer.get_config() == before
    assert layer.axis == list(options.get("axis", [1, 2]))
    again = FilterResponseNormalization.from_config(before)
    assert again.get_config() == before
    again.build((2, 3, 4, 5))
    for one, other in zip(layer.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    if RICH_OPTIONS.items() <= options.items():
        gamma, beta = layer.get_weights()
        assert gamma.shape == (1, 1, 4, 1)
        loss = 0.25 * np.sum(gamma**2) + 0.5 * np.sum(np.abs(beta))
        found = sum(float(ops.convert_to_numpy(one)) for one in layer.losses)
        np.testing.assert_allclose(found, loss, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"epsilon": -1e-3}, ValueError, r"epsilon=-0.001 must be a finite number of zero or more"),
        ({"axis": 0}, ValueError, r"axis=0 names the batch axis"),
        ({"axis": [1, 1]}, ValueError, r"axis=\[1, 1\] names an axis twice"),
        ({"axis": [1, "w"]}, TypeError, r"axis=\[1, 'w'\] must be an integer or a list of"),
        ({"implementation": "fast"}, ValueError, r"implementation='fast' is unknown"),
    ],
)
def test_bad_arguments_are_refused_at_construction(options, error, message):
    with pytest.raises(error, match=message):
        FilterResponseNormalization(**options)


@pytest.mark.parametrize(
    ("axis", "shape", "message"),
    [
        (
            [1, 2],
            (2, 3, 4, 5, 6),
            r"axis=\[1, 2\] leaves the axes \[3, 4\] of an input of rank 5 for the channels; it "
            r"must name every axis but the batch axis 0 and the one channel axis: \[1, 2, 3\] "
            r"where the channels are last, \[2, 3, 4\] where they are first\.",
        ),
        ([1, 2], (2, 3, 4), r"axis=\[1, 2\] leaves no axis of an input of rank 3 .* \[1\] where"),
        ([], (2, 3, 4), r"axis=\[\] leaves the axes \[1, 2\] of an input of rank 3"),
        (1, (2, 3), r"axis=1 leaves no axis of an input of rank 2 for the channels; .*: \[\] wh"),
        ([1, 2], (2, 3), r"axis=\[1, 2\] is out of range for an input of rank 2"),
        ([1, -3], (2, 3, 4, 5), r"axis=\[1, -3\] names an axis twice"),
        ([-4, 1], (2, 3, 4, 5), r"axis=\[-4, 1\] names the batch axis"),
    ],
)
def test_axes_that_make_no_sense_are_refused_at_build(axis, shape, message):
    with pytest.raises(ValueError, match=message):
        FilterResponseNormalization(axis=axis).build(shape)
    message = message.replace("names the batch axis", "leaves the axes")  # functions take it
    with pytest.raises(ValueError, match=message):
        truenorm.ops.filter_response_normalization(np.zeros(shape, "float32"), axis=axis)


def test_an_unknown_number_of_channels_is_refused_at_build():
    message = (
        r"FilterResponseNormalization 'norm' needs the size of axes \[3\] to create gamma and "
        r"beta, but its input shape is \(None, 4, 4, None\); give the number of channels\."
    )
    with pytest.raises(ValueError, match=message):
        FilterResponseNormalization(name="norm").build((None, 4, 4, None))


def test_the_function_in_a_functional_model(rng, tmp_path):
    gamma, beta = rng.uniform(-2, 2, (2, 3)).astype("float32")
    inputs = keras.Input((None, 3))
    y = truenorm.ops.filter_response_normalization(inputs, gamma, beta, axis=1, epsilon=0.1)
    model = keras.Model(inputs, y)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    x = rng.normal(size=(2, 5, 3)).astype("float32")
    wanted = gamma * x / np.sqrt((x.astype("float64") ** 2).mean(1, keepdims=True) + 0.1) + beta
    for one in (model, loaded):
        np.testing.assert_allclose(ops.convert_to_numpy(one(x)), wanted, rtol=1e-5, atol=1e-6)
