"""What `import truenorm` offers, and what it costs."""

import subprocess
import sys
import types

import pytest

import truenorm


@pytest.mark.parametrize("module", [truenorm, truenorm.layers], ids=lambda one: one.__name__)
def test_all_is_what_is_public(module):
    submodules = {
        name.removeprefix(f"{module.__name__}.").split(".")[0]
        for name in sys.modules
        if name.startswith(f"{module.__name__}.")
    }
    public = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not (isinstance(value, types.ModuleType) and name in submodules)
    }
    named = set(module.__all__)
    assert len(named) == len(module.__all__)
    assert {name for name in named if name not in submodules} == public
    assert named & submodules <= {"layers", "ops", "rnn"}


def test_the_functions_that_ops_defines_for_users():
    public = {
        name
        for name, value in vars(truenorm.ops).items()
        if name.endswith("_normalization") and value.__module__ == "truenorm.ops"
    }
    assert sorted(public) == sorted(truenorm.ops.__all__)


def test_the_cells_that_rnn_defines():
    public = {
        name
        for name, value in vars(truenorm.rnn).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == "truenorm.rnn"
    }
    assert sorted(public) == truenorm.rnn.__all__


def test_importing_truenorm_imports_no_plots_progress_bars_or_data_sets():
    # Keras imports some of them itself: so they are forgotten, and must not come back.
    script = """
import sys, keras
heavy = {"matplotlib", "sklearn", "rich", "scipy", "pandas", "PIL", "libcst"}
for name in list(sys.modules):
    if name.split(".")[0] in heavy:
        del sys.modules[name]
import truenorm
truenorm.explain("group", (2, 4, 4, 32))
print(sorted({name.split(".")[0] for name in sys.modules} & heavy))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
