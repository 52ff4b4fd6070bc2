"""Arguments, their defaults, the config and the weights."""

import inspect
import json

import keras
import numpy as np
import pytest
from keras import ops
from kinds import KERAS_MAKERS, MAKERS, RICH_OPTIONS, assert_close, make, randomize

import truenorm

GROUP_DEFAULTS = {
    "groups": 32,
    "axis": -1,
    "epsilon": 1e-3,
    "center": True,
    "scale": True,
    "beta_initializer": "zeros",
    "gamma_initializer": "ones",
    "beta_regularizer": None,
    "gamma_regularizer": None,
    "beta_constraint": None,
    "gamma_constraint": None,
    "use_mask": True,
    "implementation": None,
    "activation": None,
}
LAYER_DEFAULTS = {key: value for key, value in GROUP_DEFAULTS.items() if key != "groups"}
RMS_DEFAULTS = {
    "axis": -1,
    "epsilon": 1e-6,
    "scale": True,
    "gamma_initializer": "ones",
    "gamma_regularizer": None,
    "gamma_constraint": None,
    "use_mask": True,
    "implementation": None,
    "activation": None,
}
SHAPE = (2, 6, 4, 8)


@pytest.mark.parametrize(
    ("cls", "defaults"),
    [
        (truenorm.GroupNormalization, GROUP_DEFAULTS),
        (truenorm.LayerNormalization, LAYER_DEFAULTS),
        (truenorm.RMSNormalization, RMS_DEFAULTS),
    ],
)
def test_arguments_their_order_and_defaults(cls, defaults):
    parameters = inspect.signature(cls).parameters
    named = {name: one.default for name, one in parameters.items() if name != "kwargs"}
    assert list(named.items()) == list(defaults.items())
    layer = cls()
    given = cls(**defaults)
    assert without_name(layer.get_config()) == without_name(given.get_config())
    for name in ("axis", "epsilon", "scale", "use_mask", "implementation"):
        assert getattr(layer, name) == defaults[name]


def test_instance_normalization_has_the_defaults_of_group_normalization_without_groups():
    layer = truenorm.InstanceNormalization()
    given = truenorm.InstanceNormalization(**LAYER_DEFAULTS)
    assert without_name(layer.get_config()) == without_name(given.get_config())
    assert "groups" not in layer.get_config()
    assert layer.groups == -1
    assert list(inspect.signature(truenorm.InstanceNormalization).parameters)[:2] == [
        "axis",
        "epsilon",
    ]


@pytest.mark.parametrize("kind", MAKERS)
def test_the_config_has_the_keys_and_values_of_keras_layer(kind):
    theirs = without_name(KERAS_MAKERS[kind]().get_config())
    ours = without_name(make(kind).get_config())
    if kind == "instance":
        del theirs["groups"]
    if kind == "layer":
        del theirs["rms_scaling"]  # stored only where it was set
    if kind == "rms":  # Keras names no gamma in its arguments
        assert ours == theirs | {
            key: value for key, value in ours.items() if key.startswith(("gamma", "scale"))
        }
    else:
        assert ours == theirs


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize(
    "options",
    [{}, {"axis": 2}, {"axis": -3, "scale": False}, {"center": False, **RICH_OPTIONS}],
    ids=str,
)
def test_the_config_survives_build_and_round_trip(kind, options):
    layer = make(kind, name="norm", dtype="mixed_bfloat16", trainable=False, **options)
    before = layer.get_config()
    layer.build(SHAPE)
    assert layer.get_config() == before
    stored = json.loads(json.dumps(before))
    assert stored == before
    again = type(layer).from_config(stored)
    assert stored == before
    assert type(again) is type(layer)
    assert again.get_config() == before
    again.build(SHAPE)
    assert again.get_config() == before
    for key, value in options.items():
        if key in ("axis", "scale", "epsilon"):
            assert before[key] == value
    # The initializers have a seed, so that both layers have the same weights.
    for one, other in zip(layer.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", MAKERS)
def test_use_mask_and_implementation_are_in_the_config_only_where_they_were_set(kind):
    assert not {"use_mask", "implementation"} & set(make(kind).get_config())
    assert not {"use_mask", "implementation"} & set(
        make(kind, use_mask=True, implementation=None).get_config()
    )
    layer = make(kind, use_mask=False, implementation="plain")
    config = layer.get_config()
    assert config["use_mask"] is False
    assert config["implementation"] == "plain"
    again = type(layer).from_config(config)
    assert again.use_mask is False
    assert again.implementation == "plain"


@pytest.mark.filterwarnings("ignore:You passed `rms_scaling=True`:UserWarning")
@pytest.mark.parametrize("rms_scaling", [True, False])
@pytest.mark.parametrize("axis", [-1, [2, 3], [1, 3]], ids=str)
def test_keras_config_with_rms_scaling_opens_and_gives_keras_numbers(rms_scaling, axis, rng):
    # With an epsilon near the variance, and a mean away from zero, every term of the formula shows.
    theirs = keras.layers.LayerNormalization(
        axis=axis, epsilon=0.3, rms_scaling=rms_scaling, name="norm"
    )
    stored = json.loads(json.dumps(theirs.get_config()))
    layer = truenorm.LayerNormalization.from_config(stored)
    assert layer.rms_scaling is rms_scaling
    again = truenorm.LayerNormalization.from_config(json.loads(json.dumps(layer.get_config())))
    assert again.rms_scaling is rms_scaling
    assert again.get_config() == layer.get_config()

    for one in (theirs, layer, again):
        one.build(SHAPE)
    randomize(theirs, rng)
    names = ["gamma"] if rms_scaling else ["gamma", "beta"]
    assert [one.name for one in theirs.weights] == names
    x = rng.normal(1.5, 1, SHAPE).astype("float32")
    wanted = ops.convert_to_numpy(theirs(x)).astype("float64")
    for one in (layer, again):
        assert [weight.name for weight in one.weights] == names
        one.set_weights(theirs.get_weights())
        assert_close(one(x), wanted)


def test_groups_minus_one_stays_minus_one():
    layer = truenorm.GroupNormalization(groups=-1)
    layer.build(SHAPE)
    assert layer.groups == -1
    assert layer.get_config()["groups"] == -1


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("axis", [-1, 2, [3, 1], [-1, 1], [2]], ids=str)
def test_axis_stays_as_it_was_given(kind, axis):
    layer = make(kind, axis=axis)
    layer.build(SHAPE)
    assert layer.axis == axis
    assert layer.get_config()["axis"] == axis
    tuples = make(kind, axis=tuple(axis) if isinstance(axis, list) else axis)
    assert tuples.get_config()["axis"] == axis


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("axis", [np.int64(2), np.int64(-1)], ids=str)
def test_numpy_numbers_are_stored_as_plain_numbers(kind, axis):
    config = make(kind, axis=axis, epsilon=np.float32(0.5)).get_config()
    assert type(config["axis"]) is int
    assert config["axis"] == int(axis)
    assert type(config["epsilon"]) is float
    assert config["epsilon"] == 0.5


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("axis", [-1, 1, 2, -2])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("scale", [True, False])
def test_weights_have_keras_shapes_in_the_order_gamma_beta(kind, axis, center, scale):
    layer = make(kind, axis=axis, center=center, scale=scale)
    layer.build(SHAPE)
    names = ["gamma"] * scale + ["beta"] * (center and kind != "rms")
    assert [one.name for one in layer.weights] == names
    assert (layer.gamma is not None) == ("gamma" in names)
    assert (layer.beta is not None) == ("beta" in names)
    if kind == "rms":
        if scale:
            assert layer.gamma.shape == (SHAPE[axis],)
        return
    theirs = KERAS_MAKERS[kind](axis=axis, center=center, scale=scale)
    theirs.build(SHAPE)
    assert [one.name for one in theirs.weights] == names
    assert [one.shape for one in layer.weights] == [one.shape for one in theirs.weights]


@pytest.mark.parametrize("axis", [[1, 2, 3], [1, 3], [-1, -2], -1], ids=str)
def test_weights_of_several_axes_have_keras_shapes(axis):
    axis = sorted(one % 4 for one in axis) if isinstance(axis, list) else axis
    theirs = keras.layers.LayerNormalization(axis=axis)
    theirs.build(SHAPE)
    for kind in ("layer", "rms"):
        layer = make(kind, axis=axis)
        layer.build(SHAPE)
        assert layer.gamma.shape == theirs.gamma.shape
    keras_rms = keras.layers.RMSNormalization(axis=-1)
    keras_rms.build(SHAPE)
    rms = make("rms")
    rms.build(SHAPE)
    assert [one.shape for one in rms.weights] == [one.shape for one in keras_rms.weights]


def test_several_axes_have_weights_in_ascending_order_of_the_axes():
    for axis in ([3, 1], [1, 3], [-1, 1]):
        layer = truenorm.LayerNormalization(axis=axis)
        layer.build(SHAPE)
        assert layer.gamma.shape == layer.beta.shape == (6, 8)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"epsilon": -1e-3}, ValueError, r"epsilon=-0.001 must be a finite number of zero or more"),
        ({"epsilon": "tiny"}, ValueError, r"epsilon='tiny' must be a finite number"),
        ({"epsilon": float("nan")}, ValueError, r"epsilon=nan must be a finite number"),
        (
            {"implementation": "fast"},
            ValueError,
            r"implementation='fast' is unknown; .* one of 'native', 'triton', 'plain'",
        ),
        ({"axis": 0}, ValueError, r"axis=0 names the batch axis"),
        ({"axis": 1.5}, TypeError, r"axis=1.5 must be .*integer"),
        ({"axis": None}, TypeError, r"axis=None must be .*integer"),
    ],
)
def test_bad_arguments_are_refused_at_construction(kind, options, error, message):
    with pytest.raises(error, match=message):
        make(kind, **options)


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize(
    ("axis", "error", "message"),
    [
        ([], ValueError, r"axis=\[\] names no axis"),
        ([1, 1], ValueError, r"axis=\[1, 1\] names an axis twice"),
        ([1, 0], ValueError, r"axis=\[1, 0\] names the batch axis"),
        ([1, "b"], TypeError, r"axis=\[1, 'b'\] must be an integer or a list of integers; got str"),
    ],
)
def test_bad_lists_of_axes_are_refused_at_construction(kind, axis, error, message):
    with pytest.raises(error, match=message):
        make(kind, axis=axis)


@pytest.mark.parametrize("cls", [truenorm.GroupNormalization, truenorm.InstanceNormalization])
def test_a_list_of_channel_axes_is_refused_at_construction(cls):
    with pytest.raises(
        TypeError, match=r"axis=\[1, 2\] must be one integer.*use layer normalization"
    ):
        cls(axis=[1, 2])


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        (0, ValueError, r"groups=0 must be a positive divisor of the number of channels, or -1"),
        (-2, ValueError, r"groups=-2 must be a positive divisor"),
        (2.5, TypeError, r"groups=2.5 must be an integer"),
        ("4", TypeError, r"groups='4' must be an integer"),
    ],
)
def test_bad_groups_are_refused_at_construction(groups, error, message):
    with pytest.raises(error, match=message):
        truenorm.GroupNormalization(groups=groups)


def test_groups_that_do_not_divide_are_refused_at_build():
    message = (
        r"groups=5 does not divide the 8 channels of axis 3; choose a divisor of 8 "
        r"\(1, 2, 4, 8\), or groups=-1"
    )
    with pytest.raises(ValueError, match=message):
        truenorm.GroupNormalization(groups=5).build(SHAPE)
    with pytest.raises(ValueError, match=r"groups=32 does not divide the 8 channels"):
        truenorm.GroupNormalization()(np.zeros(SHAPE, "float32"))


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize(
    ("axis", "message"),
    [
        (4, r"axis=4 is out of range for an input of rank 4; allowed axes are 1 to 3, or -3 to -1"),
        (-5, r"axis=-5 is out of range for an input of rank 4"),
        (-4, r"axis=-4 names the batch axis of an input of rank 4"),
    ],
)
def test_axes_that_do_not_exist_are_refused_at_build(kind, axis, message):
    with pytest.raises(ValueError, match=message):
        make(kind, axis=axis).build(SHAPE)


@pytest.mark.parametrize("kind", MAKERS)
def test_an_unknown_size_of_the_parameter_axis_is_refused_at_build_unless_there_are_none(kind):
    layer = make(kind, name="norm")
    message = (
        rf"{type(layer).__name__} 'norm' needs the size of axes \[2\] to create gamma and beta, "
        r"but its input shape is \(None, 4, None\); give those sizes, or pass scale=False"
    )
    with pytest.raises(ValueError, match=message):
        layer.build((None, 4, None))
    bare = make(kind, scale=False, center=False)
    bare.build((None, 4, None))
    assert bare.weights == []


def without_name(config):
    return {key: value for key, value in config.items() if key != "name"}
