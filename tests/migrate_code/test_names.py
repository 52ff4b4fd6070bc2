"""The tables of names: what is said of TensorFlow Addons, truenorm and Keras is so."""

import inspect
import json
import pathlib
import re

import keras
import pytest

import truenorm
from truenorm.tools.migrate import addons
from truenorm.tools.migrate_code.names import COVERED, REPLACEMENTS, covered_name, find_replacement

ADDONS = json.loads((pathlib.Path(__file__).parents[1] / "data/addons_names.json").read_text())
COVERED_NAMES = [f"{part}.{name}" for part, names in COVERED.items() for name in sorted(names)]


def resolve(package, dotted):
    for name in dotted.split("."):
        package = getattr(package, name)
    return package


@pytest.mark.parametrize("name", COVERED_NAMES)
def test_a_covered_name_is_one_of_addons_and_of_truenorm(name):
    part, cls = name.split(".")
    assert cls in ADDONS[part]
    assert issubclass(resolve(truenorm, name), keras.layers.Layer)


def test_the_covered_classes_are_those_that_files_are_read_with():
    read = {part: {one.__name__ for one in classes} for part, classes in addons.COVERED.items()}
    assert read == COVERED


@pytest.mark.parametrize("name", REPLACEMENTS)
def test_a_replaced_name_is_one_of_addons_that_is_not_covered(name):
    if "." in name:
        part, own = name.split(".")
        assert own in ADDONS[part]
    assert name not in COVERED_NAMES


@pytest.mark.parametrize("name", [name for name, r in REPLACEMENTS.items() if r.name])
def test_a_replacement_is_in_keras_with_the_arguments_of_its_note(name):
    replacement = REPLACEMENTS[name]
    package, dotted = replacement.name.split(".", 1)
    assert package == "keras"
    found = resolve(keras, dotted)
    assert callable(found)
    arguments = {*inspect.signature(found).parameters}
    if "optimizer" in replacement.note:
        arguments |= {*inspect.signature(keras.optimizers.Adam).parameters}
    assert {*re.findall(r"(\w+)=", replacement.note)} <= arguments


def test_the_other_names_of_keras_in_the_notes_exist():
    notes = " ".join(replacement.note for replacement in REPLACEMENTS.values())
    names = set(re.findall(r"\bkeras\.((?:\w+\.)*\w+)", notes.replace("tqdm.keras", "")))
    assert len(names) > 5
    for name in names:
        assert callable(resolve(keras, name)), name


def test_every_name_of_addons_is_covered_or_has_advice():
    nothing = 0
    for part, names in ADDONS.items():
        for name in names:
            if covered_name((part, name)) is None:
                shown, replacement = find_replacement((part, name))
                assert shown == f"tfa.{part}.{name}"
                assert str(replacement)
                nothing += replacement.name is None
    assert nothing > 50  # most of seq2seq, text, losses and image


# What TensorFlow Addons 0.23 computes of -1.5, -0.4, 0.3 and 2.
ACTIVATIONS = {
    "gelu": [-0.1004284, -0.1378388, 0.1853709, 1.9545977],
    "hardshrink": [-1.5, 0.0, 0.0, 2.0],
    "lisht": [1.3577223, 0.1519796, 0.0873938, 1.9280552],
    "mish": [-0.2980997, -0.1889165, 0.2080014, 1.9439590],
    "snake": [-0.5050038, -0.2483534, 0.3873322, 2.8268218],
    "softshrink": [-1.0, 0.0, 0.0, 1.5],
    "sparsemax": [0.0, 0.0, 0.0, 1.0],
    "tanhshrink": [-0.5948518, -0.0200510, 0.0086874, 1.0359724],
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_replacement_of_an_activation_computes_the_same(name):
    x = keras.ops.convert_to_tensor([-1.5, -0.4, 0.3, 2.0])
    replacement = REPLACEMENTS[f"activations.{name}"]
    if replacement.name is None:  # the note is the code to write
        y = eval(replacement.note.removeprefix("write "), {"keras": keras, "x": x, "f": 1.0})
    else:
        options = {"approximate": True} if name == "gelu" else {}
        y = resolve(keras, replacement.name.removeprefix("keras."))(x, **options)
    assert keras.ops.convert_to_numpy(y) == pytest.approx(ACTIVATIONS[name], abs=2e-6)


@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_rewritten_to_what_computes_the_same(name, called):
    libcst = pytest.importorskip("libcst", reason="migrate-code needs LibCST")
    from truenorm.tools.migrate_code import equals

    x = keras.ops.convert_to_tensor([-1.5, -0.4, 0.3, 2.0])
    function, _ = equals.function(name, "keras", called)
    code = libcst.Module([]).code_for_node(function)
    function = eval(code, {"keras": keras})
    y = function(x)
    if called:  # in a functional model
        assert function(keras.Input((4,))).shape == (None, 4)
    assert keras.ops.convert_to_numpy(y) == pytest.approx(ACTIVATIONS[name], abs=2e-6)
