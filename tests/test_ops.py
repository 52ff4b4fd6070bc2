"""The functions: their numbers against the specification, their errors, and functional models."""

import dataclasses
import inspect

import keras
import numpy as np
import pytest
from keras import ops

import truenorm
from gradients import value_and_gradients
from truenorm import native
from truenorm.core import reference
from truenorm.core.kinds import KINDS
from truenorm.ops import NormalizationOperation

BACKEND = keras.backend.backend()
# Each function with options that fit inputs (..., 4).
FUNCTIONS = {
    "group": (truenorm.ops.group_normalization, {"groups": 2}),
    "instance": (truenorm.ops.instance_normalization, {}),
    "layer": (truenorm.ops.layer_normalization, {}),
    "rms": (truenorm.ops.rms_normalization, {}),
}
every_function = pytest.mark.parametrize("kind", FUNCTIONS)
SHAPE = (4, 6, 4)  # N == C: a size cannot tell (C,) from (N,)


def specification(kind, x, gamma=None, beta=None, mask=None, **options):
    """What the function must compute, in float64."""
    _, own = FUNCTIONS[kind]
    partition = {"axis": -1, **own, **{k: v for k, v in options.items() if k != "epsilon"}}
    x, gamma, beta = (None if one is None else one.astype("float64") for one in (x, gamma, beta))
    if mask is not None:
        mask = np.broadcast_to(mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim)), x.shape)
    return reference.normalize(
        x,
        gamma,
        beta,
        KINDS[kind].view(x.shape, **partition),
        epsilon=options.get("epsilon", 1e-6 if kind == "rms" else 1e-3),
        centered=kind != "rms",
        mask=mask,
    )


def call(kind, x, gamma=None, beta=None, **options):
    function, own = FUNCTIONS[kind]
    given = (x, gamma) if kind == "rms" else (x, gamma, beta)
    return function(*given, **{**own, **options})


def assert_close(actual, wanted, tolerance=1e-5):
    actual = ops.convert_to_numpy(actual).astype("float64")
    assert actual.shape == wanted.shape
    assert np.all(np.abs(actual - wanted) <= tolerance * np.maximum(1, np.abs(wanted)))


def parameters(kind, shape, rng):
    gamma, beta = rng.uniform(-2, 2, (2, *shape)).astype("float32")
    return gamma, None if kind == "rms" else beta


def test_signatures():
    common = {"epsilon": 1e-3, "mask": None, "activation": None, "residual": None}
    common["implementation"] = None
    wanted = {
        "filter_response_normalization": {
            "gamma": None,
            "beta": None,
            "axis": (1, 2),
            **common,
            "epsilon": 1e-6,
        },
        "group_normalization": {"gamma": None, "beta": None, "groups": 32, "axis": -1, **common},
        "instance_normalization": {"gamma": None, "beta": None, "axis": -1, **common},
        "layer_normalization": {"gamma": None, "beta": None, "axis": -1, **common},
        "rms_normalization": {"gamma": None, "axis": -1, **common, "epsilon": 1e-6},
    }
    assert sorted(truenorm.ops.__all__) == sorted(wanted)
    for name, defaults in wanted.items():
        x, *others = inspect.signature(getattr(truenorm.ops, name)).parameters.values()
        assert x.name == "x"
        assert {one.name: one.default for one in others} == defaults
        assert [one.name for one in others] == list(defaults)
        for one in others:
            by_position = one.name in ("gamma", "beta")
            assert one.kind is (one.POSITIONAL_OR_KEYWORD if by_position else one.KEYWORD_ONLY)


@every_function
def test_numbers_with_and_without_parameters(kind, rng):
    x = rng.normal(0.5, 2, SHAPE).astype("float32")
    gamma, beta = parameters(kind, (4,), rng)
    assert_close(call(kind, x), specification(kind, x))
    assert_close(call(kind, x, gamma), specification(kind, x, gamma))
    assert_close(call(kind, x, gamma, beta), specification(kind, x, gamma, beta))
    assert_close(call(kind, x, None, beta), specification(kind, x, None, beta))
    wanted = specification(kind, x, gamma, beta, epsilon=0.5)
    assert_close(call(kind, x, gamma, beta, epsilon=0.5), wanted)


@every_function
def test_x_as_a_list_of_lists_or_a_tensor(kind, rng):
    x = rng.normal(0.5, 2, (3, 4)).astype("float32")
    wanted = specification(kind, x)
    assert_close(call(kind, x.tolist()), wanted)
    assert_close(call(kind, ops.convert_to_tensor(x)), wanted)


@every_function
def test_the_rank_tells_per_sample_parameters_even_where_the_sizes_coincide(kind, rng):
    x = rng.normal(0.5, 2, SHAPE).astype("float32")
    shared, per_sample = (parameters(kind, shape, rng) for shape in [(4,), (4, 4)])
    for gamma in (None, shared[0], per_sample[0]):
        for beta in (None, shared[1], per_sample[1]):
            wanted = np.stack(
                [
                    specification(
                        kind,
                        x[n : n + 1],
                        gamma if gamma is None or gamma.ndim == 1 else gamma[n],
                        beta if beta is None or beta.ndim == 1 else beta[n],
                    )[0]
                    for n in range(4)
                ]
            )
            assert_close(call(kind, x, gamma, beta), wanted)


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("axis", [[2, 1], [1, 2], [-1, -2], (1, 2)], ids=str)
def test_parameters_of_several_axes_are_in_ascending_order(kind, axis, rng):
    x = rng.normal(0.5, 2, SHAPE).astype("float32")
    gamma, beta = parameters(kind, (6, 4), rng)
    wanted = specification(kind, x, gamma, beta, axis=[1, 2])
    assert_close(call(kind, x, gamma, beta, axis=axis), wanted)


@every_function
def test_gradients_of_per_sample_parameters(kind, rng):
    x, cotangent = rng.normal(0.5, 2, (2, 3, 6, 4)).astype("float32")
    gamma, beta = parameters(kind, (3, 4), rng)
    arguments = [one for one in (x, gamma, beta) if one is not None]
    _, gradients = value_and_gradients(lambda *tensors: call(kind, *tensors), arguments, cotangent)
    _, own = FUNCTIONS[kind]
    wanted = reference.gradient(
        *(one if one is None else one.astype("float64") for one in (x, gamma, beta, cotangent)),
        KINDS[kind].view(x.shape, **{"axis": -1, **own}),
        epsilon=1e-6 if kind == "rms" else 1e-3,
        centered=kind != "rms",
    )
    for one, other in zip(gradients, wanted, strict=False):
        assert_close(one, other, 2e-5)


# Errors


@every_function
@pytest.mark.parametrize(
    ("axis", "error", "message"),
    [
        (3, ValueError, r"axis=3 is out of range for an input of rank 3; .* 0 to 2, or -3 to -1"),
        (-4, ValueError, r"axis=-4 is out of range for an input of rank 3; .* 0 to 2, or -3 to -1"),
        (1.0, TypeError, r"axis=1.0 must be .*integer"),
        ("last", TypeError, r"axis='last' must be .*integer"),
        (None, TypeError, r"axis=None must be .*integer"),
    ],
)
def test_a_wrong_axis(kind, axis, error, message, rng):
    with pytest.raises(error, match=message):
        call(kind, np.zeros(SHAPE, "float32"), axis=axis)
    with pytest.raises(error, match=message):
        call(kind, keras.Input(SHAPE[1:]), axis=axis)


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize(
    ("axis", "message"),
    [
        ([1, 1], r"axis=\[1, 1\] names an axis twice for an input of rank 3; .* 0 to 2, or -3 to"),
        ([2, -1], r"axis=\[2, -1\] names an axis twice for an input of rank 3"),
        ([1, 3], r"axis=\[1, 3\] is out of range for an input of rank 3"),
        ([], r"axis=\[\] names no axis; allowed axes are 0 to 2, or -3 to -1"),
    ],
)
def test_wrong_lists_of_axes(kind, axis, message):
    with pytest.raises(ValueError, match=message):
        call(kind, np.zeros(SHAPE, "float32"), axis=axis)


@every_function
def test_an_input_without_an_axis_to_normalize(kind):
    with pytest.raises(ValueError, match=r"axis=-1 .* of rank 0.* allowed axes are none"):
        call(kind, np.zeros((), "float32"))


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only there channels are known so late")
@pytest.mark.parametrize("implementation", [None, "plain"])
def test_groups_that_turn_out_not_to_divide(implementation):
    import tensorflow as tf

    call = tf.function(
        lambda x: truenorm.ops.group_normalization(x, groups=3, implementation=implementation),
        input_signature=[tf.TensorSpec((None, None))],
    )
    assert call(tf.zeros((2, 6))).shape == (2, 6)
    with pytest.raises(tf.errors.InvalidArgumentError, match="groups=3 does not divide the channe"):
        call(tf.zeros((2, 4)))


@pytest.mark.skipif(BACKEND != "jax", reason="only there channels may be a symbol")
def test_groups_of_channels_that_are_a_symbol():
    import jax
    from jax import export

    def traced(channels):
        shape = export.symbolic_shape(f"b, {channels}")
        call = jax.jit(lambda x: truenorm.ops.group_normalization(x, groups=3))
        return export.export(call)(jax.ShapeDtypeStruct(shape, "float32"))

    assert traced("3*c").call(np.ones((2, 6), "float32")).shape == (2, 6)
    with pytest.raises(ValueError, match=r"groups=3 divide the channels of axis 1 or not.* 3\*c"):
        traced("c")


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_parameters_per_sample_where_samples_are_mixed(kind):
    with pytest.raises(ValueError, match=r"gamma has the shape \(4, 4, 4\).* needs \(4, 4\)\."):
        call(kind, np.zeros(SHAPE, "float32"), np.ones((4, 4, 4), "float32"), axis=[0, 2])


class Foreign:
    """An array of a framework that is not Keras' backend."""

    def __array__(self, dtype=None, copy=None):
        return np.zeros((3, 4), "float32")


Foreign.__module__ = "elsewhere.arrays"


@pytest.mark.parametrize("argument", ["x", "gamma", "beta", "mask"])
def test_an_array_of_another_framework(argument):
    given = {"x": np.zeros((3, 4), "float32"), argument: Foreign()}
    message = f"{argument} is a Foreign of elsewhere, but Keras runs on {BACKEND};.*np.asarray"
    with pytest.raises(TypeError, match=message):
        truenorm.ops.layer_normalization(given.pop("x"), **given)
    with pytest.raises(TypeError, match=f"x is a Foreign of elsewhere.*{BACKEND}"):
        truenorm.ops.layer_normalization([Foreign(), Foreign()])


def test_messages_are_short_and_come_at_once():
    x = np.zeros((2, 4), "float32")
    for options in (
        {"groups": 10**5000},
        {"axis": [1] * 10**6},
        {"axis": "a" * 10**7},
        {"groups": 3, "epsilon": 10**5000},
        {"groups": 3, "implementation": "n" * 10**7},
    ):
        with pytest.raises((ValueError, TypeError)) as raised:
            truenorm.ops.group_normalization(x, **options)
        assert len(str(raised.value)) < 500
    with pytest.raises(ValueError, match="does not divide the 1000000000000 channels") as raised:
        truenorm.GroupNormalization(7).build((None, 10**12))
    assert len(str(raised.value)) < 500
    with pytest.raises(ValueError, match=r"gamma has the shape") as raised:
        truenorm.ops.layer_normalization(*(np.zeros((1,) * n, "float32") for n in (30, 20)))
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize("kind", ["group", "instance"])
def test_a_list_of_channel_axes(kind):
    with pytest.raises(TypeError, match=r"axis=\[1, 2\] must be one integer, the channel axis"):
        call(kind, np.zeros(SHAPE, "float32"), axis=[1, 2])


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        (5, ValueError, r"groups=5 does not divide the 12 channels of axis 2; choose a divisor of "
         r"12 \(1, 2, 3, 4, 6, 12\), or groups=-1"),
        (24, ValueError, r"groups=24 does not divide the 12 channels"),
        (0, ValueError, r"groups=0 must be a positive divisor of the number of channels, or -1"),
        (-3, ValueError, r"groups=-3 must be a positive divisor"),
        (2.0, TypeError, r"groups=2.0 must be an integer"),
    ],
)  # fmt: skip
def test_wrong_groups(groups, error, message):
    with pytest.raises(error, match=message):
        truenorm.ops.group_normalization(np.zeros((2, 6, 12), "float32"), groups=groups)
    with pytest.raises(error, match=message):
        truenorm.ops.group_normalization(keras.Input((6, 12)), groups=groups)


@every_function
@pytest.mark.parametrize(
    ("shape", "given"),
    [((5,), r"\(5,\)"), ((), r"\(\)"), ((4, 5), r"\(4, 5\)"), ((3, 4), r"\(3, 4\)"),
     ((4, 6, 4), r"\(4, 6, 4\)"), ((1, 4), r"\(1, 4\)")],
)  # fmt: skip
def test_a_wrong_parameter_shape_is_told_with_both_right_ones(kind, shape, given):
    x, wrong = np.zeros(SHAPE, "float32"), np.ones(shape, "float32")
    message = (
        rf"{given}, but x of shape \(4, 6, 4\) with parameters over axes \[2\] needs \(4,\), or "
        r"\(4, 4\) for one per sample"
    )
    with pytest.raises(ValueError, match="gamma has the shape " + message):
        call(kind, x, wrong)
    if kind != "rms":
        with pytest.raises(ValueError, match="beta has the shape " + message):
            call(kind, x, None, wrong)


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_parameters_in_the_order_of_the_list_of_axes_are_told_the_right_shape(kind):
    x, wrong = np.zeros((3, 6, 4), "float32"), np.ones((4, 6), "float32")
    message = (
        r"gamma has the shape \(4, 6\), but x of shape \(3, 6, 4\) with parameters over axes "
        r"\[1, 2\] needs \(6, 4\), or \(3, 6, 4\) for one per sample"
    )
    with pytest.raises(ValueError, match=message):
        call(kind, x, wrong, axis=[2, 1])


@every_function
@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (np.ones((4, 5), bool), ValueError, r"mask has the shape \(4, 5\), which is not the "
         r"beginning of x's shape \(4, 6, 4\); expected \(4,\), \(4, 6\) or longer"),
        (np.ones((6,), bool), ValueError, r"mask has the shape \(6,\)"),
        (np.ones((1, 6), bool), ValueError, r"mask has the shape \(1, 6\)"),
        (np.bool_(True), ValueError, r"mask has the shape \(\)"),
        (np.ones((4, 6, 4, 1), bool), ValueError, r"mask has the shape \(4, 6, 4, 1\)"),
        (np.ones((4, 6), "int32"), TypeError, r"mask must be boolean; got int32. Pass mask != 0"),
        (np.ones((4, 6), "float32"), TypeError, r"mask must be boolean; got float32"),
    ],
)  # fmt: skip
def test_a_wrong_mask(kind, mask, error, message):
    with pytest.raises(error, match=message):
        call(kind, np.zeros(SHAPE, "float32"), mask=mask)
    symbolic = keras.KerasTensor(mask.shape, str(mask.dtype))
    with pytest.raises(error, match=message):
        call(kind, keras.KerasTensor(SHAPE, "float32"), mask=symbolic)


@every_function
def test_tensors_that_are_not_floating(kind):
    x, gamma = np.zeros(SHAPE, "float32"), np.ones(4, "float32")
    integers = np.zeros(SHAPE, "int32")
    message = r"{} must be a floating-point tensor; got int32. Cast it first"
    with pytest.raises(TypeError, match=message.format("x")):
        call(kind, integers)
    with pytest.raises(TypeError, match=message.format("x")):
        call(kind, keras.Input(SHAPE[1:], dtype="int32"))
    with pytest.raises(TypeError, match=message.format("gamma")):
        call(kind, x, gamma.astype("int32"))
    if kind != "rms":
        with pytest.raises(TypeError, match=message.format("beta")):
            call(kind, x, gamma, gamma.astype("int32"))


@every_function
@pytest.mark.parametrize("epsilon", [-1e-3, float("nan"), float("inf"), "1e-3", None])
def test_a_wrong_epsilon(kind, epsilon):
    with pytest.raises(ValueError, match=rf"epsilon={epsilon!r} must be a finite number of zero"):
        call(kind, np.zeros(SHAPE, "float32"), epsilon=epsilon)


@every_function
def test_an_unknown_implementation(kind):
    message = (
        r"implementation='cuda' is unknown; expected None \(the fastest that supports the call\) "
        r"or one of 'native', 'triton', 'plain'"
    )
    with pytest.raises(ValueError, match=message):
        call(kind, np.zeros(SHAPE, "float32"), implementation="cuda")
    with pytest.raises(ValueError, match=message):
        call(kind, keras.Input(SHAPE[1:]), implementation="cuda")


@every_function
def test_the_native_implementation_says_why_it_cannot(kind, monkeypatch):
    engines = (native.Missing("it was not built"), truenorm.ops.FRONT.engines[-1])
    monkeypatch.setattr(truenorm.ops, "FRONT", truenorm.ops.FRONT._replace(engines=engines))
    message = (
        r"implementation='native' cannot compute this call: it was not built. "
        r"Pass implementation='plain', or None"
    )
    with pytest.raises(NotImplementedError, match=message):
        call(kind, np.zeros(SHAPE, "float32"), implementation="native")


@pytest.mark.skipif(BACKEND != "jax", reason="only JAX computes in 32 bits unless told otherwise")
@pytest.mark.filterwarnings("ignore:Explicitly requested dtype:UserWarning")  # JAX's own, weaker
@every_function
def test_float64_on_jax_is_an_error_that_names_the_variable(kind):
    x = np.zeros(SHAPE, "float64")
    message = r"float64 was passed, but JAX computes in 32 bits.*JAX_ENABLE_X64=1.*pass float32"
    with pytest.raises(ValueError, match=message):
        call(kind, x)
    with pytest.raises(ValueError, match=message):
        call(kind, x.astype("float32"), np.ones(4))


# Functional models


@every_function
def test_one_operation_in_a_functional_model_that_saves_and_loads(kind, rng, tmp_path):
    inputs = keras.Input((6, 4))
    gamma, beta = parameters(kind, (4,), rng)
    model = keras.Model(inputs, call(kind, inputs, gamma, beta, epsilon=0.25))
    assert [type(one) for one in model.operations[1:]] == [NormalizationOperation]
    assert model.output_shape == (None, 6, 4)
    x = rng.normal(0.5, 2, SHAPE).astype("float32")
    wanted = specification(kind, x, gamma, beta, epsilon=0.25)
    assert_close(model(x), wanted)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert [type(one) for one in again.operations[1:]] == [NormalizationOperation]
    assert again.operations[1].get_config() == model.operations[1].get_config()
    np.testing.assert_array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))
    cloned = keras.models.clone_model(model)
    assert_close(cloned(x), wanted)


@every_function
def test_every_tensor_may_be_symbolic(kind, rng, tmp_path):
    inputs = [keras.Input((6, 4)), keras.Input((4,)), keras.Input((4,))]
    mask = keras.Input((6,), dtype="bool")
    if kind == "rms":
        del inputs[2]
    y = call(kind, *inputs, mask=mask)
    model = keras.Model([*inputs, mask], y)
    assert [type(one).__name__ for one in model.operations].count("NormalizationOperation") == 1
    x = rng.normal(0.5, 2, (3, 6, 4)).astype("float32")
    gamma, beta = parameters(kind, (3, 4), rng)  # an Input has a batch axis: one per sample
    real = rng.random((3, 6)) < 0.7
    arguments = [one for one in (x, gamma, beta, real) if one is not None]
    wanted = specification(kind, x, gamma, beta, mask=real)
    assert_close(model.predict(arguments, verbose=0), wanted)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert_close(again.predict(arguments, verbose=0), wanted)


@every_function
def test_only_gamma_may_be_symbolic(kind, rng):
    x = rng.normal(0.5, 2, SHAPE).astype("float32")
    gamma, _ = parameters(kind, (4, 4), rng)
    symbolic = keras.Input(batch_shape=(4, 4))
    model = keras.Model(symbolic, call(kind, x, symbolic))
    assert model.output_shape == SHAPE
    assert_close(model(gamma), specification(kind, x, gamma))


@every_function
def test_symbolic_shapes_are_checked_when_the_model_is_made(kind):
    inputs = keras.Input((6, 4))
    with pytest.raises(ValueError, match=r"gamma has the shape \(5,\), but x of shape \(None, 6,"):
        call(kind, inputs, np.ones(5, "float32"))
    with pytest.raises(ValueError, match=r"gamma has the shape \(None, 5\), but x of shape"):
        call(kind, inputs, keras.Input((5,)))
    with pytest.raises(ValueError, match=r"mask has the shape \(None, 5\), which is not the begin"):
        call(kind, inputs, mask=keras.Input((5,), dtype="bool"))
    # An unknown size fits everything.
    assert call(kind, inputs, keras.KerasTensor((None,), "float32")).shape == (None, 6, 4)


@every_function
def test_the_options_of_an_operation_survive_its_config(kind):
    arguments = {
        "function": f"{kind}_normalization",
        "implementation": "plain",
        "options": FUNCTIONS[kind][1] | {"axis": -1, "epsilon": 0.5},
        "name": "norm",
    }
    operation = NormalizationOperation(**arguments)
    assert operation.get_config() == arguments
    assert NormalizationOperation.from_config(arguments).get_config() == arguments


def test_an_unknown_function_in_a_config_is_named():
    config = {"function": "no_such", "implementation": None, "options": {}, "name": "norm"}
    with pytest.raises(ValueError, match=r"function='no_such' is unknown; expected one of batch_n"):
        NormalizationOperation(**config)


def test_a_kind_that_is_added_later_is_known(monkeypatch):
    new = dataclasses.replace(KINDS["layer"], name="new", title="New normalization")
    monkeypatch.setitem(KINDS, "new", new)
    options = {"function": "new_normalization", "implementation": None, "options": {"axis": -1}}
    assert NormalizationOperation.from_config(options).kind is new


def test_the_dtype_of_a_symbolic_result_is_that_of_x():
    inputs = keras.Input((6, 4), dtype="float16")
    y = truenorm.ops.layer_normalization(inputs, np.ones(4, "float32"))
    assert y.dtype == "float16"
    got = keras.Model(inputs, y)(np.zeros((2, 6, 4), "float16"))
    assert keras.backend.standardize_dtype(got.dtype) == "float16"
