"""The figures: learning curves for each batch size, accuracy and time against batch size.

Each is small enough to be read at its natural size on a phone.
"""

import io
import statistics
from collections.abc import Iterator
from typing import Any

from truenorm.tools.compare.results import Results
from truenorm.tools.figures import COLOURS, MARKERS

SIZE = (5.0, 3.6)  # inches
DPI = 160


def plots(results: Results) -> dict[str, tuple[str, bytes]]:
    """File name to (what it shows, PNG)."""
    made = {
        "accuracy": ("Test accuracy against batch size.", _accuracy(results)),
        "time": ("Time of a training step against batch size.", _time(results)),
    }
    for size in results.settings.batch_sizes:
        if any(run.batch_size == size for run in results.runs):
            made[f"loss-batch{size}"] = (
                f"Training loss at batch size {size}.",
                _curves(results, size, "curve", "loss", "training loss"),
            )
            if results.settings.epochs > 1:
                made[f"accuracy-batch{size}"] = (
                    f"Test accuracy after each epoch at batch size {size}.",
                    _curves(results, size, "epochs", "test_accuracy", "test accuracy %"),
                )
    return {f"{name}.png": content for name, content in made.items()}


def _accuracy(results: Results) -> bytes:
    """Points are means over seeds, bars the lowest to the highest seed."""
    figure, axes = _figure("test accuracy")
    for index, x, rows in _by_batch_size(results, axes):
        mean = [100 * row["test_accuracy"] for row in rows]
        below = [100 * (row["test_accuracy"] - row["test_accuracy_low"]) for row in rows]
        above = [100 * (row["test_accuracy_high"] - row["test_accuracy"]) for row in rows]
        label = results.settings.norms[index].label
        axes.errorbar(x, mean, [below, above], label=label, capsize=2, **_style(index))
    axes.set_ylabel("test accuracy %")
    return _png(figure, axes)


def _time(results: Results) -> bytes:
    """Points are medians over seeds of each run's median step."""
    figure, axes = _figure("time of a training step")
    for index, x, rows in _by_batch_size(results, axes):
        times = [float("nan") if row["step_ms"] is None else row["step_ms"] for row in rows]
        axes.plot(x, times, label=results.settings.norms[index].label, **_style(index))
    axes.set_ylim(bottom=0)
    axes.set_ylabel("milliseconds")
    return _png(figure, axes)


def _by_batch_size(
    results: Results, axes: Any
) -> Iterator[tuple[int, list[float], list[dict[str, Any]]]]:
    """Label the x axis; yield each normalization's index, places on the axis and summary rows."""
    sizes = results.settings.batch_sizes
    norms = results.settings.norms
    axes.set_xticks(range(len(sizes)), [str(size) for size in sizes])
    axes.set_xlim(-0.5, len(sizes) - 0.5)
    axes.set_xlabel("batch size")
    for index, norm in enumerate(norms):
        rows = [r for r in results.summary if r["norm"] == norm.label and r["seeds"]]
        # Beside each other, so that overlapping bars can be told apart.
        shift = 0.09 * (index - (len(norms) - 1) / 2) * min(1, 6 / len(norms))
        yield index, [sizes.index(row["batch_size"]) + shift for row in rows], rows


def _curves(results: Results, batch_size: int, kind: str, key: str, name: str) -> bytes:
    """Lines are means over seeds, bands the lowest to the highest seed."""
    figure, axes = _figure(f"{name.removesuffix(' %')}, batch size {batch_size}")
    scale = 100 if name.endswith("%") else 1
    for index, norm in enumerate(results.settings.norms):
        runs = [r for run, r in results.runs.items()
                if (run.norm, run.batch_size) == (norm, batch_size)]  # fmt: skip
        if not runs:
            continue
        if kind == "epochs":
            x = [point["epoch"] for point in runs[0]["epochs"]]
        else:
            steps = runs[0]["steps"] / results.settings.epochs
            x = [point["step"] / steps for point in runs[0]["curve"]]
        values = [[scale * point[key] for point in run[kind]] for run in runs]
        by_point = list(zip(*values, strict=True))
        style = _style(index) | ({"marker": ""} if kind == "curve" else {})
        axes.plot(x, [statistics.fmean(p) for p in by_point], label=norm.label, **style)
        axes.fill_between(
            x, [min(p) for p in by_point], [max(p) for p in by_point],
            color=style["color"], alpha=0.12, linewidth=0,
        )  # fmt: skip
    axes.set_xlabel("epoch")
    axes.set_ylabel(name)
    if kind == "epochs":
        axes.xaxis.get_major_locator().set_params(integer=True)
    else:
        axes.set_yscale("log")
        _plain_log_ticks(axes)
    return _png(figure, axes)


def _plain_log_ticks(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _figure(title: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _style(index: int) -> dict[str, Any]:
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "markersize": 5,
        "linewidth": 1.6,
        # Past the last colour, lines differ by their dashes.
        "linestyle": ("-", "--", ":")[index // len(COLOURS) % 3],
    }


def _png(figure: Any, axes: Any) -> bytes:
    _, labels = axes.get_legend_handles_labels()
    columns = 1 if max(map(len, labels), default=0) > 24 else 3
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    buffer = io.BytesIO()
    # No software name or date in the file: the same results give the same bytes.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
