"""The examples in the README and in the pages run."""

import pathlib
import re

import keras
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]


def run_examples(page, **namespace):
    """Run the page's examples one after the other, as a reader would, and return their names."""
    text = (ROOT / page).read_text(encoding="utf-8")
    examples = re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)
    assert examples
    for example in examples:
        exec(compile(example, page, "exec"), namespace)
    return namespace


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="this page is of PyTorch")
def test_coming_from_pytorch():  # that from JAX runs in tests/fronts/flax
    run_examples("docs/coming-from-pytorch.md")


def test_how_to_add_a_normalization(capsys):
    run_examples("docs/architecture.md")
    assert "8 groups of elements (2 samples × 4 channel groups)" in capsys.readouterr().out


def test_activation_and_residual():
    run_examples("docs/fused.md")


def test_batch_normalization(capsys):
    names = run_examples("docs/batch.md")
    said = " ".join(capsys.readouterr().out.split())
    page = " ".join((ROOT / "docs/batch.md").read_text(encoding="utf-8").split())
    assert re.search("`(Samples that share.*?)`", page)[1] in said
    x = np.ones((2, 14, 14, 8), "float32")
    assert np.isfinite(keras.ops.convert_to_numpy(names["model"].layers[1](x))).all()
    for one, other in zip(
        names["theirs"].get_weights(), names["model"].layers[1].get_weights(), strict=True
    ):
        assert (one == other).all()


def test_the_readme(capsys):
    x, parameter = np.ones((4, 6, 8), "float32"), np.ones(8, "float32")
    names = run_examples("README.md", x=x, gamma=parameter, beta=parameter, layer=lambda x: x)
    images, labels = np.ones((4, 28, 28, 1), "float32"), np.zeros(4)
    assert np.isfinite(names["model"].fit(images, labels, verbose=0).history["loss"]).all()
    report = capsys.readouterr().out.partition("1 normalization replaced\n")[2].splitlines()[0]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"    1 normalization replaced\n    {report}\n" in text


@pytest.mark.parametrize(
    "page", ["README.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), target
