"""Files that are whole or absent, and the sentences where they cannot be."""

import os
import subprocess
import sys

import pytest

import truenorm
from truenorm import explain
from truenorm.cli import commands as cli
from truenorm.core.errors import InputError
from truenorm.tools.bench import benchmark
from truenorm.tools.writing import checked_path, write


def test_a_file_is_whole_or_absent(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write(path, "one")
    write(path, b"two")
    assert path.read_text() == "two"

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(path, "three")
    assert [one.name for one in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "two"


@pytest.mark.parametrize("path", ["/proc/a.txt", "nowhere/a.txt"])
def test_a_file_that_cannot_be_written(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"cannot write {path}: .* Name another one"):
        write(checked_path(path), "one")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["x" * 300, "nul\0"])
def test_names_that_cannot_be(name):
    for call in (
        lambda: checked_path(name),
        lambda: explain("group", (8, 4, 32)).save(f"{name}.png"),
        lambda: benchmark.bench(out=name),
        lambda: truenorm.compare(out=name, epochs=1),
        lambda: truenorm.load_model(name),
    ):
        with pytest.raises(InputError, match="cannot be a name here") as raised:
            call()
        assert len(str(raised.value)) < 300


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that nobody can write")
def test_commands_say_in_a_sentence_that_they_cannot_write(capsys):
    assert cli.main(["explain", "group", "--shape", "8,4,32", "--out", "/proc/p.png"]) == 2
    assert "truenorm explain: cannot write /proc/p.png" in capsys.readouterr().err
    options = ["--norms", "layer", "--layouts", "last", "--sizes", "small", "--dtypes", "float32"]
    assert cli.main(["bench", *options, "--rounds", "3", "--out", "/proc/results"]) == 2
    said = capsys.readouterr()
    assert "32×26×26×10" in said.out  # what was measured is not lost
    assert "truenorm bench: cannot make the folder /proc/results" in said.err


@pytest.mark.parametrize("arguments", [[], ["explain"], ["compare"], ["migrate-code"]])
def test_every_command_knows_the_version(arguments):
    program = (
        "import sys; from truenorm import cli; code = cli.main(sys.argv[1:]); "
        "assert 'keras' not in sys.modules; sys.exit(code)"
    )
    command = [sys.executable, "-c", program, *arguments, "--version"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"truenorm {truenorm.__version__}\n"), done.stderr
