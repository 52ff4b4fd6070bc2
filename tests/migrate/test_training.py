"""Compile settings: what Keras 3 has comes along, what it does not is dropped with a sentence."""

import warnings

import keras
import pytest

import truenorm
from truenorm.tools.migrate.training import Compiling


def load(path):
    """The model, and the sentences on what was dropped."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = truenorm.load_model(path)
    return model, [str(one.message) for one in caught if one.category is UserWarning]


@pytest.mark.parametrize("form", ["model.h5", "model.keras", "saved_model"])
def test_an_optimizer_of_addons_is_dropped(form, addons, stored):
    model, said = load(addons("addons_optimizer") / form)
    assert said == [
        "The optimizer Addons>Lookahead was dropped: Keras 3 does not have it. Keras' default, "
        "RMSprop, "
        "stands in for it until you compile the model with another."
    ]
    assert isinstance(model.optimizer, keras.optimizers.RMSprop)
    io = stored("addons_optimizer")
    loss, accuracy = model.evaluate(io["x"], io["target0"], verbose=0)
    assert loss > 0
    assert 0 <= accuracy <= 1


@pytest.mark.parametrize("form", ["model.h5", "model.keras"])
def test_a_loss_and_a_metric_of_addons_are_dropped(form, addons):
    model, said = load(addons("addons_loss") / form)
    assert said[0] == (
        "The loss Addons>SigmoidFocalCrossEntropy was dropped: Keras 3 does not have it. Compile "
        "the "
        "model with a loss before you train it."
    )
    assert len(said) == 2
    assert "HammingLoss was dropped: Keras 3 does not have it." in said[1]
    assert isinstance(model.optimizer, keras.optimizers.Adam)
    assert int(model.optimizer.iterations) == 3
    model.compile(model.optimizer, "mse")


def test_a_loss_of_addons_that_you_have(addons):
    class FocalLoss(keras.losses.Loss):
        def __init__(self, from_logits, alpha, gamma, reduction, name):
            super().__init__(name=name)
            assert from_logits
            assert alpha == 0.25

        def call(self, y_true, y_pred):
            return keras.ops.mean(keras.ops.square(y_true - y_pred), -1)

    with pytest.warns(UserWarning, match="HammingLoss"):
        model = truenorm.load_model(
            addons("addons_loss") / "model.h5",
            custom_objects={"Addons>SigmoidFocalCrossEntropy": FocalLoss},
        )
    assert isinstance(model.loss, FocalLoss)


def test_a_legacy_optimizer_and_its_decay(addons):
    model, said = load(addons("legacy_optimizer") / "model.h5")
    assert not said
    schedule = model.optimizer.get_config()["learning_rate"]
    assert schedule["class_name"] == "InverseTimeDecay"
    assert schedule["config"]["decay_rate"] == 1e-3
    _, said = load(addons("legacy_optimizer") / "model.keras")
    assert said == ["The optimizer starts without its state: the file has none."]


def test_losses_metrics_weights_and_arguments(addons, stored):
    io = stored("branches")
    model, said = load(addons("branches") / "model.h5")
    assert not said
    results = model.evaluate(io["x"], [io["target0"], io["target1"]], verbose=0, return_dict=True)
    assert {"loss", "one_mae", "two_accuracy"} <= set(results)
    one, two = (results.get(key) for key in ("one_loss", "two_loss"))
    if one is not None:
        assert results["loss"] == pytest.approx(one + 0.5 * two, rel=1e-5)
    assert model.optimizer.nesterov
    model, _ = load(addons("arguments") / "model.keras")
    assert model.optimizer.clipnorm == 1.0
    assert model.optimizer.use_ema
    assert model.steps_per_execution == 1
    model, _ = load(addons("wrappers") / "model.h5")
    io = stored("wrappers")
    results = model.evaluate(io["x"], io["target0"], verbose=0, return_dict=True)
    assert set(results) == {"loss", "mse", "mae"}
    assert results["mse"] == pytest.approx(results["loss"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"optimizer": None, "loss": "mse"},
            "The optimizer was dropped: the file does not name one.",
        ),
        ({"optimizer": "adam", "loss": "nonsense"}, "The loss nonsense was dropped"),
        ({"optimizer": "adam", "loss": 3}, "The loss 3 was dropped"),
        ({"optimizer": "adam", "loss": "mse", "metrics": ["odd"]}, "The metric odd was dropped"),
        (
            {"optimizer": "adam", "metrics": {"class_name": 3, "config": 4}},
            "The compile settings were dropped",
        ),
        ({"optimizer": {"class_name": "Adam", "config": {"beta_1": []}}}, None),
        (
            {
                "optimizer": {
                    "class_name": "SGD",
                    "config": {"learning_rate": {"class_name": "Odd"}},
                }
            },
            "The optimizer SGD was dropped, since Keras 3 says: there is no learning rate "
            "schedule Odd.",
        ),
        (
            {"optimizer": {"class_name": "SGD", "config": {"warm_up": 7}}, "loss": "mse"},
            "SGD's argument warm_up=7 was dropped: Keras 3 has none.",
        ),
    ],
)
def test_strange_settings_never_raise(settings, said, addons):
    from truenorm.tools.migrate import files

    saved = files.read(addons("addons_optimizer") / "model.keras")
    model = truenorm.load_model(addons("addons_optimizer") / "model.keras", compile=False)
    assert not model.compiled
    compiling = Compiling()
    saved.training = settings
    compiling.compile(model, saved)
    if said is not None:
        assert any(said in one for one in compiling.dropped), compiling.dropped
