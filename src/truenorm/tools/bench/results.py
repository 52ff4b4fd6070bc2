"""The results of a benchmark: the table, the JSON, the plot."""

import dataclasses
import io
import json
import pathlib
import statistics
from typing import Any

from truenorm.core.errors import InputError
from truenorm.tools.bench.candidates import FUNCTION, TRUENORM, YARDSTICK, like
from truenorm.tools.bench.cases import PASSES, Case
from truenorm.tools.bench.measure import Spread
from truenorm.tools.figures import COLOURS, MARKERS
from truenorm.tools.writing import write

# Memory traffic that the pass cannot do without, in tensors of x's size: x, y; and dy, x, dx.
TRAFFIC = {"forward": 2, "forward+backward": 5}


@dataclasses.dataclass(frozen=True)
class Row:
    """One case and pass: the seconds of every candidate in every round.

    Attributes:
        case: what was normalized.
        passes: of `PASSES`.
        seconds: by candidate, one for each round.
        failed: by candidate, the error of those that could not compute the case.
    """

    case: Case
    passes: str
    seconds: dict[str, list[float]]
    failed: dict[str, str]

    def milliseconds(self, name: str) -> Spread:
        """The time of a candidate."""
        return Spread.of([1e3 * one for one in self.seconds[name]])

    def gigabytes(self, name: str) -> float:
        """The traffic that the pass cannot do without, over the time: 1e9 bytes a second."""
        return TRAFFIC[self.passes] * self.case.bytes / self.milliseconds(name).median / 1e6

    def times(self, name: str) -> Spread:
        """A candidate's time as a multiple of truenorm's in the same round."""
        ours = self.seconds[like(name, self.seconds)]
        return Spread.of([a / b for a, b in zip(self.seconds[name], ours, strict=True)])

    def as_dict(self) -> dict[str, Any]:
        """The row for JSON."""
        found = {
            name: {
                "milliseconds": dataclasses.asdict(self.milliseconds(name)),
                "gigabytes_per_second": self.gigabytes(name),
                "times_truenorm": dataclasses.asdict(self.times(name)),
                "truenorm_times_it": 1 / self.times(name).median,
                "compared_with": like(name, self.seconds),
            }
            for name in self.seconds
        }
        case = dataclasses.asdict(self.case) | {"shape": self.case.shape}
        return {"case": case, "pass": self.passes, "candidates": found, "failed": self.failed}


@dataclasses.dataclass(frozen=True)
class Results:
    """What `bench` returns; printing it gives the table.

    Attributes:
        rows: every case, forward and with backward.
        facts: versions and machine, as text.
        backend: the Keras backend.
        rounds: how often each candidate was timed.
        advice: a sentence on how to set up the machine, if there is one.
    """

    rows: list[Row]
    facts: dict[str, str]
    backend: str
    rounds: int
    advice: str = ""

    def __str__(self) -> str:
        names = list(dict.fromkeys(name for row in self.rows for name in row.seconds))
        peers = [name for name in names if name not in (TRUENORM, FUNCTION)]
        head = ["norm", "channels", "shape", "ms", "spread", "GB/s", *peers]
        sections: list[str] = []
        for dtype in dict.fromkeys(row.case.dtype for row in self.rows):
            for passes in PASSES:
                chosen = [
                    row for row in self.rows if (row.case.dtype, row.passes) == (dtype, passes)
                ]
                table = [head, *(_cells(row, peers) for row in chosen)]
                sections.append(f"{passes}, {dtype}\n{_aligned(table)}")
        tail = (
            f"{self.backend}, {self.rounds} rounds. ms, spread (half the range between the "
            f"quartiles) and GB/s are\ntruenorm's; under each other name is its time as a multiple "
            f"of truenorm's in the same\nround (the median): above 1, truenorm is faster. "
            f"{YARDSTICK} reads and writes each element once."
        )
        if any(FUNCTION in row.seconds for row in self.rows):
            tail += (
                "\nKeras' layer is compared with truenorm's layer, what is not a Keras layer with "
                "its function."
            )
        failed = dict.fromkeys(
            f"{name} cannot compute {row.case}: {error}"
            for row in self.rows
            for name, error in row.failed.items()
        )
        return "\n\n".join([*sections, tail, *failed, *([self.advice] if self.advice else [])])

    def as_dict(self) -> dict[str, Any]:
        """What the JSON file holds."""
        return {
            "schema_version": 1,
            "backend": self.backend,
            "rounds": self.rounds,
            "facts": self.facts,
            "rows": [row.as_dict() for row in self.rows],
        }

    def save(self, folder: pathlib.Path) -> list[pathlib.Path]:
        """Write the JSON file and the plot into a folder; return their paths.

        Raises:
            InputError: they cannot be written.
        """
        data, picture = files(folder, self.backend)
        image = io.BytesIO()
        self.figure().savefig(image, format="png", dpi=150)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"cannot make the folder {folder}: {error.strerror}. Name another one."
            ) from None
        write(data, json.dumps(self.as_dict(), indent=1))
        write(picture, image.getvalue())
        return [data, picture]

    def figure(self) -> Any:
        """A matplotlib Figure: each candidate's time in yardsticks, a line for each case."""
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter, NullFormatter

        cases = list(dict.fromkeys(row.case for row in self.rows))
        names = list(dict.fromkeys(name for row in self.rows for name in row.seconds))
        names = [name for name in names if name != YARDSTICK]
        figure = Figure(figsize=(11, 1.9 + 0.27 * len(cases)), layout="constrained")
        for axes, passes in zip(figure.subplots(1, 2, sharey=True), PASSES, strict=True):
            rows = {row.case: row for row in self.rows if row.passes == passes}
            for index, name in enumerate(names):
                points = [
                    (_yardsticks(rows[case], name), -place)
                    for place, case in enumerate(cases)
                    if case in rows and {name, YARDSTICK} <= rows[case].seconds.keys()
                ]
                x, y = zip(*points, strict=True) if points else ((), ())
                ours = name in (TRUENORM, FUNCTION)
                axes.plot(
                    x, y, MARKERS[index % len(MARKERS)], label=name, markersize=8 if ours else 6,
                    color=COLOURS[(2 if name == TRUENORM else index + 3) % len(COLOURS)],
                    zorder=4 if ours else 3, linestyle="",
                )  # fmt: skip
            least = TRAFFIC[passes] / 2
            bound = {"color": "#888888", "linewidth": 1.2, "linestyle": "--"}
            axes.axvline(least, label="what memory asks for", zorder=1, **bound)
            axes.set_title(passes, loc="left", fontweight="bold", fontsize=11)
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel(f"times {YARDSTICK}, less is better")
            axes.set_yticks([-place for place in range(len(cases))], [str(case) for case in cases])
            axes.tick_params(axis="y", length=0, labelsize=8.5)
            axes.grid(color="#e3e3e3", linewidth=0.8)
            axes.set_axisbelow(True)
            axes.spines[["top", "right", "left"]].set_visible(False)
            axes.set_ylim(-len(cases) + 0.4, 0.6)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=len(labels), frameon=False)
        return figure


def files(folder: pathlib.Path, backend: str) -> tuple[pathlib.Path, pathlib.Path]:
    """The JSON file and the plot of a backend."""
    return folder / f"bench-{backend}.json", folder / f"bench-{backend}.png"


def _yardsticks(row: Row, name: str) -> float:
    pairs = zip(row.seconds[name], row.seconds[YARDSTICK], strict=True)
    return statistics.median(a / b for a, b in pairs)


def _cells(row: Row, peers: list[str]) -> list[str]:
    case, ours = row.case, row.milliseconds(TRUENORM)
    shape = "×".join(map(str, case.shape))
    spread = f"±{50 * (ours.high - ours.low) / ours.median:.0f}%"
    times = [f"{row.times(name).median:.2f}" if name in row.seconds else "-" for name in peers]
    time, speed = f"{ours.median:.3g}", f"{row.gigabytes(TRUENORM):.1f}"
    return [case.kind, case.layout, shape, time, spread, speed, *times]


def _aligned(table: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place < 3 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    )
