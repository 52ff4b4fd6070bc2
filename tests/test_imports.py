"""Who imports whom: core <- engines <- fronts <- tools, and nothing back."""

import ast
import pathlib

import pytest

import truenorm

ROOT = pathlib.Path(truenorm.__file__).parent
FRAMEWORKS = {"flax", "jax", "jaxlib", "keras", "tensorflow", "torch"}
# What a folder or module of the package may import of the package, besides itself.
ENGINES = {"arrays", "core", "native", "triton"}
KERAS = {"backends", "layers", "ops", "rnn", *ENGINES}
FRONTS = {"flax", "jax", "torch", *KERAS}
MAY = {
    "core": set(),
    "arrays": set(),
    "native": {"arrays", "core"},
    "triton": {"arrays", "core", "native", "triton"},
    "backends": {"layers", "rnn"},  # what it registers once Keras is there
    "layers": KERAS,
    "ops": KERAS,
    "rnn": KERAS,
    "torch": {"torch", *ENGINES},
    "jax": {"jax", *ENGINES},
    "flax": {"flax", "jax", *ENGINES},
    "tools": {"tools", "__version__", *FRONTS},
    "cli": {"tools", "__version__", *FRONTS},
    "__init__": {"tools", *FRONTS},
}
# The framework of a file: its own, and no other.
OWN = {
    "arrays": lambda path: {path.stem},
    "native": lambda path: {path.stem.partition("_")[0]},
    "triton": lambda path: {path.stem.partition("_")[0]},
    "layers": lambda path: {"keras", "tensorflow", "torch"},  # replicas, which no backend tells
    "ops": lambda path: {"keras"},
    "rnn": lambda path: {"keras"},
    "torch": lambda path: {"torch"},
    "jax": lambda path: {"jax"},
    "flax": lambda path: {"flax", "jax"},
    "tools": lambda path: FRAMEWORKS,
    "cli": lambda path: {"keras"},
}
FILES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))


def imported(path):
    """Everything that a file imports, wherever it does: dotted names."""
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def home(path):
    """The folder, or the module, of the package that a file is in."""
    return path.parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_go_one_way(path):
    allowed = MAY[home(path)] | {home(path)}
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "truenorm" and len(parts) > 1:
            assert parts[1] in allowed, f"{path} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_framework_is_imported_by_its_own_files(path):
    found = {name.split(".")[0] for name in imported(path)} & FRAMEWORKS
    assert found <= OWN.get(home(path), lambda _: set())(path)


def test_the_frameworks_are_found():
    """That the tests above see what they look for."""
    assert "keras" in set(imported(pathlib.Path("ops.py")))
    assert any(name.startswith("torch") for name in imported(pathlib.Path("native/torch.py")))
