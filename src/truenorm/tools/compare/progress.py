"""What is shown while runs train: a live grid on a terminal, plain lines elsewhere, or nothing."""

import dataclasses
import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

from truenorm.core.errors import InputError
from truenorm.tools.compare.runs import Record, Run
from truenorm.tools.compare.settings import Settings

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

REFRESH = 0.1  # seconds


class Progress:
    """Shows nothing; the other ways to show progress have these methods too."""

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    def say(self, text: str) -> None:
        """A line that stays."""

    def starts(self, run: Run) -> None:
        """A run starts."""

    def step(self, epoch: int, step: int, steps: int, loss: float, accuracy: float) -> None:
        """A step of the current run is done; epoch and step count from 0."""

    def finished(self, run: Run, record: Record) -> None:
        """A run is finished, now or (before the first start) in an earlier command."""


class Lines(Progress):
    """One plain line for each finished run, for logs and pipes."""

    def __init__(self, total: int, stream: TextIO) -> None:
        self.total, self.stream = total, stream
        self.done = 0
        self.running = False

    def say(self, text: str) -> None:
        """Print a line."""
        print(text, file=self.stream, flush=True)

    def starts(self, run: Run) -> None:
        """From here on, finished runs are those of this command."""
        self.running = True

    def finished(self, run: Run, record: Record) -> None:
        """Print the run's numbers."""
        self.done += 1
        if self.running:
            self.say(f"[{self.done}/{self.total}] {run}: {outcome(record)}")


@dataclasses.dataclass
class Current:
    """Where the current run is."""

    run: Run
    epoch: int = 0
    step: int = 0
    steps: int = 1
    loss: float = float("nan")
    accuracy: float = float("nan")


class Live(Progress):
    """A grid of what is done and left, the current run, and a bar, redrawn in place."""

    def __init__(
        self, settings: Settings, todo: list[Run], skipped: set[tuple[str, int]], console: "Console"
    ) -> None:
        from rich.live import Live as RichLive
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
        )
        from rich.progress import Progress as Bar

        self.settings, self.todo, self.skipped, self.console = settings, todo, skipped, console
        self.accuracies: dict[tuple[str, int], list[float]] = {}
        self.current: Current | None = None
        self.began, self.ran, self.waiting = time.monotonic(), 0, 0
        self.bar = Bar(
            BarColumn(None),
            MofNCompleteColumn(),
            TextColumn("runs"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            expand=True,
        )
        self.task = self.bar.add_task("", total=len(todo), left="")
        self.live = RichLive(
            get_renderable=self.render, console=console, refresh_per_second=1 / REFRESH
        )

    def __enter__(self) -> "Live":
        self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.current = None
        self.live.stop()

    def say(self, text: str) -> None:
        """Print a line above the grid."""
        self.console.print(text, markup=False, highlight=False)

    def starts(self, run: Run) -> None:
        """Show this run as the current one."""
        if self.ran == 0:
            self.began = time.monotonic()
        self.current = Current(run)

    def step(self, epoch: int, step: int, steps: int, loss: float, accuracy: float) -> None:
        """Keep the numbers; they are drawn a few times a second, by another thread."""
        if self.current is not None:
            self.current = Current(self.current.run, epoch, step + 1, steps, loss, accuracy)

    def finished(self, run: Run, record: Record) -> None:
        """Fill in the grid."""
        key = (run.norm.label, run.batch_size)
        self.accuracies.setdefault(key, []).append(record["test_accuracy"])
        done = sum(map(len, self.accuracies.values()))
        left = ""
        if self.current is not None:
            self.ran += 1
            seconds = (time.monotonic() - self.began) / self.ran * (len(self.todo) - done)
            left = f"about {_duration(seconds)} left" if done < len(self.todo) else "done"
        self.bar.update(self.task, completed=done, left=left)

    def render(self) -> "RenderableType":
        """The screen."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        table.add_column("test accuracy %")
        for size in self.settings.batch_sizes:
            table.add_column(f"batch {size}")
        for norm in self.settings.norms:
            row = [self._cell(norm.label, size) for size in self.settings.batch_sizes]
            table.add_row(Text(norm.label), *row)
        return Group("", table, "", self._now(), self.bar)

    def _cell(self, label: str, size: int) -> Any:
        from rich.text import Text

        if (label, size) in self.skipped:
            return Text("not applicable", style="dim")
        accuracies = self.accuracies.get((label, size), [])
        total = len(self.settings.seeds)
        text = Text()
        if accuracies:
            text.append(f"{100 * sum(accuracies) / len(accuracies):5.1f} ")
        else:
            text.append("      ")
        now = self.current is not None and (label, size) == (
            self.current.run.norm.label,
            self.current.run.batch_size,
        )
        if total > 8:
            text.append(f"{len(accuracies)}/{total}", style="cyan" if now else "dim")
            return text
        text.append("●" * len(accuracies), style="green")
        left = total - len(accuracies)
        if now and left:
            text.append("◐", style="cyan")
            left -= 1
        text.append("○" * left, style="dim")
        return text

    def _now(self) -> Any:
        from rich.text import Text

        if (now := self.current) is None:
            return Text("\n")
        text = Text.assemble((str(now.run), "cyan"), no_wrap=True, overflow="ellipsis")
        text.append(f"  epoch {now.epoch + 1}/{self.settings.epochs}")
        text.append(f" step {now.step}/{now.steps}")
        text.append("\n")
        if now.step:
            text.append(f"loss {now.loss:.3f}  accuracy {100 * now.accuracy:.1f} %")
        return text


def choose(
    show: bool, settings: Settings, todo: list[Run], skipped: set[tuple[str, int]]
) -> Progress:
    """The live screen where the output is a terminal or a notebook, else lines, or nothing.

    Raises:
        InputError: rich is not installed.
    """
    if not show:
        return Progress()
    try:
        from rich.console import Console
    except ImportError:
        raise InputError(
            "live progress needs rich, which is not installed; run pip install rich."
        ) from None
    console = Console()
    if console.is_jupyter or (console.is_terminal and not console.is_dumb_terminal):
        return Live(settings, todo, skipped, console)
    return Lines(len(todo), sys.stdout)


def outcome(record: Record) -> str:
    """The numbers of a finished run in one line."""
    step = "" if record["step_ms"] is None else f", {record['step_ms']:.3g} ms a step"
    return (
        f"test loss {record['test_loss']:.3f}, accuracy {100 * record['test_accuracy']:.1f} %"
        f"{step}, {record['seconds']:.1f} s"
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
