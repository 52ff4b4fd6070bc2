"""Stand-ins for TensorFlow Addons and truenorm, so that rewritten code can be run and compared."""

import sys
import types

import pytest

from truenorm.tools.migrate_code.names import COVERED, MODULES

OTHERS = {
    "layers": {"GELU", "StochasticDepth"},
    "optimizers": {"AdamW", "LAMB", "Yogi"},
    "seq2seq": {"tile_batch"},
}


class Named:
    """Says of which package and part it is."""

    def __init__(self, package, name):
        self.package, self.name = package, name

    def __call__(self, *arguments, **options):
        return self

    from_config = __call__

    def __repr__(self):
        return f"{self.package}:{self.name}"


def module(monkeypatch, name, contents=()):
    made = types.ModuleType(name)
    made.__path__ = []
    vars(made).update(contents)
    monkeypatch.setitem(sys.modules, name, made)
    if "." in name:
        parent, own = name.rsplit(".", 1)
        setattr(sys.modules[parent], own, made)


@pytest.fixture
def run(monkeypatch):
    """A function that runs source code and returns the list `used` that it makes."""
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "0")  # a case sets it: this takes it back
    module(monkeypatch, "truenorm", {"__version__": "1"})
    module(monkeypatch, "tensorflow_addons", {"register_all": Named("old", "register_all")})
    for part in ("layers", "rnn", "optimizers", "seq2seq"):
        old = {*COVERED.get(part, ()), *OTHERS.get(part, ())}
        contents = {name: Named("old", f"{part}.{name}") for name in old}
        module(monkeypatch, f"tensorflow_addons.{part}", contents)
        for own in MODULES.get(part, {"lamb"}):
            module(monkeypatch, f"tensorflow_addons.{part}.{own}", contents)
        if part in COVERED:
            new = {name: Named("new", f"{part}.{name}") for name in COVERED[part]}
            module(monkeypatch, f"truenorm.{part}", new)

    def run(source):
        namespace = {"__name__": "rewritten"}
        exec(compile(source, "rewritten", "exec"), namespace)
        return namespace["used"]

    return run
