"""The table of normalizations: what reads it, and that a row is all that a new one takes."""

import dataclasses
import importlib.util
import pathlib

import keras
import numpy as np
import pytest
from keras import ops

import cases
import truenorm
from gradients import value_and_gradients
from promise import Expected
from truenorm.core.kinds import KINDS, Kind
from truenorm.core.view import canonical_axes, check_groups, group_view
from truenorm.tools.bench.benchmark import bench

ROOT = pathlib.Path(__file__).parents[1]


def grouped(shape, axis, groups, first):
    (channel,) = canonical_axes(axis, len(shape), first)
    check_groups(groups, shape[channel], channel)
    return group_view(len(shape), channel, groups)


@pytest.fixture
def made_up(monkeypatch):
    """Group normalization by the root mean square, which nobody has: a row and nothing else."""
    kind = Kind(
        "group_rms", "Group RMS normalization", "GroupRMSNormalization", None, None,
        grouped, "channels", -1,
        False, {"keras": 1e-6},
        ("gamma", "beta"), True, True,
        "nobody's", "Each group of channels of each sample by its root mean square.",
    )  # fmt: skip
    monkeypatch.setitem(KINDS, kind.name, kind)
    return kind


def test_a_made_up_kind_is_explained_and_drawn(made_up, tmp_path):
    explanation = truenorm.explain("group_rms", (2, 5, 5, 8), groups=4)
    first, second, *_ = str(explanation).splitlines()
    assert first.startswith("GroupRMSNormalization(groups=4, axis=3) of x with shape (N, H, W, C)")
    assert second.endswith("(2 samples × 4 channel groups), each with its own root mean square.")
    assert explanation.heading == made_up.title
    path = tmp_path / "drawn.svg"
    explanation.save(path)
    assert "Group RMS normalization" in path.read_text()


@pytest.mark.parametrize("implementation", [None, "plain"])
@pytest.mark.parametrize("axis", [-1, 1])
def test_a_made_up_kind_is_computed_by_every_engine(made_up, implementation, axis):
    @dataclasses.dataclass(frozen=True)
    class MadeUp(cases.Case):
        kind = made_up

    shape = (3, 9, 7, 12) if axis == -1 else (3, 12, 9, 7)
    case = MadeUp("group rms", "group_rms", shape, {"groups": 4, "axis": axis})
    rng = np.random.default_rng(0)
    x = (100 + rng.standard_normal(shape)).astype("float32")
    gamma, beta = rng.standard_normal((2, 12)).astype("float32")
    cotangent = rng.standard_normal(shape).astype("float32")

    def function(x, gamma, beta):
        return truenorm.ops.normalize(
            made_up, x, gamma, beta, None, **case.partition,
            epsilon=cases.EPSILON, implementation=implementation,
        )  # fmt: skip

    y, gradients = value_and_gradients(function, [x, gamma, beta], cotangent)
    expected = Expected(case, x, gamma, beta)
    errors = {"y": expected.forward_error(y), **expected.gradient_errors(cotangent, *gradients)}
    assert all(error < 1 for error in errors.values()), errors


@pytest.mark.skipif(
    keras.backend.backend() not in ("jax", "tensorflow", "torch"), reason="it only infers"
)
@pytest.mark.filterwarnings("ignore")  # the compilers'
def test_a_made_up_kind_is_benchmarked(made_up):
    results = bench(
        norms="group_rms", layouts="last", sizes="small", dtypes="float32", rounds=3, progress=False
    )
    for row in results.rows:
        assert row.case.kind == "group_rms"
        assert "truenorm" in row.seconds
        assert "Keras" not in row.seconds


def test_every_row_has_its_layer():
    for kind in KINDS.values():
        layer = getattr(truenorm.layers, kind.keras)()
        assert layer.kind is kind
        assert layer.epsilon == kind.epsilon["keras"]


def test_the_page_is_what_the_rows_say():
    spec = importlib.util.spec_from_file_location("table", ROOT / "docs" / "normalizations.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    page = (ROOT / "docs" / "normalizations.md").read_text(encoding="utf-8")
    assert program.table() in page


def test_kinds_compute_what_their_layers_do():
    x = np.random.default_rng(0).normal(3, 2, (2, 4, 4, 64)).astype("float32")
    for kind in KINDS.values():
        groups = 32 if kind.groups else None
        y = truenorm.ops.normalize(
            kind, x, None, None, None, axis=kind.default_axis(4), groups=groups,
            epsilon=kind.epsilon["keras"], implementation=None,
        )  # fmt: skip
        layer = getattr(truenorm.layers, kind.keras)()
        options = {"training": True} if kind.name == "batch" else {}
        np.testing.assert_allclose(
            ops.convert_to_numpy(y), ops.convert_to_numpy(layer(x, **options)), rtol=1e-6, atol=1e-6
        )
