"""The program of `truenorm bench --device cuda`, with tiny tensors on the CPU."""

import json

import keras
import pytest

from truenorm.cli import main
from truenorm.tools.bench import gpu
from truenorm.tools.bench.gpu_cases import CASES, TINY

BACKEND = keras.backend.backend()
runs = pytest.mark.skipif(BACKEND not in ("torch", "jax"), reason="it times PyTorch and JAX")


@runs
def test_every_candidate_has_a_row(monkeypatch, tmp_path, capsys):
    tiny = (*TINY[2:4], TINY[-1])
    monkeypatch.setattr(gpu, "TINY", tiny)
    if BACKEND == "torch":  # what it does is its own matter, and takes a compiler of C++
        monkeypatch.setattr("torch.compile", lambda function, **options: function)
    text = gpu.report(tmp_path, [BACKEND], tiny=True)
    assert capsys.readouterr().out.strip() == text.strip()
    assert (tmp_path / "speed.md").read_text() == text
    found = json.loads((tmp_path / "speed.json").read_text())
    rows = [gpu.Row(**row) for row in found["rows"]]
    assert {(row.case, row.dtype) for row in rows} == {
        (case.name, dtype) for case in tiny for dtype in ("float32", "bfloat16")
    }
    peers = {"torch": {"torch.nn", "torch.compile", "Keras"}, "jax": {"jnp, two passes", "flax"}}
    assert {row.candidate for row in rows} >= {"truenorm", *peers[BACKEND]}
    for row in rows:
        assert not row.failed, row
        assert set(row.seconds) == {"forward", "both"}
        # Five tensors are moved with the gradient where two are forward.
        ratio = row.shares["both"] / row.shares["forward"]
        assert ratio == pytest.approx(2.5 * row.seconds["forward"] / row.seconds["both"])
    if BACKEND == "torch":
        assert set(found["small calls, us"]) == {"forward", "both"}
        assert len(found["training steps, ms"]) == 2
        assert "transformer, add + RMS: truenorm" in text


@runs
def test_what_a_candidate_cannot_do_is_a_cell(monkeypatch):
    def broken(*operands):
        raise ValueError("no | such shape")

    monkeypatch.setattr(gpu, "TINY", TINY[:1])
    monkeypatch.setattr(gpu, f"{BACKEND}_candidates", lambda case: [("broken", broken)])
    rows, devices = gpu.speed_table([BACKEND], tiny=True)
    assert [row.failed for row in rows] == ["ValueError: no | such shape"] * 2
    assert "| layer, rows | ValueError: no   such shape |" in gpu.markdown(rows, devices)


def test_the_cases_are_those_of_networks():
    assert len({case.name for case in CASES}) == len(CASES)
    # Beyond any cache, but for the small ones.
    sizes = {case.name: 1.0 for case in CASES}
    for case in CASES:
        for size in case.shape:
            sizes[case.name] *= size
    assert [name for name, size in sizes.items() if size < 1e7] == [one.name for one in CASES[-2:]]


def test_a_file_that_is_there_is_kept(tmp_path, capsys):
    (tmp_path / "speed.md").write_text("mine")
    assert main(["bench", "--device", "cuda", "--out", str(tmp_path)]) == 2
    assert "speed.md' exists" in capsys.readouterr().err
    assert (tmp_path / "speed.md").read_text() == "mine"


def test_without_a_gpu_it_says_so(capsys):
    assert main(["bench", "--device", "cuda"]) == 2
    assert "neither PyTorch nor JAX finds a GPU" in capsys.readouterr().err
