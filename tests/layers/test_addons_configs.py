"""Configs that TensorFlow Addons 0.23 wrote open as truenorm's layers."""

import warnings

import keras
import pytest

import truenorm


def initializer(name, config=None):
    return {
        "module": "keras.initializers",
        "class_name": name,
        "config": config or {},
        "registered_name": None,
    }


def addons_config(beta, gamma, **options):
    """What its `get_config` returned, in its order."""
    return {
        "trainable": True,
        "dtype": "float32",
        **options,
        "epsilon": 0.001,
        "center": True,
        "scale": True,
        "beta_initializer": beta,
        "gamma_initializer": gamma,
        "beta_regularizer": None,
        "gamma_regularizer": None,
        "beta_constraint": None,
        "gamma_constraint": None,
    }


ZEROS, ONES = initializer("Zeros"), initializer("Ones")
UNIFORM = initializer("RandomUniform", {"minval": -0.05, "maxval": 0.05, "seed": None})
GROUP = [
    addons_config(ZEROS, ONES, name="group_normalization_6", groups=5, axis=3),
    addons_config(ZEROS, ONES, name="group_normalization_7", groups=32, axis=-1),
]
INSTANCE = [
    addons_config(UNIFORM, UNIFORM, name="instance_normalization_6", groups=-1, axis=3),
    addons_config(ZEROS, ONES, name="instance_normalization_7", groups=-1, axis=-1),
    # Written after the layer was built: the number of channels.
    addons_config(UNIFORM, UNIFORM, name="instance_normalization", groups=10, axis=3),
]


@pytest.mark.parametrize("config", GROUP, ids=lambda config: config["name"])
def test_group_normalization(config):
    layer = truenorm.GroupNormalization.from_config(dict(config))
    for key in ("name", "groups", "axis", "epsilon", "center", "scale", "trainable"):
        assert getattr(layer, key) == config[key]
    assert layer.dtype == "float32"
    layer.build((None, 4, 4, 320))
    assert layer.groups == config["groups"]
    check_initializers(layer)


@pytest.mark.parametrize("config", INSTANCE, ids=lambda config: config["name"])
def test_instance_normalization(config):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer = truenorm.InstanceNormalization.from_config(dict(config))
    for key in ("name", "axis", "epsilon", "center", "scale", "trainable"):
        assert getattr(layer, key) == config[key]
    assert layer.groups == -1
    layer.build((None, 4, 4, 6))
    assert layer.groups == -1
    assert "groups" not in layer.get_config()
    check_initializers(layer)
    if config["beta_initializer"] is UNIFORM:
        assert layer.beta_initializer.get_config()["minval"] == -0.05
        gamma, beta = layer.get_weights()
        for weight in (gamma, beta):
            assert abs(weight).max() <= 0.05
            assert len(set(weight)) == 6


def check_initializers(layer):
    for name in ("beta", "gamma"):
        assert isinstance(getattr(layer, f"{name}_initializer"), keras.initializers.Initializer)


def test_a_groups_argument_of_instance_normalization_is_ignored_with_a_warning():
    with pytest.warns(UserWarning, match=r"ignores groups=8: .* Use GroupNormalization") as caught:
        layer = truenorm.InstanceNormalization(groups=8)
    assert caught[0].filename == __file__
    assert layer.groups == -1
    layer.build((None, 4, 4))
    assert "groups" not in layer.get_config()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert truenorm.InstanceNormalization(groups=-1).groups == -1


@pytest.mark.parametrize(("cls", "configs"), [("GroupNormalization", GROUP)])
def test_the_config_written_again_differs_only_in_the_format_of_the_dtype(cls, configs):
    for config in configs:
        again = getattr(truenorm, cls).from_config(dict(config)).get_config()
        assert again.pop("dtype")["config"]["name"] == config["dtype"]
        assert again == {key: value for key, value in config.items() if key != "dtype"}
