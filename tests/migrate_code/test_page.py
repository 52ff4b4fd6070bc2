"""docs/migrating-from-addons.md: its example and its table are what the command gives."""

import pathlib
import re

import pytest

from truenorm.cli import main
from truenorm.tools.migrate_code.names import COVERED, REPLACEMENTS

PAGE = (pathlib.Path(__file__).parents[2] / "docs/migrating-from-addons.md").read_text("utf-8")


def test_the_example(tmp_path, monkeypatch, capfdbinary):
    pytest.importorskip("libcst", reason="migrate-code needs LibCST")
    before, shown = re.search(
        r"```python\n(import tensorflow.*?)```.*?```diff\n(.*?)```", PAGE, re.S
    ).groups()
    monkeypatch.chdir(tmp_path)
    pathlib.Path("model.py").write_text(before)
    assert main(["migrate-code", "model.py"]) == 0
    assert capfdbinary.readouterr().out.decode() == shown


def test_the_classes_and_the_replacements_are_all_there():
    classes = re.findall(r"^\| `((?:layers|rnn)\.\w+)` \|", PAGE, re.M)
    assert sorted(classes) == sorted(f"{part}.{name}" for part in COVERED for name in COVERED[part])
    for name, replacement in REPLACEMENTS.items():
        if replacement.name:
            assert f"| `tfa.{name}` | `{replacement.name}` | {replacement.note} |\n" in PAGE
        else:
            assert f"- `tfa.{name}`: {replacement.note}\n" in PAGE
    assert PAGE.count("\n| `tfa.") + PAGE.count("\n- `tfa.") == len(REPLACEMENTS)
