"""What `import truenorm` offers, and what it costs."""

import subprocess
import sys

import pytest

import truenorm


@pytest.mark.parametrize("module", [truenorm, truenorm.layers], ids=lambda one: one.__name__)
def test_all_is_what_is_public(module):
    named = module.__all__
    assert len(named) == len(set(named))
    for name in named:
        assert name in dir(module)
        assert getattr(module, name).__name__.removeprefix("truenorm.") == name


def test_the_package_has_the_layers():
    assert set(truenorm.layers.__all__) < set(truenorm.__all__)
    with pytest.raises(AttributeError, match=r"'truenorm' has no attribute 'GroupNorm'"):
        _ = truenorm.GroupNorm


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
truenorm.layers
truenorm.explain("group", (2, 4, 4, 32))
print(sorted({name.split(".")[0] for name in sys.modules} & heavy))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
