"""`truenorm migrate-code`: what it prints, what it writes, and what it leaves alone."""

import importlib.util
import json
import os
import shutil
import stat
import subprocess
import sys

import pytest

from truenorm.cli import main

pytest.importorskip("libcst", reason="migrate-code needs LibCST")

BEFORE = b"import tensorflow_addons as tfa\n\nlayer = tfa.layers.TLU()\nother = tfa.layers.GELU()\n"
AFTER = (
    b"import tensorflow_addons as tfa\nimport truenorm\n\n"
    b"layer = truenorm.layers.TLU()\nother = tfa.layers.GELU()\n"
)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.py"
    path.write_bytes(BEFORE)
    return path


def run(*arguments):
    return main(["migrate-code", *map(str, arguments)])


def test_by_default_it_prints_a_diff_and_what_is_left_and_writes_nothing(file, capfdbinary):
    assert run(file) == 0
    shown = capfdbinary.readouterr().out.decode()
    assert shown.startswith(f"--- {file}\n+++ {file}\n@@ -1,4 +1,5 @@\n")
    assert "+layer = truenorm.layers.TLU()\n" in shown
    assert f"{file}:4: tfa.layers.GELU: use keras.activations.gelu" in shown
    assert shown.endswith("1 file to rewrite (--write does it), 1 use left to you.\n")
    assert file.read_bytes() == BEFORE


def test_write_changes_the_file_and_names_the_lines_of_the_new_one(file, capfdbinary):
    file.chmod(0o750)
    assert run("--write", file) == 0
    shown = capfdbinary.readouterr().out.decode()
    assert shown.startswith(f"rewritten: {file}\n{file}:5: tfa.layers.GELU: use keras.")
    assert shown.endswith("1 file rewritten, 1 use left to you.\n")
    assert file.read_bytes() == AFTER
    assert stat.S_IMODE(file.stat().st_mode) == 0o750
    assert os.listdir(file.parent) == ["model.py"]
    assert run("--write", file) == 0
    assert "0 files rewritten, 1 use" in capfdbinary.readouterr().out.decode()
    assert file.read_bytes() == AFTER


@pytest.mark.skipif(shutil.which("patch") is None, reason="there is no patch here")
@pytest.mark.parametrize(
    "source",
    [
        BEFORE,
        BEFORE.replace(b"\n", b"\r\n"),
        BEFORE.rstrip(),
        b"# coding: latin-1\n# \xe9\n" + BEFORE,
        b"x = '\x0c \r \xc2\x85'\n".replace(b"\r", b"") + BEFORE,
    ],
    ids=["plain", "CRLF", "no last line end", "latin-1", "odd line ends in a string"],
)
def test_patch_applies_the_diff(source, file, monkeypatch, capfdbinary):
    monkeypatch.chdir(file.parent)
    file.write_bytes(source)
    assert run(file.name) == 0
    diff = capfdbinary.readouterr().out
    done = subprocess.run(
        ["patch", "--binary", "-p0"], input=diff, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout
    patched = file.read_bytes()
    file.write_bytes(source)
    run("--write", file.name)
    assert patched == file.read_bytes() != source


def test_a_folder_is_searched_and_environments_are_not(tmp_path, file, capfdbinary):
    for name in ("package/a.py", ".hidden/b.py", "venv/lib/c.py", "node_modules/d.py", "e.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(BEFORE)
    (tmp_path / "venv/pyvenv.cfg").touch()
    (tmp_path / "package/broken.py").write_text("def f(:")  # it does not mention Addons
    assert run("--write", tmp_path, file, tmp_path / "package") == 0
    shown = capfdbinary.readouterr().out.decode()
    assert [line for line in shown.splitlines() if line.startswith("rewritten")] == [
        f"rewritten: {tmp_path}/model.py",
        f"rewritten: {tmp_path}/package/a.py",
    ]
    assert (tmp_path / "venv/lib/c.py").read_bytes() == BEFORE


def test_bad_files_are_named_in_a_sentence_each_and_the_others_go_on(tmp_path, file, capfdbinary):
    contents = {
        "broken.py": b"import tensorflow_addons\ndef f(:\n",
        "python2.py": b"import os\nprint 'x'\n",
        "latin.py": b"x = '\xe9'\n",
        "null.py": b"x = 0\x00\n",
        "deep.py": b"x = " + b"(" * 3000 + b")" * 3000 + b"\n",
        "returns.py": b"a = 1\rb = 2\r",
        "odd.ipynb": b"{}",
        "cell.ipynb": notebook("import tensorflow_addons\n", "x = (\n"),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "binary.py").mkdir()
    paths = [tmp_path / name for name in contents]
    assert run("--write", tmp_path / "absent.py", *paths, file) == 2
    shown = capfdbinary.readouterr()
    errors = shown.err.decode().splitlines()
    assert len(errors) == 1 + len(contents)
    assert errors[0] == f"truenorm migrate-code: '{tmp_path}/absent.py' does not exist."
    assert all(error.startswith("truenorm migrate-code: '") for error in errors)
    reasons = {
        "broken.py": "was left as it is: line 2: invalid syntax.",
        "python2.py": "line 2: Missing parentheses in call to 'print'",
        "latin.py": "can't decode byte 0xe9",
        "null.py": "null bytes",
        "deep.py": "too many nested parentheses",
        "returns.py": "its line ends",
        "odd.ipynb": "it is not a notebook of format 4.",
        "cell.ipynb": "code cell 2, line 1: '(' was never closed",
    }
    for name, error in zip(contents, errors[1:], strict=True):
        assert reasons[name] in error, error
        assert (tmp_path / name).read_bytes() == contents[name]
    assert file.read_bytes() == AFTER
    assert shown.out.decode().startswith(f"rewritten: {file}\n")


def test_a_failure_while_writing_leaves_the_old_file(file, monkeypatch, capfdbinary):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert run("--write", file) == 2
    assert capfdbinary.readouterr().err.decode() == (
        f"truenorm migrate-code: cannot write '{file}': No space left on device.\n"
    )
    assert file.read_bytes() == BEFORE
    assert os.listdir(file.parent) == ["model.py"]


def test_a_read_only_file_is_not_replaced(file, monkeypatch, capfdbinary):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everything
    assert run("--write", file) == 2
    assert b"it is read-only." in capfdbinary.readouterr().err
    assert file.read_bytes() == BEFORE


def test_a_link_stays_a_link(file, tmp_path):
    link = tmp_path / "link.py"
    link.symlink_to(file)
    assert run("--write", link) == 0
    assert link.is_symlink()
    assert file.read_bytes() == AFTER


def test_without_libcst_it_says_what_to_install(file, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run(file) == 2
    assert capsys.readouterr().err == (
        "truenorm migrate-code: LibCST is not installed, which reads and writes source code; "
        "install it with pip install libcst.\n"
    )


def notebook(*cells, indent=1):
    made = [
        {
            "cell_type": "code",
            "execution_count": 1,
            "metadata": {},
            "outputs": [{"name": "stdout", "output_type": "stream", "text": ["é < 3\n"]}],
            "source": cell.splitlines(keepends=True),
        }
        for cell in cells
    ]
    made.insert(1, {"cell_type": "markdown", "metadata": {}, "source": ["# tensorflow_addons\n"]})
    whole = {"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    return (json.dumps(whole, indent=indent, ensure_ascii=False) + "\n").encode()


CELLS = [
    "%matplotlib inline\n!pip install -q \\\n  tensorflow-addons\nimport tensorflow_addons as tfa",
    "%%bash\necho import tensorflow_addons as tfa; ls | wc",
    "%%time\nif True:\n    !ls\n    files = !ls\n    layer = tfa.layers.TLU()\nlayer?\n5 % 3",
    "",
]
MORE = "tfa.layers.TLU(), tfa.optimizers.Yogi()"


@pytest.mark.parametrize("indent", [None, 0, 1, 2])
def test_a_notebook_keeps_everything_but_the_code(indent, tmp_path, capfdbinary):
    path = tmp_path / "a.ipynb"
    path.write_bytes(notebook(*CELLS, indent=indent))
    assert run("--write", path) == 0
    start = CELLS[0].replace("!pip install -q \\\n  tensorflow-addons\n", "")
    new = [start.replace("import tensorflow_addons", "import truenorm"), *CELLS[1:]]
    assert path.read_bytes() == notebook(*new, indent=indent)
    path.write_bytes(notebook(*CELLS, MORE, indent=indent))
    capfdbinary.readouterr()
    assert run("--write", path) == 0
    new = [
        start + "\nimport truenorm",
        CELLS[1],
        CELLS[2].replace("tfa.", "truenorm."),
        CELLS[3],
        MORE.replace("tfa.layers", "truenorm.layers"),
    ]
    assert path.read_bytes() == notebook(*new, indent=indent)
    shown = capfdbinary.readouterr().out.decode()
    assert f"{path}:cell 5:1: tfa.optimizers.Yogi: Keras 3 has nothing" in shown


REQUIREMENTS = {
    "requirements.txt": (
        "# what it needs\r\ntensorflow-addons==0.23.0 ; python_version < '3.12'\r\nnumpy  # any\r\n"
        "tensorflow_addons[tests]>=0.16,<1  # for its layers\r\ntensorflow-addons-extra\r\n",
        "# what it needs\r\nnumpy  # any\r\n# for its layers\r\ntensorflow-addons-extra\r\n",
    ),
    "dev-requirements.txt": ("tensorflow-addons", ""),
    "setup.cfg": (
        "[options]\ninstall_requires =\n    tensorflow-addons~=0.20\n    keras\n",
        "[options]\ninstall_requires =\n    keras\n",
    ),
    "pyproject.toml": (
        '[project]\ndependencies = ["keras", "tensorflow-addons>=0.1", "numpy"]\n'
        '[tool.poetry.dependencies]\ntensorflow-addons = "^0.23"\n'
        'x = [\n  "tensorflow-addons", # é\n  "a",\n]\n',
        '[project]\ndependencies = ["keras", "numpy"]\n'
        '[tool.poetry.dependencies]\nx = [\n  # é\n  "a",\n]\n',
    ),
    "setup.py": (
        "from setuptools import setup\n\nsetup(install_requires=['keras', 'tensorflow-addons'])\n",
        "from setuptools import setup\n\nsetup(install_requires=['keras'])\n",
    ),
    "environment.yml": (
        "dependencies:\n  - pip\n  - pip:\n    - keras\n    - tensorflow-addons==0.23\n",
        "dependencies:\n  - pip\n  - pip:\n    - keras\n",
    ),
    "Pipfile": ('[packages]\nkeras = "*"\ntensorflow-addons = "*"\n', '[packages]\nkeras = "*"\n'),
    "Dockerfile": (
        "FROM python\nRUN pip install keras tensorflow-addons==0.23 \\\n  numpy\n"
        "RUN pip install --no-cache-dir tensorflow-addons\n",
        "FROM python\nRUN pip install keras \\\n  numpy\n",
    ),
}


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_the_requirement_is_taken_out_and_the_rest_stays(name, tmp_path, capfdbinary):
    before, after = (text.encode() for text in REQUIREMENTS[name])
    path = tmp_path / name
    path.write_bytes(before)
    assert run(tmp_path) == 0
    assert path.read_bytes() == before
    capfdbinary.readouterr()
    assert run("--write", tmp_path) == 0
    assert path.read_bytes() == after
    shown = capfdbinary.readouterr().out.decode()
    assert f"rewritten: {path}" in shown
    assert "truenorm is installed from a clone" in shown
    assert run("--write", tmp_path) == 0
    assert path.read_bytes() == after


def test_requirements_that_are_not_plain_are_listed(tmp_path, capfdbinary):
    before = {
        "requirements.txt": b"tensorflow-addons==0.23 \\\n  --hash=sha256:0\n",
        "environment.yml": b"dependencies:\n  - pip:\n    - tensorflow-addons\n",
        "Dockerfile": b"RUN pip install tensorflow-addons && make\n",
    }
    for name, content in before.items():
        (tmp_path / name).write_bytes(content)
    assert run("--write", tmp_path) == 0
    shown = capfdbinary.readouterr().out.decode()
    for name, line in (("requirements.txt", 1), ("environment.yml", 3), ("Dockerfile", 1)):
        assert (tmp_path / name).read_bytes() == before[name]
        assert f"{tmp_path / name}:{line}: tensorflow-addons: take it out by hand" in shown


PIPS = {
    "!pip install tensorflow-addons\nx = 1": "x = 1",
    "%pip install -q --upgrade 'tensorflow-addons>=0.1'": "",
    "!pip install -q keras tensorflow_addons==0.23 numpy": "!pip install -q keras numpy",
    "%%bash\npython -m pip install tensorflow-addons keras": "%%bash\npython -m pip install keras",
}


@pytest.mark.parametrize("cell", PIPS)
def test_the_package_is_taken_out_of_the_cells_of_a_notebook(cell, tmp_path):
    path = tmp_path / "a.ipynb"
    path.write_bytes(notebook("import tensorflow_addons as tfa", cell))
    assert run("--write", path) == 0
    assert path.read_bytes() == notebook("import truenorm as tfa", PIPS[cell])


def test_commands_that_are_not_plain_are_listed_with_their_cell(tmp_path, capfdbinary):
    path = tmp_path / "a.ipynb"
    path.write_bytes(notebook("!pip install tensorflow-addons && ls"))
    assert run("--write", path) == 0
    assert path.read_bytes() == notebook("!pip install tensorflow-addons && ls")
    assert (
        f"{path}:cell 1:1: tensorflow-addons: take it out".encode() in capfdbinary.readouterr().out
    )


def test_what_became_a_lambda_is_said_when_it_is_written(tmp_path, capfdbinary):
    path = tmp_path / "a.py"
    path.write_text("from tensorflow_addons.activations import gelu\nuse(gelu)\n")
    assert run("--write", path) == 0
    shown = capfdbinary.readouterr().out.decode()
    assert f"{path}:2: tfa.activations.gelu: now a lambda" in shown
    assert "1 file rewritten, 0 uses left" in shown


def test_it_imports_no_framework(file):
    program = (
        "import sys; from truenorm.cli import main; code = main(['migrate-code', sys.argv[1]]); "
        "loaded = {name.split('.')[0] for name in sys.modules}; "
        "assert not loaded & {'keras', 'tensorflow', 'jax', 'torch', 'numpy'}, loaded; "
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program, file], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"+layer = truenorm.layers.TLU()" in done.stdout
