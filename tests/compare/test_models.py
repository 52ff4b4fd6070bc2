import keras
import numpy as np
import pytest

from truenorm.core.errors import InputError
from truenorm.core.kinds import KINDS
from truenorm.tools.compare import models
from truenorm.tools.compare.settings import MODELS, read_norms

ALL = "none,batch,layer,instance,group,rms"


def one(entry, model="tutorial"):
    (norm,) = read_norms(entry, model)
    return norm


def test_the_tutorial_model_is_the_tutorials():
    model = models.build("tutorial", one("group"), (8, 9), seed=0)
    names = [type(layer).__name__ for layer in model.layers]
    assert names == ["Reshape", "Conv2D", "GroupNormalization", "Flatten", "Dense", "Dropout",
                     "Dense"]  # fmt: skip
    normalization = model.layers[2]
    assert type(normalization).__module__.startswith("truenorm.")
    assert normalization.groups == 5
    assert model.layers[1].output.shape == (None, 6, 7, 10)
    assert model.output_shape == (None, 10)
    assert len(models.build("tutorial", one("none"), (8, 9), seed=0).layers) == 6


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_truenorms_own_layer_of_that_row(name):
    assert models.layer(one(name)).kind is KINDS[name]


@pytest.mark.parametrize("model", MODELS)
def test_one_seed_gives_shared_layers_the_same_weights_whatever_the_normalization(model):
    entries = ["none", "batch", "rms", "layer:gamma_initializer=random_uniform"]
    weights = []
    for entry in entries:
        built = models.build(model, one(entry, model), (6, 5), seed=3)
        shared = [w for w in built.trainable_weights if "normalization" not in w.path]
        weights.append([keras.ops.convert_to_numpy(w) for w in shared])
    assert len(weights[0]) == (5 if model == "rnn" else 6)
    for others in weights[1:]:
        for first, other in zip(weights[0], others, strict=True):
            np.testing.assert_array_equal(first, other)
    different = models.build(model, one("none", model), (6, 5), seed=4)
    assert (keras.ops.convert_to_numpy(different.weights[0]) != weights[0][0]).any()


def test_the_cell_computes_its_formula(rng):
    cell = models.NormalizedCell(4, models.layer(one("layer", "rnn")))
    x, h = rng.random((3, 5), "float32"), rng.random((3, 4), "float32")
    cell.build(x.shape)
    output, (state,) = cell(x, [h])
    w, u, b = (
        keras.ops.convert_to_numpy(v) for v in (cell.kernel, cell.recurrent_kernel, cell.bias)
    )
    z = x @ w + h @ u + b
    centered = z - z.mean(1, keepdims=True)
    expected = np.tanh(centered / np.sqrt((centered**2).mean(1, keepdims=True) + 1e-3))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(output), expected, atol=1e-5)
    np.testing.assert_array_equal(*(keras.ops.convert_to_numpy(v) for v in (output, state)))


def reasons(model, batch_size=2, image_shape=(8, 8)):
    found = {}
    for norm in read_norms(ALL, model):
        reason = models.not_applicable(norm, model, image_shape, batch_size)
        if reason is not None:
            found[norm.name] = reason
    return found


def test_every_normalization_applies_to_the_tutorial_model():
    assert reasons("tutorial") == {}


def test_one_element_groups_are_not_applicable():
    assert "shape (2, 1, 1, 10)" in reasons("tutorial", image_shape=(3, 3))["instance"]
    assert "every group that shares statistics has one element" in reasons("rnn")["instance"]
    group = read_norms("group:groups=-1", "rnn")[0]
    assert "one element" in models.not_applicable(group, "rnn", (8, 8), 2)
    assert "batch" in reasons("rnn", batch_size=1)


def test_batch_statistics_in_a_scan():
    """What is reported is what happens: JAX raises, the others train."""
    x, y = np.zeros((8, 6, 5), "float32"), np.zeros(8, "int32")
    model = models.build("rnn", one("batch", "rnn"), (6, 5), seed=0)
    if keras.backend.backend() == "jax":
        assert set(reasons("rnn")) == {"batch", "instance"}
        assert "jax.lax.scan" in reasons("rnn")["batch"]
        with pytest.raises(Exception, match="trains inside a function that JAX traces by itself"):
            model.fit(x, y, batch_size=4, verbose=0)
    else:
        assert set(reasons("rnn")) == {"instance"}
        model.fit(x, y, batch_size=4, verbose=0)
        variance = model.layers[0].cell.normalization.moving_variance
        assert (keras.ops.convert_to_numpy(variance) < 1).all()  # it was assigned


def test_options_that_do_not_fit_are_refused_with_the_normalization_named():
    with pytest.raises(InputError, match=r"'group:groups=4' does not fit: .*divide the 10 chann"):
        models.explained(one("group:groups=4"), "tutorial", (8, 8), 2)
