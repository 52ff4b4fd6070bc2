"""`truenorm bench`: how fast the layers are, beside Keras', the framework's own, and memory."""

import contextlib
import importlib.util
import os
import pathlib
import platform
import sys
from collections.abc import Callable, Iterable, Iterator

from keras import backend

from truenorm.core.errors import InputError
from truenorm.tools.allocator import SETTINGS, kept_pages, page_faults
from truenorm.tools.bench.candidates import TRUENORM, candidates, inputs
from truenorm.tools.bench.cases import (
    DEFAULTS,
    PASSES,
    Case,
    check_rounds,
    choose_cases,
)
from truenorm.tools.bench.measure import BUFFERS, measure
from truenorm.tools.bench.results import Results, Row, files
from truenorm.tools.config import facts
from truenorm.tools.figures import need_matplotlib
from truenorm.tools.writing import check_folder

__all__ = ["Results", "bench"]

PAGE = 4096  # bytes; where pages are larger there are fewer faults to speak of


def bench(
    *,
    norms: str | Iterable[str] = DEFAULTS["norms"],
    layouts: str | Iterable[str] = DEFAULTS["layouts"],
    sizes: str | Iterable[str] = DEFAULTS["sizes"],
    dtypes: str | Iterable[str] = DEFAULTS["dtypes"],
    rounds: str | int = DEFAULTS["rounds"],
    out: str | os.PathLike[str] | None = None,
    force: bool = False,
    progress: bool = True,
    show: Callable[[Results], None] = lambda results: None,
) -> Results:
    """Time every combination on the active backend, forward and forward + backward.

    In each round every candidate computes each case once, in turn: truenorm as installed and on
    its plain path, Keras' layer, the framework's own, and `a * 1.01`. Large tensors are in memory
    only when the clock starts. Meanwhile glibc's allocator is told to keep what is freed, so that
    no candidate waits for new pages.

    Args:
        norms: of "layer", "instance", "group", "rms", as a list or a text with commas.
        layouts: of "last", "first": where the channels are.
        sizes: of "large", "medium", "small".
        dtypes: of "float32", "bfloat16".
        rounds: how often each candidate is timed, 3 or more.
        out: a folder for bench-BACKEND.json and bench-BACKEND.png.
        force: overwrite those.
        progress: show which case is timed, on stderr.
        show: called with the results before they are written to `out`, which may fail.

    Raises:
        InputError: an argument is not one of those, a file exists or cannot be written,
            matplotlib is missing for `out`, or the backend does not train.
    """
    name = backend.backend()
    if name not in ("jax", "tensorflow", "torch"):
        raise InputError(
            f"the {name} backend has no gradients to time; choose jax, tensorflow or torch with "
            "--backend (or KERAS_BACKEND)."
        )
    cases, rounds = choose_cases(norms, layouts, sizes, dtypes), check_rounds(rounds)
    folder = None if out is None else pathlib.Path(out)
    if folder is not None:
        check_folder(folder, files(folder, name), force)
        need_matplotlib()
    rows = []
    largest = max(cases, key=lambda case: case.bytes)
    left = _page_faults(largest)
    with kept_pages() as kept, _progress(len(cases) * len(PASSES), progress) as begin:
        for case in cases:
            for passes in PASSES:
                begin(f"{case}, {passes}")
                rows.append(_row(case, passes, rounds))
        held = _page_faults(largest) if kept else None
    machine = {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "freed memory": "kept by the allocator" if kept else "left to the allocator",
    }
    if left is not None and held is not None:
        machine["page faults"] = f"{held} a call, {left} where left to the allocator"
    advice = _advice(largest, left, held)
    results = Results(rows, facts() | machine, name, rounds, advice)
    show(results)
    if folder is not None:
        results.save(folder)
    return results


def _page_faults(case: Case) -> int | None:
    """Those of truenorm's forward and backward pass."""
    run = candidates(case, trained=True)[TRUENORM]
    pair = inputs(case, 1)[0]
    return page_faults(lambda: run(*pair))


def _advice(case: Case, left: int | None, held: int | None) -> str:
    """A sentence where giving memory back costs as many page faults as a part of x has pages."""
    if left is None or held is None or left - held < case.bytes / PAGE / 4:
        return ""
    return (
        f"Left to itself, this system's allocator gives freed tensors back: {case}, "
        f"forward+backward,\nthen makes {left:,} page faults a call instead of {held:,}. The times "
        f"above are without them;\nso are your programs with this before the command:\n{SETTINGS}"
    )


def _row(case: Case, passes: str, rounds: int) -> Row:
    runs = candidates(case, trained=passes != "forward")
    cold = case.size == "large"
    return Row(case, passes, *measure(runs, inputs(case, BUFFERS), rounds, cold))


@contextlib.contextmanager
def _progress(total: int, shown: bool) -> Iterator[Callable[[str], None]]:
    """A function to call with the name of each piece of work as it starts."""
    if not shown:
        yield lambda text: None
        return
    if importlib.util.find_spec("rich") is not None and sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining

        columns = (
            BarColumn(24),
            MofNCompleteColumn(),
            Remaining(),
            TextColumn("{task.description}"),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=total, completed=-1)
            yield lambda text: bar.update(task, advance=1, description=text)
        return
    done = iter(range(1, total + 1))
    yield lambda text: print(f"[{next(done)}/{total}] {text}", file=sys.stderr, flush=True)


def _processor() -> str:
    """The processor's name where the system tells it, else its architecture."""
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
