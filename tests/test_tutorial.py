"""The tutorials run as notebooks, and so does the code of the one that they follow."""

import ast
import difflib
import json
import pathlib
import re
import runpy

import keras
import numpy as np
import pytest

TUTORIALS = pathlib.Path(__file__).parents[1] / "docs/tutorials"
NAMES = ["normalizations", "normalizaciones"]

# The models of TensorFlow Addons' tutorial on normalizations, as it had them.
ORIGINAL = """\
import tensorflow as tf
import tensorflow_addons as tfa

mnist = tf.keras.datasets.mnist

(x_train, y_train),(x_test, y_test) = mnist.load_data()
x_train, x_test = x_train / 255.0, x_test / 255.0

model = tf.keras.models.Sequential([
  # Reshape into "channels last" setup.
  tf.keras.layers.Reshape((28,28,1), input_shape=(28,28)),
  tf.keras.layers.Conv2D(filters=10, kernel_size=(3,3),data_format="channels_last"),
  # Groupnorm Layer
  tfa.layers.GroupNormalization(groups=5, axis=3),
  tf.keras.layers.Flatten(),
  tf.keras.layers.Dense(128, activation='relu'),
  tf.keras.layers.Dropout(0.2),
  tf.keras.layers.Dense(10, activation='softmax')
])

model.compile(optimizer='adam',
              loss='sparse_categorical_crossentropy',
              metrics=['accuracy'])
model.fit(x_test, y_test)

model = tf.keras.models.Sequential([
  # Reshape into "channels last" setup.
  tf.keras.layers.Reshape((28,28,1), input_shape=(28,28)),
  tf.keras.layers.Conv2D(filters=10, kernel_size=(3,3),data_format="channels_last"),
  # LayerNorm Layer
  tfa.layers.InstanceNormalization(axis=3,
                                   center=True,
                                   scale=True,
                                   beta_initializer="random_uniform",
                                   gamma_initializer="random_uniform"),
  tf.keras.layers.Flatten(),
  tf.keras.layers.Dense(128, activation='relu'),
  tf.keras.layers.Dropout(0.2),
  tf.keras.layers.Dense(10, activation='softmax')
])

model.compile(optimizer='adam',
              loss='sparse_categorical_crossentropy',
              metrics=['accuracy'])
model.fit(x_test, y_test)

model = tf.keras.models.Sequential([
  # Reshape into "channels last" setup.
  tf.keras.layers.Reshape((28,28,1), input_shape=(28,28)),
  tf.keras.layers.Conv2D(filters=10, kernel_size=(3,3),data_format="channels_last"),
  # LayerNorm Layer
  tf.keras.layers.LayerNormalization(axis=3 , center=True , scale=True),
  tf.keras.layers.Flatten(),
  tf.keras.layers.Dense(128, activation='relu'),
  tf.keras.layers.Dropout(0.2),
  tf.keras.layers.Dense(10, activation='softmax')
])

model.compile(optimizer='adam',
              loss='sparse_categorical_crossentropy',
              metrics=['accuracy'])
model.fit(x_test, y_test)
"""
MIGRATED = ORIGINAL.replace("import tensorflow_addons as tfa", "import truenorm as tfa")


@pytest.fixture
def mnist(monkeypatch):
    """Small data in the place of MNIST: specks, and a block at one of ten places."""

    def images(count, seed):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 10, count).astype("uint8")
        x = (rng.integers(0, 80, (count, 28, 28)) * (rng.random((count, 28, 28)) < 0.05)).astype(
            "uint8"
        )
        for image, label in zip(x, labels, strict=True):
            row, column = 5 * (label // 5) + 6, 5 * (label % 5) + 2
            image[row : row + 4, column : column + 4] += 170
        return x, labels

    data = images(640, 0), images(640, 1)
    monkeypatch.setattr(keras.datasets.mnist, "load_data", lambda path="mnist.npz": data)


def read(name):
    return json.loads((TUTORIALS / f"{name}.ipynb").read_text(encoding="utf-8"))


def code_cells(name):
    """The source of each cell of code, and the text of the outputs that are kept with it."""
    for cell in read(name)["cells"]:
        if cell["cell_type"] == "code":
            texts = [one.get("text") or one["data"]["text/plain"] for one in cell["outputs"]]
            yield "".join(cell["source"]), "".join("".join(text) for text in texts)


def run_cell(source, namespace):
    """Run a cell as a notebook does: what its last line evaluates to is shown, and returned."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), namespace)
    if last is None:
        return None
    return eval(compile(ast.Expression(last.value), "cell", "eval"), namespace)


@pytest.mark.parametrize("name", NAMES)
def test_a_tutorial_runs_from_its_first_cell_to_its_last(name, mnist, capsys):
    pytest.importorskip("matplotlib", reason="the tutorial draws pictures")
    namespace = {"__name__": name}
    printed, pictures, models = "", 0, []
    for source, kept in code_cells(name):
        value = run_cell(source, namespace)
        said = capsys.readouterr().out
        if "explain(" in source:
            assert (said or repr(value)) == kept, "run python docs/tutorials/build.py"
            pictures += "<img" in (value._repr_html_() if value is not None else "")
        printed += said
        if ".fit(" in source:
            models.append(namespace.get("model") or namespace.get("modelo"))
    assert pictures == 2
    assert printed.count("20/20 - ") == 5  # the epochs of five trainings
    assert re.search(r"(difference|diferencia): \de-0[67]\n", printed)
    assert [type(model.layers[2]).__name__ for model in models] == [
        "Identity",
        "BatchNormalization",
        "GroupNormalization",
        "InstanceNormalization",
        "LayerNormalization",
    ]
    for model in models:
        layers = [type(layer).__name__ for layer in model.layers]
        assert layers[:2] == ["Reshape", "Conv2D"]
        assert layers[3:] == ["Flatten", "Dense", "Dropout", "Dense"]
        assert {one.shape for one in model.layers[2].weights} <= {(10,)}
    accuracy = namespace.get("accuracy") or namespace.get("exactitud")
    assert len(accuracy) == 5
    assert min(accuracy.values()) > 0.8  # chance is 0.1


@pytest.mark.parametrize("name", NAMES)
def test_without_a_network_the_data_come_from_a_file_or_from_scikit_learn(
    name, monkeypatch, tmp_path, capsys
):
    pytest.importorskip("sklearn", reason="scikit-learn has the digits")

    def no_network(path="mnist.npz"):
        raise Exception("URL fetch failure")

    monkeypatch.setattr(keras.datasets.mnist, "load_data", no_network)
    monkeypatch.chdir(tmp_path)
    (cell,) = (source for source, _ in code_cells(name) if "load_data" in source)
    namespace = {"keras": keras, "np": np, "pathlib": pathlib}
    run_cell(cell, namespace)
    assert namespace["x_train"].shape == (1500, 28, 28)
    assert namespace["x_test"].shape == (297, 28, 28)
    assert len(namespace["y_train"]) == 1500
    assert len(namespace["y_test"]) == 297
    assert namespace["x_train"].min() == 0
    assert namespace["x_train"].max() == 1
    assert re.search("MNIST, (but|sino)", capsys.readouterr().out)
    images, labels = np.full((20, 28, 28), 255, "uint8"), np.zeros(20, "uint8")
    np.savez("mnist.npz", x_train=images, y_train=labels, x_test=images[:5], y_test=labels[:5])
    run_cell(cell, namespace)
    assert namespace["x_train"].shape == (20, 28, 28)
    assert namespace["x_train"].max() == 1
    assert len(namespace["x_test"]) == len(namespace["y_test"]) == 5
    assert "mnist.npz" in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_what_a_notebook_printed_is_kept(name):
    cells = [cell for cell in read(name)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        for output in cell["outputs"]:
            assert output["output_type"] in ("stream", "execute_result")
            assert output.get("name") != "stderr"
    kept = dict(code_cells(name))
    text = "".join(kept.values())
    assert not re.search(r"/(home|root|tmp|work|usr)/|Error|Warning", text)
    assert text.count("313/313") == 5  # MNIST, not what takes its place
    (shown,) = (text for source, text in kept.items() if ".items()" in source)
    percents = [float(one) for one in re.findall(r"([\d.]+)%", shown)]
    assert len(percents) == 5
    assert 91 <= min(percents) <= max(percents) <= 94  # as the text below says


def test_both_tutorials_have_the_same_parts():
    notebooks = [read(name) for name in NAMES]
    kinds = [[cell["cell_type"] for cell in notebook["cells"]] for notebook in notebooks]
    assert kinds[0] == kinds[1]
    texts = ["".join(line for c in n["cells"] for line in c["source"]) for n in notebooks]
    for text in texts:
        for paper in ("1502.03167", "1607.06450", "1607.08022", "1803.08494"):
            assert f"https://arxiv.org/abs/{paper}" in text
    formulas = [re.findall(r"\$\$.*?\$\$", text, re.S) for text in texts]
    assert formulas[0] == formulas[1] != []


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_what_is_made_of_its_script(name):
    pytest.importorskip("jupytext", reason="jupytext makes the notebooks")
    made = runpy.run_path(str(TUTORIALS / "build.py"))["notebook"](TUTORIALS / f"{name}.py")
    stored = read(name)
    for cell in stored["cells"]:
        assert "".join(cell["source"]) == made.cells[int(cell["id"].removeprefix("cell-"))].source
        assert cell["metadata"] == {}
    assert len(stored["cells"]) == len(made.cells), "run python docs/tutorials/build.py"
    assert stored["metadata"] == made.metadata


def test_the_original_changes_in_one_line():
    pytest.importorskip("libcst", reason="migrate-code needs LibCST")
    from truenorm.tools.migrate_code.rewrite import rewrite

    result = rewrite(ORIGINAL.encode())
    assert result.source.decode() == MIGRATED
    assert result.uses == []
    lines = difflib.ndiff(ORIGINAL.split("\n"), MIGRATED.split("\n"))
    assert [line for line in lines if line[0] in "+-"] == [
        "- import tensorflow_addons as tfa",
        "+ import truenorm as tfa",
    ]


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="it is written for tf.keras")
# Keras 3 advises another way to give the input's shape, and takes this one.
@pytest.mark.filterwarnings("ignore:Do not pass an `input_shape`:UserWarning")
def test_the_original_runs_under_tf_keras(mnist, capsys):
    import truenorm

    namespace = {}
    exec(compile(MIGRATED, "original", "exec"), namespace)
    printed = capsys.readouterr().out
    assert namespace["tfa"] is truenorm
    assert namespace["tf"].keras.__version__ == keras.__version__
    assert printed.count("20/20") >= 3
    assert "accuracy:" in printed
    accuracy = namespace["model"].evaluate(namespace["x_train"], namespace["y_train"], verbose=0)
    assert accuracy[1] > 0.8  # chance is 0.1
