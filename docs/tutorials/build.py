"""Make the notebooks of the tutorials from their scripts, which are the one source.

    python docs/tutorials/build.py

The scripts are in jupytext's percent format: they run as they are.
"""

import pathlib

import jupytext

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def notebook(script: pathlib.Path) -> str:
    """The notebook of a script, as it stands in the .ipynb file."""
    made = jupytext.reads(script.read_text(encoding="utf-8"), fmt="py:percent")
    made.metadata = METADATA
    for number, cell in enumerate(made.cells):
        cell.id = f"cell-{number}"  # not a random one
        cell.metadata = {}
    return jupytext.writes(made, fmt="ipynb") + "\n"


if __name__ == "__main__":
    for path in pathlib.Path(__file__).parent.glob("normali*.py"):
        path.with_suffix(".ipynb").write_text(notebook(path), encoding="utf-8")
