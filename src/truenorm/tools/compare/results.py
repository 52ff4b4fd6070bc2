"""The results of a comparison: records, the table, and what the numbers support."""

import dataclasses
import html
import math
import statistics
import textwrap
from pathlib import Path
from typing import Any

from truenorm.tools.compare.folder import SCHEMA_VERSION
from truenorm.tools.compare.runs import Record, Run
from truenorm.tools.compare.settings import Settings

HEADER = ("normalization", "batch", "test loss", "test accuracy %", "ms/step", "time")
WIDTH = 80  # of text on a terminal
# Batch normalization whose moving statistics still hold this share of their initial values.
UNSETTLED = 0.05


@dataclasses.dataclass(frozen=True, repr=False)
class Results:
    """What `compare` returns. Printing it gives the table and the conclusion.

    Attributes:
        settings: what was asked for.
        runs: the finished runs with their records, learning curves included.
        not_applicable: (norm, batch_size) to the reason, for pairs that were not trained.
        facts: the data, versions and machine, as text.
        image_shape: (H, W).
        folder: where the report is; None where nothing was written.
    """

    settings: Settings
    runs: dict[Run, Record]
    not_applicable: dict[tuple[str, int], str]
    facts: dict[str, str]
    image_shape: tuple[int, int]
    folder: Path | None = None

    @property
    def records(self) -> list[dict[str, Any]]:
        """One flat dict for each finished run, without its curves: ready for a data frame."""
        return [
            {key: value for key, value in record.items() if key not in ("epochs", "curve")}
            for record in self.runs.values()
        ]

    @property
    def summary(self) -> list[dict[str, Any]]:
        """One flat dict for each batch size and normalization.

        test_loss and test_accuracy are means over the seeds, with _low and _high the lowest and
        highest seed and _sd the standard deviation (None for one seed); step_ms is the median;
        relative_time is to "none" at the same batch size (None where that was not run).
        A pair that was not trained has `not_applicable`, the reason, and None for numbers.
        """
        rows = []
        for batch_size in self.settings.batch_sizes:
            baseline = self._row("none", batch_size)["step_ms"]
            for norm in self.settings.norms:
                row = self._row(norm.label, batch_size)
                both = row["step_ms"] and baseline
                row["relative_time"] = row["step_ms"] / baseline if both else None
                rows.append(row)
        return rows

    @property
    def conclusion(self) -> str:
        """One plain sentence: what the numbers support, and what they do not."""
        return conclude(self.summary, len(self.settings.seeds), self.settings.epochs)

    @property
    def notes(self) -> list[str]:
        """What a reader of the table must know besides."""
        notes = []
        reasons: dict[tuple[str, str], list[int]] = {}
        for (label, batch_size), reason in self.not_applicable.items():
            reasons.setdefault((label, reason), []).append(batch_size)
        for (label, reason), sizes in reasons.items():
            every = len(sizes) == len(self.settings.batch_sizes)
            where = "" if every else f" at batch size {', '.join(map(str, sizes))}"
            notes.append(f"{label} is not applicable{where}: {reason}.")
        return notes + self._unsettled() + self._diverged()

    def __str__(self) -> str:
        rows = [HEADER, *(cells(row) for row in self.summary)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
        lines = []
        previous = ""
        for row in rows:
            if previous and row[1] != previous:
                lines.append("")
            previous = row[1]
            first, *others = (cell.ljust(widths[0]) if i == 0 else cell.rjust(widths[i])
                              for i, cell in enumerate(row))  # fmt: skip
            lines.append("  ".join([first, *others]).rstrip())
        caption = "mean over seeds (lowest to highest seed); time is relative to none"
        below = [self.conclusion, *(f"Note: {note}" for note in self.notes)]
        texts = "\n".join(textwrap.fill(text, WIDTH, break_on_hyphens=False) for text in below)
        where = f"\n\nThe report is {self.folder / 'report.html'}" if self.folder else ""
        return "\n".join([*lines, caption]) + f"\n\n{texts}{where}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The table and the conclusion, for notebooks."""
        return table_html(self) + f"<p>{html.escape(self.conclusion)}</p>" + "".join(
            f"<p>Note: {html.escape(note)}</p>" for note in self.notes
        )  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        """What results.json holds."""
        return {
            "schema_version": SCHEMA_VERSION,
            "settings": self.settings.as_dict(),
            "facts": self.facts,
            "summary": self.summary,
            "conclusion": self.conclusion,
            "notes": self.notes,
            "records": self.records,
        }

    def _row(self, label: str, batch_size: int) -> dict[str, Any]:
        chosen = [r for run, r in self.runs.items()
                  if (run.norm.label, run.batch_size) == (label, batch_size)]  # fmt: skip
        row: dict[str, Any] = {"norm": label, "batch_size": batch_size, "seeds": len(chosen)}
        for key in ("test_loss", "test_accuracy"):
            values = [record[key] for record in chosen]
            row[key] = statistics.fmean(values) if values else None
            row[f"{key}_low"] = min(values) if values else None
            row[f"{key}_high"] = max(values) if values else None
            row[f"{key}_sd"] = _deviation(values)
        times = [record["step_ms"] for record in chosen if record["step_ms"] is not None]
        row["step_ms"] = statistics.median(times) if times else None
        row["relative_time"] = None
        row["not_applicable"] = self.not_applicable.get((label, batch_size))
        return row

    def _unsettled(self) -> list[str]:
        notes = []
        for norm in self.settings.norms:
            if norm.name != "batch":
                continue
            momentum = norm.options.get("momentum", 0.99)  # Keras' default
            for size in self.settings.batch_sizes:
                steps = next(
                    (r["steps"] for run, r in self.runs.items()
                     if (run.norm, run.batch_size) == (norm, size)), 0,
                )  # fmt: skip
                left = momentum**steps
                if steps and left > UNSETTLED:
                    notes.append(
                        f"{norm.label} at batch size {size}: after {steps} steps its moving mean "
                        f"and variance still hold {left:.0%} of their initial values, which harms "
                        "its test numbers; train longer, or lower its momentum "
                        "(batch:momentum=0.9)."
                    )
        return notes

    def _diverged(self) -> list[str]:
        bad = [str(run) for run, record in self.runs.items()
               if not math.isfinite(record["test_loss"])]  # fmt: skip
        return [f"the loss is not a finite number in: {'; '.join(bad)}."] if bad else []


def conclude(summary: list[dict[str, Any]], seeds: int, epochs: int) -> str:
    """The sentence for a summary.

    Two normalizations differ at a batch size where every seed of one has a higher test accuracy
    than every seed of the other; where the ranges overlap or touch they are tied.
    """
    verdicts: dict[str, list[int]] = {}
    for size in dict.fromkeys(row["batch_size"] for row in summary):
        rows = [row for row in summary if row["batch_size"] == size and row["seeds"]]
        if len(rows) > 1:
            verdicts.setdefault(_verdict(rows), []).append(size)
    if not verdicts:
        return "There is no pair of normalizations to compare."
    if seeds == 1:
        return (
            "With one seed these numbers support no difference between the normalizations, "
            "because they do not show how much chance alone moves them: give three seeds or more."
        )
    total = sum(map(len, verdicts.values()))
    said = [
        f"{verdict} at {'every batch size' if total > 1 and len(sizes) == total else _sizes(sizes)}"
        for verdict, sizes in verdicts.items()
    ]
    weak = ", which two seeds support only weakly" if seeds == 2 else ""
    return (
        f"By test accuracy over {seeds} seeds, {'; '.join(said)}{weak}; normalizations whose seeds "
        "overlap are called tied, and nothing is shown about other data, other models or "
        f"training for more or less than {epochs} epoch{'s' * (epochs != 1)}."
    )


def _verdict(rows: list[dict[str, Any]]) -> str:
    """What is said is about the best one, so that each claim is about a pair that was looked at."""
    lowest_high = min(row["test_accuracy_high"] for row in rows)
    if max(row["test_accuracy_low"] for row in rows) <= lowest_high:  # then every pair overlaps
        return f"{'both' if len(rows) == 2 else 'all'} are tied"
    best = max(rows, key=lambda row: row["test_accuracy"])
    others = [row for row in rows if row is not best]
    behind = [r["norm"] for r in others if r["test_accuracy_high"] < best["test_accuracy_low"]]
    tied = [row["norm"] for row in others if row["norm"] not in behind]
    if not behind:
        return f"{best['norm']} is best on average but tied with {_listed(tied)}"
    too = f", and tied with {_listed(tied)}," if tied else ""
    return f"{best['norm']} is ahead of {_listed(behind)}{too}"


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row of the summary as the texts of HEADER's columns."""
    if not row["seeds"]:
        return row["norm"], str(row["batch_size"]), "not applicable", "-", "-", "-"
    loss = _spread(row, "test_loss", 1, 3)
    accuracy = _spread(row, "test_accuracy", 100, 1)
    step = "-" if row["step_ms"] is None else f"{row['step_ms']:.3g}"
    relative = "-" if row["relative_time"] is None else f"{row['relative_time']:.2f}x"
    return row["norm"], str(row["batch_size"]), loss, accuracy, step, relative


def table_html(results: Results) -> str:
    """The table, escaped, with one body for each batch size."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in HEADER)
    bodies: dict[int, str] = {}
    for row in results.summary:
        texts = "".join(
            f'<td data-name="{html.escape(name)}">{html.escape(text)}</td>'
            for name, text in zip(HEADER, cells(row), strict=True)
        )
        bodies[row["batch_size"]] = bodies.get(row["batch_size"], "") + f"<tr>{texts}</tr>"
    body = "".join(
        f'<tbody data-title="batch size {size}">{rows}</tbody>' for size, rows in bodies.items()
    )
    return f"<table><thead><tr>{head}</tr></thead>{body}</table>"


def _spread(row: dict[str, Any], key: str, scale: float, digits: int) -> str:
    mean, low, high = (f"{scale * row[k]:.{digits}f}" for k in (key, f"{key}_low", f"{key}_high"))
    return f"{mean} ({low}–{high})" if row["seeds"] > 1 else mean


def _deviation(values: list[float]) -> float | None:
    if len(values) < 2:
        return None
    return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _sizes(sizes: list[int]) -> str:
    return f"batch size{'s' * (len(sizes) > 1)} {_listed([str(size) for size in sizes])}"
