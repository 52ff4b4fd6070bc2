"""Make the notebooks of the tutorials from their scripts, which are the one source, and run them.

    pip install nbclient ipykernel
    KERAS_BACKEND=jax python docs/tutorials/build.py [--mnist FILE]

The scripts are in jupytext's percent format: they run as they are. The notebooks are kept with what
they print and draw. They run in an empty folder; where there is no network, `--mnist` puts a copy
of Keras' file mnist.npz into it. What goes to the error output, such as warnings, is not kept.
"""

import argparse
import pathlib
import shutil
import tempfile

import jupytext
import nbformat

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def notebook(script: pathlib.Path) -> nbformat.NotebookNode:
    """The notebook of a script, without outputs."""
    made = jupytext.reads(script.read_text(encoding="utf-8"), fmt="py:percent")
    made.metadata = METADATA
    for number, cell in enumerate(made.cells):
        cell.id = f"cell-{number}"  # not a random one
        cell.metadata = {}
    return made


def run(made: nbformat.NotebookNode, mnist: pathlib.Path | None) -> None:
    """Run the cells and keep what they print and draw."""
    from nbclient import NotebookClient

    with tempfile.TemporaryDirectory() as folder:
        if mnist is not None:
            shutil.copy(mnist, pathlib.Path(folder) / "mnist.npz")
        NotebookClient(made, resources={"metadata": {"path": folder}}).execute()
    made.metadata = METADATA
    for cell in made.cells:
        cell.metadata = {}
        for output in cell.get("outputs", []):
            # A notebook shows the richest form only.
            if "text/html" in output.get("data", {}):
                output.data = {kind: output.data[kind] for kind in ("text/html", "text/plain")}
        if "outputs" in cell:
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--mnist", type=pathlib.Path)
    options = parser.parse_args()
    for path in sorted(pathlib.Path(__file__).parent.glob("normali*.py")):
        made = notebook(path)
        run(made, options.mnist)
        path.with_suffix(".ipynb").write_text(nbformat.writes(made) + "\n", encoding="utf-8")
