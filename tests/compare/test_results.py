import dataclasses
import json

import pytest

from truenorm.tools.compare.results import Results
from truenorm.tools.compare.runs import Run
from truenorm.tools.compare.settings import DEFAULTS, read


def results(accuracies, times=None, epochs=10, not_applicable=None, **changed):
    """Results with these test accuracies: {(norm, batch size): one for each seed}."""
    labels = list(dict.fromkeys(label for label, _ in accuracies))
    sizes = list(dict.fromkeys(size for _, size in accuracies))
    seeds = max(map(len, accuracies.values()))
    settings = read(**{**DEFAULTS, "norms": labels, "batch_sizes": sizes, "epochs": epochs,
                       "seeds": list(range(seeds)), **changed})  # fmt: skip
    runs = {}
    for norm in settings.norms:
        for size in sizes:
            for seed, accuracy in enumerate(accuracies.get((norm.label, size), [])):
                runs[Run(norm, size, seed)] = {
                    "norm": norm.label, "batch_size": size, "seed": seed,
                    "test_loss": 1 - accuracy, "test_accuracy": accuracy, "steps": 5000,
                    "step_ms": (times or {}).get(norm.label), "epochs": [], "curve": [],
                }  # fmt: skip
    return Results(settings, runs, not_applicable or {}, {}, (8, 8))


def verdict(none, layer, group):
    return results({("none", 2): none, ("layer", 2): layer, ("group", 2): group}).conclusion


def test_overlapping_seeds_are_ties_and_apart_ones_are_not():
    low, wide = [0.90, 0.91, 0.92], [0.92, 0.95, 0.99]
    assert "over 3 seeds, all are tied at batch size 2" in verdict(low, [0.92] * 3, wide)
    assert "group is ahead of none and layer at batch" in verdict(low, low, [0.93, 0.94, 0.95])


def test_only_the_best_is_claimed_to_be_ahead():
    # Layer overlaps both: nothing is said about layer and none.
    text = verdict([0.90, 0.91, 0.92], [0.91, 0.94, 0.96], [0.93, 0.95, 0.99])
    assert "group is ahead of none, and tied with layer, at batch size 2" in text
    # Layer and none are apart, but both overlap the best: that is not "all are tied".
    text = verdict([0.90, 0.91, 0.92], [0.93, 0.94, 0.95], [0.91, 0.96, 0.99])
    assert "group is best on average but tied with none and layer at batch size 2" in text


def test_each_batch_size_has_its_verdict_and_equal_ones_are_said_once():
    apart, tied = [0.97, 0.98, 0.99], [0.90, 0.95, 0.98]
    low = [0.80, 0.85, 0.89]
    conclusion = results({
        ("none", 2): low, ("group", 2): apart, ("none", 8): low, ("group", 8): apart,
        ("none", 32): tied, ("group", 32): apart,
    }).conclusion  # fmt: skip
    assert "group is ahead of none at batch sizes 2 and 8; both are tied at batch size 32" in (
        conclusion
    )
    assert conclusion.endswith("more or less than 10 epochs.")
    assert conclusion.count(".") == 1  # one sentence


def test_one_seed_supports_nothing_and_two_little():
    assert "support no difference" in results({("none", 2): [0.1], ("rms", 2): [0.9]}).conclusion
    two = results({("none", 2): [0.1, 0.2], ("rms", 2): [0.9, 0.8]}).conclusion
    assert "rms is ahead of none at batch size 2, which two seeds support only weakly" in two


def test_nothing_to_compare():
    assert "no pair" in results({("none", 2): [0.1, 0.2], ("none", 8): [0.1, 0.2]}).conclusion


def test_summary_and_table():
    got = results(
        {("none", 2): [0.90, 0.92, 0.94], ("instance", 2): [], ("rms", 2): [0.5, 0.6, 0.7]},
        times={"none": 2.0, "rms": 3.0},
        not_applicable={("instance", 2): "one element"},
    )
    none, instance, rms = got.summary
    assert none["test_accuracy"] == pytest.approx(0.92)
    assert (none["test_accuracy_low"], none["test_accuracy_high"]) == (0.90, 0.94)
    assert none["test_accuracy_sd"] == pytest.approx(0.02)
    assert (none["relative_time"], rms["relative_time"]) == (1.0, 1.5)
    assert instance["test_accuracy"] is None
    text = str(got)
    assert "92.0 (90.0–94.0)" in text
    assert "1.50x" in text
    assert "not applicable" in text
    assert "Note: instance is not applicable: one element." in text
    assert "<td" in got._repr_html_()
    json.dumps(got.as_dict(), allow_nan=False)
    assert len(got.records) == 6
    assert all(not isinstance(value, (dict, list)) for r in got.records for value in r.values())


def test_without_none_there_is_no_relative_time():
    got = results({("rms", 2): [0.5], ("layer", 2): [0.6]}, times={"rms": 1.0, "layer": 2.0})
    assert [row["relative_time"] for row in got.summary] == [None, None]


def test_batch_statistics_that_had_no_time_to_settle_are_noted():
    got = results({("batch", 2): [0.5, 0.6], ("batch:momentum=0.5", 2): [0.5, 0.6]})
    assert got.notes == []
    short = {run: {**record, "steps": 100} for run, record in got.runs.items()}
    (note,) = dataclasses.replace(got, runs=short).notes
    assert "batch at batch size 2: after 100 steps" in note
    assert "37% of their initial values" in note


def test_a_diverged_run_is_noted():
    got = results({("none", 2): [0.5, 0.6]})
    run = next(iter(got.runs))
    broken = dataclasses.replace(
        got, runs={**got.runs, run: {**got.runs[run], "test_loss": float("nan")}}
    )
    assert broken.notes == ["the loss is not a finite number in: none, batch 2, seed 0."]
    assert "nan" in str(broken)
