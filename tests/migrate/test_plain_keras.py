"""After `import truenorm`, Keras' own `load_model` reads what Addons saved; and what is new."""

import keras
import numpy as np
import pytest

import truenorm
from migrate.models import SMALL, error, every, outputs, predict
from processes import run_python
from truenorm.tools.migrate.addons import CLASSES

# Keras 3 itself does not read these of Keras 2, with or without Addons: functional .keras files,
# functional models in others, RNNs, dtype policies, and arguments that are gone.
SEQUENTIAL = [
    "channels_first",
    "arguments",
    "learned_epsilon",
    "weight_normalized",
    "legacy_optimizer",
]
PLAIN = [
    *every([*SMALL, *SEQUENTIAL], ("model.h5", "model.keras")),
    ("branches", "model.h5"),
]


@pytest.mark.filterwarnings("ignore:Argument `alpha` is deprecated")
@pytest.mark.parametrize(("name", "form"), PLAIN)
def test_keras_load_model(name, form, addons, stored):
    io = stored(name)
    model = keras.models.load_model(addons(name) / form, compile=False)
    assert error(predict(model, io["x"]), outputs(io)) <= 1e-5
    for layer in model.layers:
        assert getattr(layer, "use_mask", False) is False


def test_old_names_are_read_and_new_ones_written():
    for name, cls in CLASSES.items():
        assert keras.saving.get_registered_name(cls) == f"truenorm>{name}"
        assert f"Addons>{name}" in keras.saving.get_custom_objects()
    assert len(CLASSES) == 9


def test_keras_is_as_it_was():
    """No global name but Addons' and truenorm's own."""
    objects = keras.saving.get_custom_objects()
    ours = {
        key for key, one in objects.items() if "truenorm" in str(getattr(one, "__module__", ""))
    }
    assert all(">" in key for key in ours)
    for name in ("mse", "GroupNormalization", "Functional"):
        assert name not in objects


def test_a_new_process_needs_only_the_import(addons, stored, tmp_path):
    io = stored("learned_epsilon")
    truenorm.load_model(addons("learned_epsilon") / "model.h5").save(tmp_path / "new.keras")
    np.save(tmp_path / "x.npy", io["x"])
    program = (
        "import sys, keras, numpy, truenorm\n"
        "model = keras.models.load_model(sys.argv[1] + '/new.keras')\n"
        "x = numpy.load(sys.argv[1] + '/x.npy')\n"
        "numpy.save(sys.argv[1] + '/y.npy', model.predict(x, verbose=0))\n"
    )
    run_python(keras.backend.backend(), "-c", program, tmp_path)
    assert error([np.load(tmp_path / "y.npy")], outputs(io)) <= 1e-5
