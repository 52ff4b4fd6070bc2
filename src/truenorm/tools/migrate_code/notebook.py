"""Rewriting a notebook: its code cells are read as one file, in which magics are hidden."""

import dataclasses
import json
import re
from typing import Any

from truenorm.tools.migrate_code import requirements
from truenorm.tools.migrate_code.rewrite import check, complaint
from truenorm.tools.migrate_code.rewrite import rewrite as rewrite_module
from truenorm.tools.migrate_code.uses import Rewritten, Use

# %time, !pip, ?help and help?, also as x = !ls; not the % of Python, which begins no line.
MAGIC = re.compile(r"\s*(?:[%!?]|[\w., \[\]]+=\s*[%!]|[\w.]+\?+\s*$)")
# What stands in a cell after these is Python code.
PYTHON_CELLS = re.compile(r"%%(?:time|timeit|capture|prun|python3?|memit)\b")
CELL = "# <truenorm: cell {}>"
HIDDEN = "pass  # <truenorm: line {}>"


def rewrite(source: bytes) -> Rewritten:
    """Rewrite the code cells of a notebook; outputs and everything else stay.

    Raises:
        ValueError: it is not a notebook in JSON, or a code cell is not Python.
    """
    try:
        notebook = json.loads(source)
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        texts = ["".join(cell["source"]) for cell in cells]
    except (ValueError, KeyError, TypeError):
        raise NotebookError("it is not a notebook of format 4") from None
    hidden: list[str] = []
    script, starts = "", []
    for i, text in enumerate(texts):
        script += CELL.format(i) + "\n"
        starts.append(script.count("\n") + 1)
        script += _hide(text, hidden, i + 1) + "\n"
    result = rewrite_module(script.encode())
    uses, notes = ([_in_cell(use, starts) for use in some] for some in (result.uses, result.notes))
    new = re.split(rf"^{CELL.format('[0-9]+')}\n", result.source.decode(), flags=re.M)[1:]
    changed = False
    for cell, before, after in zip(cells, texts, new, strict=True):
        text = requirements.without_commands(_show(after.removesuffix("\n"), hidden))
        if text != before:
            changed = True
            cell["source"] = (
                text if isinstance(cell["source"], str) else text.splitlines(keepends=True)
            )
    for number, cell in enumerate(cells, 1):
        for use in requirements.uses_in_commands("".join(cell["source"])):
            uses.append(dataclasses.replace(use, cell=number))
    return Rewritten(_dump(notebook, source) if changed else source, uses, tuple(notes))


def _in_cell(use: Use, starts: list[int]) -> Use:
    """The use with the line of its cell in the place of the line of the script."""
    cell = max(i for i, start in enumerate(starts) if start <= use.line)
    return dataclasses.replace(use, line=use.line - starts[cell] + 1, cell=cell + 1)


class NotebookError(ValueError):
    """A file is no notebook, or a cell of it is not Python; the message says which."""


def _hide(text: str, hidden: list[str], number: int) -> str:
    """The cell as Python code: its magics put into `hidden`, with a line in the place of each."""
    lines = text.split("\n")
    whole = lines[0].startswith("%%") and not PYTHON_CELLS.match(lines[0])
    result, indent, continued = [], "", False
    for line in lines:
        if whole or continued or MAGIC.match(line):
            if not whole and not continued:
                indent = line[: len(line) - len(line.lstrip())]
            continued = line.endswith("\\")
            result.append(indent + HIDDEN.format(len(hidden)))
            hidden.append(line)
        else:
            result.append(line)
    code = "\n".join(result)
    try:
        check(code.encode())
    except Exception as error:
        raise NotebookError(f"code cell {number}, {complaint(error)}") from None
    return code


def _show(text: str, hidden: list[str]) -> str:
    """The cell with its magics where they were."""
    pattern = rf"^[ \t]*{HIDDEN.format('([0-9]+)')}$"
    return re.sub(pattern, lambda found: hidden[int(found[1])], text, flags=re.M)


def _dump(notebook: Any, source: bytes) -> bytes:
    """The notebook as JSON in the style of its file."""
    indent = re.search(rb"\n( *)\"", source)
    text = json.dumps(
        notebook,
        indent=None if indent is None else len(indent[1]),
        ensure_ascii=source.isascii() and rb"\u" in source,
    )
    return (text + "\n" * source.endswith(b"\n")).encode()
