"""Every file of TensorFlow Addons opens, computes what it computed, and trains on."""

import json
import re
import warnings

import keras
import numpy as np
import pytest

import truenorm
from migrate.models import MADE, MODELS, SMALL, error, every, outputs, predict, promised
from truenorm.core.errors import InputError
from truenorm.layers.base import NormalizationLayer

# The next training step of the others is Keras 2's, to rounding: these have an optimizer that was
# dropped, spectral normalization, which has another gradient, or virtual batches of other samples.
NEXT_STEP_DIFFERS = ["addons_optimizer", "spectral_normalized", "virtual_batches"]
if keras.backend.backend() == "tensorflow":  # Keras 3 updates there only the rows that were used
    NEXT_STEP_DIFFERS.append("masked")


def load(path):
    with warnings.catch_warnings():
        if path.parent.name in ("addons_optimizer", "legacy_optimizer"):
            warnings.simplefilter("ignore", UserWarning)  # see test_training.py
        return truenorm.load_model(path)


@pytest.mark.parametrize("name", [*SMALL, *MADE])
def test_the_model_computes_what_it_computed_and_trains_on(name, addons, stored):
    io = stored(name)
    model = load(addons(name) / "model.h5")
    if keras.backend.backend() == "tensorflow":
        model.jit_compile = False  # it takes long
    before = predict(model, io["x"])
    assert error(before, outputs(io)) <= 1e-5
    targets = [one for key, one in sorted(io.items()) if key.startswith("target")]
    targets = targets or [np.zeros_like(before[0])]
    model.train_on_batch(io["x"], targets if len(targets) > 1 else targets[0])
    after = predict(model, io["x"])
    assert error(after, before) > 1e-5
    if name in MADE and name not in NEXT_STEP_DIFFERS:
        assert error(after, outputs(io, "next")) <= 1e-5


@pytest.mark.parametrize(("name", "form"), every([*SMALL, *MADE], MODELS[1:]))
def test_every_file_gives_the_same_model(name, form, addons):
    """The same as model.h5, which is trained above: layers, weights and compile settings."""
    model, other = (load(addons(name) / one) for one in ("model.h5", form))
    assert without_seeds(other.get_config()) == without_seeds(model.get_config())
    assert_same(other.weights, model.weights)
    assert other.compiled
    assert without_seeds(serialized(other.loss)) == without_seeds(serialized(model.loss))
    configs = [one.optimizer.get_config() for one in (model, other)]
    for config in configs:
        config["name"] = None
    assert type(other.optimizer) is type(model.optimizer)
    if name == "legacy_optimizer":  # Keras 2 did not write its state to .keras
        assert int(other.optimizer.iterations) == 0
        return
    assert_same(other.optimizer.variables, model.optimizer.variables)
    assert configs[0] == configs[1]


def serialized(loss):
    if isinstance(loss, dict):
        return {key: serialized(one) for key, one in loss.items()}
    return loss if isinstance(loss, str) else keras.losses.serialize(loss)


def assert_same(variables, others):
    assert [tuple(one.shape) for one in variables] == [tuple(one.shape) for one in others]
    for one, other in zip(variables, others, strict=True):
        np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (one, other)))


def without_seeds(config):
    """A config without seeds and the numbers in names, which are new where none was given."""
    text = re.sub(r'"seed": \d+', '"seed": null', json.dumps(config))
    return json.loads(re.sub(r'_\d+"', '"', text))


@pytest.mark.parametrize(("name", "form"), every([*SMALL, *MADE], ("model.h5",)))
def test_each_normalization_is_within_twice_the_promise(name, form, addons, stored):
    io = stored(name)
    model = truenorm.load_model(addons(name) / form, compile=False)
    if "tfa_in_0" in io:
        first = model.layers[0]
        io |= {f"{first.name}/in": io["tfa_in_0"], f"{first.name}/out": io["tfa_out_0"]}
    for key in [one.removesuffix("/in") for one in io if one.endswith("/in")]:
        layer = model.get_layer(key)
        x, wanted = io[f"{key}/in"], io[f"{key}/out"]
        y = keras.ops.convert_to_numpy(layer(x))
        if isinstance(layer, NormalizationLayer):
            assert not layer.use_mask
            allowed = promised(layer, x)
        else:  # the two wrappers, which compute a Dense layer
            allowed = 5e-6 * np.maximum(1, np.abs(wanted))
        assert np.max(np.abs(y - wanted) / allowed) <= 2


def test_half_precision_comes_along(addons, stored):
    io = stored("mixed")
    for form in ("model.h5", "model.keras"):
        model = truenorm.load_model(addons("mixed") / form)
        assert model.layers[0].compute_dtype == "float16"
        assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
        assert error(predict(model, io["x"]), outputs(io)) <= 2e-3
        if form == "model.h5":
            model.train_on_batch(io["x"], io["target0"])
            assert error(predict(model, io["x"]), outputs(io, "next")) <= 2e-3


def test_layers_keep_their_names_and_arguments(addons):
    model = truenorm.load_model(addons("arguments") / "model.h5", compile=False)
    first, second, third, fourth, fifth = model.layers[:5]
    assert [one.name for one in model.layers[:2]] == [
        "group_normalization",
        "group_normalization_1",
    ]
    assert first.gamma is None
    assert isinstance(first.beta_constraint, keras.constraints.NonNeg)
    assert isinstance(first.beta_regularizer, keras.regularizers.L1)
    assert second.beta is None
    assert second.gamma_regularizer.l2 == pytest.approx(0.02)
    assert third.weights == []
    assert fourth.gamma_constraint.max_value == 1.5
    assert isinstance(fourth.beta_constraint, keras.constraints.UnitNorm)
    assert fourth.gamma_initializer.seed == 3
    assert not fifth.trainable


def test_keras_own_group_normalization_stays_keras_own(addons):
    model = truenorm.load_model(addons("keras_layers") / "model.keras", compile=False)
    kinds = [type(one) for one in model.layers]
    assert keras.layers.GroupNormalization in kinds
    assert truenorm.GroupNormalization in kinds


def test_masks_pass_layers_whose_statistics_ignore_them(addons):
    model = truenorm.load_model(addons("masked") / "model.h5", compile=False)
    norms = [one for one in model.layers if isinstance(one, NormalizationLayer)]
    assert len(norms) == 2
    assert all(one.supports_masking and not one.use_mask for one in norms)


@pytest.mark.parametrize("form", ["model.h5", "model.keras"])
def test_all_layers_that_cannot_be_mapped_are_named_at_once(form, addons):
    with pytest.raises(InputError) as caught:
        truenorm.load_model(addons("custom") / form)
    assert str(caught.value) == (
        "Keras 3 and truenorm have no counterpart to inner/shift_inside (mine>Shift); timed/layer "
        "(mine>Shift); maxout (Addons>Maxout); tf.__operators__.add (TFOpLambda: "
        "__operators__.add). "
        "Pass custom_objects={NAME: a Keras 3 class or function} to truenorm.load_model for those "
        "that "
        "you have."
    )


class Shift(keras.layers.Layer):
    def __init__(self, by=1.0, **kwargs):
        super().__init__(**kwargs)
        self.by = by

    def build(self, shape):
        self.factor = self.add_weight(name="factor", shape=(shape[-1],))

    def call(self, x):
        return x * self.factor + self.by

    def compute_output_shape(self, shape):
        return shape


class Maxout(keras.layers.Layer):
    def __init__(self, num_units, axis=-1, **kwargs):
        super().__init__(**kwargs)
        self.num_units = num_units

    def call(self, x):
        size = x.shape[-1] // self.num_units
        return keras.ops.max(keras.ops.reshape(x, (-1, *x.shape[1:-1], size, self.num_units)), -2)

    def compute_output_shape(self, shape):
        return (*shape[:-1], self.num_units)


class AddLambda(keras.layers.Layer):
    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        assert function == "__operators__.add"

    def call(self, x, y):
        return x + y


@pytest.mark.parametrize("form", ["model.h5", "model.keras"])
def test_custom_objects_fill_the_gaps(form, addons, stored):
    io = stored("custom")
    custom = {"mine>Shift": Shift, "Maxout": Maxout, "TFOpLambda": AddLambda}
    model = truenorm.load_model(addons("custom") / form, custom_objects=custom)
    assert error(predict(model, io["x"]), outputs(io)) <= 1e-5
    model.train_on_batch(io["x"], io["target0"])
    assert error(predict(model, io["x"]), outputs(io, "next")) <= 1e-5


@pytest.mark.parametrize("form", ["model.h5", "model.keras"])
def test_code_in_a_file_runs_only_unsafely(form, addons):
    with pytest.raises(
        InputError, match=r"Python code in the Lambda layer inner/lambda, .*safe_mode=False"
    ):
        truenorm.load_model(addons("lambdas") / form)


def test_without_a_model_in_the_file_it_says_what_to_do(addons):
    for form in ("weights.h5", "model.weights.h5", "checkpoint"):
        with pytest.raises(InputError, match="holds weights and no model"):
            truenorm.load_model(addons("nested") / form)


def test_a_file_of_keras_3_opens_as_ever(tmp_path):
    model = keras.Sequential([keras.Input((4,)), truenorm.LayerNormalization()])
    for form in ("new.keras", "new.h5"):
        model.save(tmp_path / form)
        again = truenorm.load_model(tmp_path / form, compile=False)
        assert type(again.layers[0]) is truenorm.LayerNormalization
        assert again.layers[0].use_mask
