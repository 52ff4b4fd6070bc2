"""Which models there are, in which files, and what a loaded model must compute."""

import zipfile

import keras
import numpy as np

from migrate.conftest import DATA
from promise import FORWARD
from truenorm.core import reference

SMALL = [
    "small_filter_response_normalization",
    "small_group_normalization",
    "small_instance_normalization",
    "small_spectral_normalization_dense",
    "small_weight_normalization_dense",
]
MADE = [
    "branches",
    "nested",
    "wrappers",
    "channels_first",
    "arguments",
    "addons_optimizer",
    "keras_layers",
    "legacy_optimizer",
    "weight_normalized",
    "spectral_normalized",
    "learned_epsilon",
    "recurrent",
    "masked",
    "batch_normalized",
    "virtual_batches",
]
MODELS = ("model.h5", "model.keras", "saved_model")
WEIGHTS = ("weights.h5", "model.weights.h5", "checkpoint")


def in_file(name, formats):
    """Those of the formats that a model was saved in."""
    with zipfile.ZipFile(DATA / f"{name}.zip") as archive:
        there = {one.split("/")[0] for one in archive.namelist()}
    return [one for one in formats if one in there]


def every(names, formats):
    """(name, format) of each file."""
    return [(name, one) for name in names for one in in_file(name, formats)]


def outputs(io, kind="y"):
    """The stored outputs of a model, as a list."""
    if "y_pred" in io:
        return [io["y_pred"]]
    return [io[f"{kind}{number}"] for number in range(sum(key.startswith("next") for key in io))]


def predict(model, x):
    """A model's outputs, as a list."""
    return [np.asarray(one) for one in keras.tree.flatten(model.predict(x, verbose=0))]


def error(found, wanted):
    """The largest |found - wanted| / max(1, |wanted|)."""
    return max(
        float(np.max(np.abs(a - b) / np.maximum(1, np.abs(b))))
        for a, b in zip(found, wanted, strict=True)
    )


def promised(layer, x):
    """What the promise allows the layer's output to be off, element by element."""
    weights = {
        one.name: keras.ops.convert_to_numpy(one).astype("float64").reshape(-1)
        for one in layer.weights
    }
    gamma, beta = weights.get("gamma"), weights.get("beta")
    view = layer.kind.view(x.shape, **layer.partition())
    epsilon = layer.epsilon + np.abs(weights.get("learned_epsilon", [0.0]))[0]
    options = {"epsilon": epsilon, "centered": layer.kind.centered}
    scaled = reference.normalize(x.astype("float64"), gamma, None, view, **options)
    s = np.abs(scaled)
    if beta is not None:
        size = len(beta)
        s = s + np.abs(
            reference.normalize(x.astype("float64"), np.zeros(size), beta, view, **options)
        )
    return FORWARD["float32"] * np.maximum(1, s)
