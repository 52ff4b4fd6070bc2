"""The whole command: a report, and nothing lost or repeated however it is stopped."""

import json
import re
import signal
import time

import keras
import pytest

import truenorm
from truenorm.cli.commands import main

TINY = ["--norms", "none,group", "--batch-sizes", "8", "--epochs", "2", "--seeds", "2"]
# Enough that a kill after the first run comes before the last.
LONGER = ["--epochs", "6", "--seeds", "3"]


def compare(npz, out, *more):
    return main(["compare", "--data", str(npz), "--out", str(out), *TINY, *map(str, more)])


def snapshot(out):
    return {
        file.name: (file.read_bytes(), file.stat().st_mtime_ns)
        for file in (out / "runs").glob("*.json")
    }


@pytest.mark.slow
def test_a_comparison_leaves_a_report_and_is_not_repeated(tmp_path, npz, capsys):
    hostile = npz.rename(tmp_path / "<script>alert(1)</script>&.npz".replace("/", "_"))
    out = tmp_path / "out"
    assert compare(hostile, out) == 0
    printed = capsys.readouterr().out
    assert "[4/4]" in printed
    assert "2 seeds" in printed
    assert f"The report is {out / 'report.html'}" in printed

    results = json.loads((out / "results.json").read_text())
    assert results["schema_version"] == 1
    assert len(results["records"]) == 4
    assert {row["norm"] for row in results["summary"]} == {"none", "group"}
    assert results["settings"]["norms"] == {"none": {}, "group": {"groups": 5, "axis": 3}}
    runs = snapshot(out)
    assert sorted(runs) == [f"{n}-batch8-seed{s}.json" for n in ("group", "none") for s in (0, 1)]
    assert len(json.loads(runs["none-batch8-seed0.json"][0])["epochs"]) == 2
    plots = {file.name: file.read_bytes() for file in (out / "plots").iterdir()}
    assert set(plots) == {"accuracy.png", "time.png", "loss-batch8.png", "accuracy-batch8.png"}
    assert all(png.startswith(b"\x89PNG") for png in plots.values())

    page = (out / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert" in page
    assert page.count("data:image/png;base64,") == len(plots) + 1  # and group's picture
    assert not re.search(r"""(src|href)=["'](?!data:)|@import|url\(""", page)  # nothing to fetch
    assert results["conclusion"] in page
    assert f"keras {keras.__version__}" in page

    assert compare(hostile, out) == 0
    printed = capsys.readouterr().out
    assert f"4 of 4 runs were already finished in {out} and are not repeated." in printed
    assert "[" not in printed.split("normalization")[0].replace(str(tmp_path), "")
    assert snapshot(out) == runs


@pytest.mark.slow
def test_python_returns_records_and_writes_nothing_without_out(tmp_path, npz, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    results = truenorm.compare(
        data=npz, model="rnn", norms=["layer", "instance"], batch_sizes=[8], epochs=1, seeds=[3],
        progress=False,
    )  # fmt: skip
    assert sorted(tmp_path.iterdir()) == before
    assert capsys.readouterr().out == ""
    (record,) = results.records
    assert (record["norm"], record["batch_size"], record["seed"]) == ("layer", 8, 3)
    assert 0 <= record["test_accuracy"] <= 1
    assert "instance is not applicable" in str(results)
    assert "no pair of normalizations" in results.conclusion


@pytest.mark.slow
def test_kill_minus_nine_loses_nothing_that_was_finished(tmp_path, npz, start, capsys):
    out = tmp_path / "out"
    arguments = ["--data", npz, "--out", out, *TINY, *LONGER]
    killed = start(*arguments)
    wait_for(killed, lambda: (out / "runs").is_dir() and len(snapshot(out)) >= 1)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    finished = snapshot(out)
    assert 1 <= len(finished) < 6
    assert not (out / "results.json").exists()

    assert compare(npz, out, *LONGER) == 0
    printed = capsys.readouterr().out
    assert f"{len(finished)} of 6 runs were already finished" in printed
    assert len(re.findall(r"^\[\d/6\]", printed, re.MULTILINE)) == 6 - len(finished)
    after = snapshot(out)
    assert len(after) == 6
    assert {name: after[name] for name in finished} == finished  # bytes and time of change

    # Uninterrupted, in one process, the numbers are the same to the last bit.
    assert compare(npz, tmp_path / "whole", *LONGER) == 0
    for name, (content, _) in snapshot(tmp_path / "whole").items():
        whole, resumed = json.loads(content), json.loads(after[name][0])
        assert (whole["epochs"], whole["curve"]) == (resumed["epochs"], resumed["curve"])


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_finished_and_a_second_process_is_refused(
    tmp_path, npz, start, capsys
):
    out = tmp_path / "out"
    first = start("--data", npz, "--out", out, *TINY, "--epochs", "100000")
    wait_for(first, (out / "settings.json").exists)
    assert compare(npz, out, "--epochs", "100000") == 2
    assert f"another truenorm compare works in {out}" in capsys.readouterr().err
    time.sleep(1)  # well into the first run
    first.send_signal(signal.SIGINT)
    _, error = first.communicate(timeout=60)
    assert first.returncode == 130
    assert f"Stopped. Finished runs are kept in {out}; give the same command to go on." in error
    assert "Traceback" not in error


@pytest.mark.slow
def test_a_damaged_run_is_repeated_and_other_settings_are_refused(tmp_path, npz, capsys):
    out = tmp_path / "out"
    assert compare(npz, out, "--epochs", 1) == 0
    runs = snapshot(out)
    damaged = out / "runs" / "none-batch8-seed1.json"
    damaged.write_text(damaged.read_text().replace("test_loss", "test_less", 1))
    capsys.readouterr()
    assert compare(npz, out, "--epochs", 1) == 0
    printed = capsys.readouterr().out
    assert f"{damaged} is not used, its contents do not match its checksum" in printed
    assert len(re.findall(r"^\[\d/4\]", printed, re.MULTILINE)) == 1
    after = snapshot(out)
    assert {k: v for k, v in after.items() if k != damaged.name} == {
        k: v for k, v in runs.items() if k != damaged.name
    }
    again, original = (json.loads(files[damaged.name][0]) for files in (after, runs))
    assert again["epochs"] == original["epochs"]

    assert compare(npz, out, "--epochs", 3, "--seeds", "0,5") == 2
    error = capsys.readouterr().err
    assert "differs in epochs (1 there, 3 now); seeds ([0, 1] there, [0, 5] now)" in error
    assert snapshot(out) == after


def wait_for(process, condition):
    while not condition():
        if process.poll() is not None:
            output, error = process.communicate()
            pytest.fail(f"the command ended early:\n{output}\n{error}")
        time.sleep(0.02)
