import json
import os

import pytest

from truenorm.core.errors import InputError
from truenorm.tools.compare.folder import hold
from truenorm.tools.compare.runs import Run
from truenorm.tools.compare.settings import read_norms

IDENTITY = {"settings": {"epochs": 2, "norms": {"none": {}}}, "data_sha256": "ab", "versions": {}}
RUN, OTHER = (Run(read_norms("group:groups=2", "tutorial")[0], 8, seed) for seed in (0, 1))
RECORD = {
    "norm": "group:groups=2",
    "batch_size": 8,
    "seed": 0,
    "test_loss": float("nan"),
    "epochs": [{"test_loss": float("inf")}, {"test_loss": 0.1}],
}


def test_a_saved_run_is_read_back_exactly(tmp_path):
    with hold(tmp_path / "new" / "out", IDENTITY) as folder:
        assert folder.load_run(RUN) is None
        folder.save_run(RUN, RECORD)
        assert repr(folder.load_run(RUN)) == repr(RECORD)  # NaN is not equal to itself
    path = tmp_path / "new" / "out" / "runs" / "group_groups=2-batch8-seed0.json"
    assert json.loads(path.read_text())["test_loss"] == "nan"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "not a whole JSON file"),
        (lambda text: "", "not a whole JSON file"),
        (lambda text: "[]", "do not match its checksum"),
        (lambda text: text.replace("0.1", "0.2"), "do not match its checksum"),
        (lambda text: b"\xff\xfe", "not a whole JSON file"),
    ],
)
def test_damaged_runs_are_not_trusted(tmp_path, damage, message):
    with hold(tmp_path, IDENTITY) as folder:
        folder.save_run(RUN, RECORD)
        path = folder.run_path(RUN)
        damaged = damage(path.read_text())
        path.write_bytes(damaged if isinstance(damaged, bytes) else damaged.encode())
        with pytest.raises(ValueError, match=message):
            folder.load_run(RUN)


def test_runs_of_elsewhere_are_not_trusted(tmp_path):
    with hold(tmp_path / "a", IDENTITY) as folder:
        folder.save_run(RUN, RECORD)
        text = folder.run_path(RUN).read_text()
        folder.run_path(OTHER).write_text(text)
        with pytest.raises(ValueError, match="file of another run"):
            folder.load_run(OTHER)
    with hold(tmp_path / "b", {**IDENTITY, "data_sha256": "cd"}) as folder:
        folder.run_path(RUN).write_text(text)
        with pytest.raises(ValueError, match="comparison of other settings"):
            folder.load_run(RUN)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    with hold(tmp_path, IDENTITY) as folder:
        folder.write("report.html", "old")
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match=r"No space left on device\. Free the disk"):
            folder.write("report.html", "new")
        monkeypatch.undo()
        assert (tmp_path / "report.html").read_text() == "old"
    with hold(tmp_path, IDENTITY):  # what a kill leaves behind is cleared away
        assert not list(tmp_path.glob("**/*.partial"))


def test_changed_settings_are_refused_and_named(tmp_path):
    with hold(tmp_path, IDENTITY) as folder:
        folder.save_run(RUN, RECORD)
    before = (tmp_path / "settings.json").read_bytes()
    changed = {**IDENTITY, "settings": {"epochs": 3, "norms": {"none": {}}}}
    assert_refused(
        tmp_path, changed, r"differs in epochs \(2 there, 3 now\). .*another folder with --out"
    )
    assert_refused(
        tmp_path, {**IDENTITY, "data_sha256": "x"}, r'data_sha256 \("ab" there, "x" now\)'
    )
    assert_refused(
        tmp_path, {**IDENTITY, "versions": {"keras": "4"}}, r'keras \(null there, "4" now\)'
    )
    assert (tmp_path / "settings.json").read_bytes() == before


def test_one_process_at_a_time(tmp_path):
    with hold(tmp_path, IDENTITY):
        assert_refused(
            tmp_path, IDENTITY, "another truenorm compare works in .* wait for it to end"
        )
    with hold(tmp_path, IDENTITY):
        pass


def test_folders_of_something_else_are_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    assert_refused(tmp_path, IDENTITY, "holds thesis.tex and no comparison; nothing is overwritten")
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]
    assert_refused(tmp_path / "thesis.tex", IDENTITY, "is a file; name a folder")
    assert_refused(
        tmp_path / "thesis.tex" / "out", IDENTITY, "cannot write to --out .*Not a directory"
    )


def test_a_folder_killed_before_its_settings_were_written_is_taken(tmp_path):
    (tmp_path / "lock").touch()
    (tmp_path / "runs").mkdir()
    (tmp_path / "settings.json123.partial").write_text("{")
    with hold(tmp_path, IDENTITY):
        assert json.loads((tmp_path / "settings.json").read_text())["data_sha256"] == "ab"


def test_unreadable_settings_are_refused(tmp_path):
    (tmp_path / "settings.json").write_text("{")
    assert_refused(tmp_path, IDENTITY, "settings.json cannot be read, .* name another folder")


def assert_refused(path, identity, message):
    with pytest.raises(InputError, match=message), hold(path, identity):
        pytest.fail("the folder was opened")
