"""Weights alone, in each layout, into a model that the user made."""

import keras
import numpy as np
import pytest

import truenorm
from migrate.models import MADE, MODELS, WEIGHTS, every
from truenorm.core.errors import InputError
from truenorm.tools.migrate import checkpoint, files, weights


@pytest.fixture(scope="module")
def loaded(addons):
    """A function from a name to the model of its .h5 file, made once."""
    models = {}

    def load(name):
        if name not in models:
            models[name] = truenorm.load_model(addons(name) / "model.h5", compile=False)
        return models[name]

    return load


def arrays(model):
    return [keras.ops.convert_to_numpy(one) for one in model.weights]


@pytest.mark.parametrize(("name", "form"), every(MADE, (*WEIGHTS, "saved_model")))
def test_every_layout_gives_the_same_weights(name, form, addons, loaded):
    model = loaded(name)
    wanted = arrays(model)
    for one in model.weights:
        one.assign(np.full(one.shape, 0.5))
    truenorm.load_weights(model, addons(name) / form)
    for found, array in zip(arrays(model), wanted, strict=True):
        np.testing.assert_array_equal(found, array)


def functional():
    """The model `branches`, as a user writes it for Keras 3."""
    inputs = keras.Input((5, 5, 4))
    x = keras.layers.Conv2D(6, 3, padding="same", activation="relu")(inputs)
    a = truenorm.GroupNormalization(groups=3)(x)
    b = truenorm.InstanceNormalization()(x)
    c = truenorm.FilterResponseNormalization()(x)
    x = keras.layers.Concatenate()([keras.layers.Add()([a, b]), c])
    shared = keras.layers.Dense(12)
    x = keras.layers.GlobalAveragePooling2D()(shared(keras.ops.tanh(shared(x))))
    return keras.Model(inputs, [keras.layers.Dense(3)(x), keras.layers.Dense(2, "softmax")(x)])


@pytest.mark.parametrize("form", [*MODELS, *WEIGHTS])
def test_into_a_model_with_other_names(form, addons, loaded):
    model = functional()
    truenorm.load_weights(model, addons("branches") / form)
    for found, wanted in zip(arrays(model), arrays(loaded("branches")), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_a_prefix_or_an_index_names_a_checkpoint(addons):
    model = functional()
    for path in ("weights", "weights.index"):
        model.layers[1].kernel.assign(np.zeros((3, 3, 4, 6)))
        truenorm.load_weights(model, addons("branches") / "checkpoint" / path)
        assert np.any(arrays(model)[0])


def test_a_checkpoint_of_an_object_that_has_the_model(addons):
    graph = files.read(addons("branches") / "checkpoint").weights
    outer = checkpoint.Node({"step": len(graph.nodes), "model": len(graph.nodes) + 1}, None)
    moved = checkpoint.Checkpoint(
        [outer, *graph.nodes[1:], checkpoint.Node({}, None), graph.nodes[0]], graph.arrays
    )
    model = functional()
    weights.assign(model, files.Saved("it", "checkpoint", None, None, moved))
    wanted = graph.arrays["layer_with_weights-0/kernel/.ATTRIBUTES/VARIABLE_VALUE"]
    np.testing.assert_array_equal(arrays(model)[0], wanted)


def test_the_older_name_of_the_tree(addons, tmp_path):
    """Keras 2.12 called it _layer_checkpoint_dependencies."""
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "model.weights.h5"
    path.write_bytes((addons("nested") / "model.weights.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        for name in [*(f"layers/{one}" for one in ("functional", "sequential")), ""]:
            group = file[name] if name else file
            group.move("layers", "_layer_checkpoint_dependencies")
    model = truenorm.load_model(addons("nested") / "model.h5", compile=False)
    wanted = arrays(model)
    for one in model.weights:
        one.assign(np.zeros(one.shape))
    truenorm.load_weights(model, path)
    for found, array in zip(arrays(model), wanted, strict=True):
        np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("form", WEIGHTS)
def test_weights_that_do_not_fit_are_named_and_change_nothing(form, addons):
    inputs = keras.Input((5, 5, 4))
    x = keras.layers.Conv2D(7, 3, name="wide")(inputs)
    model = keras.Model(inputs, truenorm.GroupNormalization(groups=7, name="norm")(x))
    before = arrays(model)
    with pytest.raises(InputError, match="do not fit the model"):
        truenorm.load_weights(model, addons("branches") / form)
    with pytest.raises(InputError) as caught:
        truenorm.load_weights(model, addons("nested") / form)
    assert "norm" in str(caught.value) or "layers with weights" in str(caught.value)
    for found, array in zip(arrays(model), before, strict=True):
        np.testing.assert_array_equal(found, array)


def test_a_shape_that_does_not_fit_is_said(addons):
    layers = [keras.layers.Dense(4, name="a"), keras.layers.Dense(3, name="b")]
    model = keras.Sequential([keras.Input((5,)), *layers])
    with pytest.raises(
        InputError, match=r"a: it has 2 weights|a: kernel has shape \(5, 4\), in the file"
    ):
        truenorm.load_weights(model, addons("addons_optimizer") / "model.h5")


def test_a_model_without_weights_is_told_to_build():
    model = keras.Sequential([keras.layers.Dense(3)])
    with pytest.raises(InputError, match="its input shape is not known"):
        truenorm.load_weights(model, __file__.replace("test_load_weights.py", "none.h5"))
