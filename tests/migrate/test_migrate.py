"""`truenorm migrate`: the table, the comparison, the file."""

import sys

import keras
import numpy as np
import pytest

import truenorm
from migrate.models import error, in_file, outputs, predict
from processes import installed, run_python
from truenorm.cli.commands import main
from truenorm.core.errors import InputError
from truenorm.tools.migrate import migrate, migration, saved_model_process, verify

TENSORFLOW = installed("tensorflow")


@pytest.mark.parametrize("name", ["small_group_normalization", "nested"])
def test_a_saved_model_is_compared_with_the_old_program(name, addons, stored, tmp_path):
    if not TENSORFLOW:
        pytest.skip("TensorFlow, which runs SavedModels, is not installed")
    done = migrate(addons(name) / "saved_model", tmp_path / "new.keras")
    assert done.difference is not None, done.verdict
    assert done.difference <= 1e-5
    assert "Old and new differ by at most" in done.verdict
    model = keras.models.load_model(tmp_path / "new.keras")
    assert error(predict(model, stored(name)["x"]), outputs(stored(name))) <= 1e-5
    assert [one.name for one in tmp_path.iterdir()] == ["new.keras"]


def test_the_command(addons, tmp_path, capsys):
    old, new = str(addons("addons_optimizer") / "model.h5"), tmp_path / "new.keras"
    assert main(["migrate", old, str(new)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[0] == "layer"
    row = next(line for line in lines if line.startswith("group_normalization"))
    assert row.split() == [
        "group_normalization",
        "Addons>GroupNormalization",
        "truenorm>GroupNormalization",
        "use_mask=False",
    ]
    text = "\n".join(lines)
    assert "The optimizer Addons>Lookahead was dropped" in text
    assert "opened again, gives the same on a random batch" in text
    assert "The old file cannot run here: only a SavedModel holds a program." in text
    assert lines[-1] == f"The model is in {new}"
    # Not overwritten, but where that is asked for.
    before = new.read_bytes()
    assert main(["migrate", old, str(new)]) == 2
    assert f"{new} exists; pass --force (force=True) to overwrite it." in capsys.readouterr().err
    assert new.read_bytes() == before
    assert main(["migrate", old, str(new), "--force"]) == 0
    assert [one.name for one in tmp_path.iterdir()] == ["new.keras"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("new.h5", "does not end in .keras"),
        ("none/new.keras", "does not exist; make it first"),
        ("folder.keras", "is a folder"),
    ],
)
def test_where_it_cannot_write(name, said, addons, tmp_path, capsys):
    (tmp_path / "folder.keras").mkdir()
    assert (
        main(["migrate", str(addons("mixed") / "model.h5"), str(tmp_path / name), "--force"]) == 2
    )
    assert said in capsys.readouterr().err


def test_an_error_is_one_sentence_and_writes_nothing(addons, tmp_path, capsys):
    new = tmp_path / "new.keras"
    assert main(["migrate", str(addons("custom") / "model.h5"), str(new)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("truenorm migrate: Keras 3 and truenorm have no counterpart to inner/")
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_half_written(addons, tmp_path, monkeypatch):
    new = tmp_path / "new.keras"
    new.write_bytes(b"old")

    def fail(*arguments):
        raise InputError("the new file computes something else")

    monkeypatch.setattr(migration, "compare", fail)
    with pytest.raises(InputError, match="something else"):
        migrate(addons("mixed") / "model.h5", new, force=True)
    assert new.read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["new.keras"]


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the bytecode is Python 3.11's")
def test_code_runs_where_it_is_trusted(addons, stored, tmp_path, capsys):
    old, new = str(addons("lambdas") / "model.h5"), str(tmp_path / "new.keras")
    assert main(["migrate", old, new]) == 2
    assert "safe_mode=False" in capsys.readouterr().err
    assert main(["migrate", old, new, "--unsafe"]) == 0
    model = keras.models.load_model(new, safe_mode=False)
    assert error(predict(model, stored("lambdas")["x"]), outputs(stored("lambdas"))) <= 1e-5


def test_a_difference_is_reported(addons, tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "run_saved_model", lambda *_: [np.zeros((4, 3), "float32")])
    done = migrate(addons("small_group_normalization") / "saved_model", tmp_path / "new.keras")
    assert done.difference > 1e-3
    assert "more than rounding explains" in done.verdict


def test_without_tensorflow_it_says_so(addons, tmp_path, monkeypatch):
    monkeypatch.setattr(verify.importlib.util, "find_spec", lambda name: None)
    done = migrate(addons("small_group_normalization") / "saved_model", tmp_path / "new.keras")
    assert done.difference is None
    assert "The old model was not run: it needs TensorFlow, which is not installed." in done.verdict


@pytest.mark.skipif(not TENSORFLOW, reason="TensorFlow, which runs SavedModels, is not installed")
def test_a_program_that_does_more_than_compute_is_not_run(addons, tmp_path):
    import tensorflow as tf

    for name in ("branches", "learned_epsilon", "weight_normalized", "spectral_normalized"):
        if "saved_model" in in_file(name, ["saved_model"]):
            assert saved_model_process.unsafe(addons(name) / "saved_model") == ""

    class Program(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 3])])
        def serve(self, x):
            tf.io.write_file(str(tmp_path / "written"), "x")
            return x

    program = Program()
    tf.saved_model.save(
        program, str(tmp_path / "bad"), signatures={"serving_default": program.serve}
    )
    (tmp_path / "written").unlink(missing_ok=True)
    assert saved_model_process.unsafe(tmp_path / "bad") == "its program has the operation WriteFile"
    model = keras.Sequential([keras.Input((3,)), truenorm.LayerNormalization()])
    with pytest.raises(InputError, match=r"WriteFile, which is not run unless safe_mode=False"):
        verify.run_saved_model(str(tmp_path / "bad"), model, [np.zeros((2, 3), "float32")], True)
    assert not (tmp_path / "written").exists()


@pytest.mark.skipif(not TENSORFLOW, reason="TensorFlow, which runs SavedModels, is not installed")
def test_a_broken_program_ends_its_own_process(addons, tmp_path, monkeypatch):
    import shutil

    folder = tmp_path / "broken"
    shutil.copytree(addons("small_group_normalization") / "saved_model", folder)
    data = bytearray((folder / "saved_model.pb").read_bytes())
    (folder / "saved_model.pb").write_bytes(data[: len(data) // 2])
    done = migrate(folder, tmp_path / "new.keras")
    assert "The old model was not run: its program cannot be read" in done.verdict
    program = tmp_path / "crash.py"
    program.write_text("import os; os.kill(os.getpid(), 11)")
    monkeypatch.setattr(verify, "PROGRAM", program)
    done = migrate(folder, tmp_path / "new.keras", force=True)
    assert "The old model was not run: TensorFlow did not survive it" in done.verdict


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="Keras runs on TensorFlow here")
def test_no_file_needs_tensorflow(addons):
    program = (
        "import sys, pathlib\n"
        "sys.modules['tensorflow'] = None\n"
        "import truenorm\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "for name in ('model.keras', 'saved_model'):\n"
        "    model = truenorm.load_model(folder / name)\n"
        "for name in ('model.h5', 'weights.h5', 'model.weights.h5', 'checkpoint'):\n"
        "    truenorm.load_weights(model, folder / name)\n"
    )
    run_python(keras.backend.backend(), "-c", program, addons("weight_normalized"))
