import io

import pytest
from rich.console import Console

from truenorm.tools.compare.progress import Lines, Live, Progress, choose
from truenorm.tools.compare.runs import Run
from truenorm.tools.compare.settings import DEFAULTS, read

SETTINGS = read(**{**DEFAULTS, "norms": "none,instance,group:groups=2", "batch_sizes": "2,8",
                   "seeds": 2, "epochs": 4})  # fmt: skip
TODO = [Run(norm, size, seed) for seed in (0, 1) for size in (2, 8) for norm in SETTINGS.norms
        if norm.name != "instance"]  # fmt: skip
RECORD = {"test_loss": 0.25, "test_accuracy": 0.875, "step_ms": 1.234, "seconds": 2.0}


def test_the_live_screen_shows_what_runs_what_is_done_and_what_is_left():
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    live = Live(SETTINGS, TODO, {("instance", 2), ("instance", 8)}, console)

    def screen():
        paper = Console(file=io.StringIO(), width=80)
        paper.print(live.render())
        return paper.file.getvalue()

    with live:
        live.finished(TODO[0], RECORD)  # of an earlier command
        live.starts(TODO[1])
        live.step(epoch=2, step=6, steps=20, loss=0.5, accuracy=0.75)
        text = screen()
        assert "group:groups=2, batch 2, seed 0  epoch 3/4 step 7/20" in text
        assert "loss 0.500  accuracy 75.0 %" in text
        assert "87.5 ●○" in text
        assert "◐○" in text
        assert text.count("not applicable") == 2
        assert "1/8 runs" in text
        live.finished(TODO[1], RECORD)
        assert "2/8 runs" in screen()
        assert " left" in screen()
        for run in TODO[2:]:
            live.starts(run)
            live.finished(run, RECORD)
        text = screen()
        assert "8/8 runs" in text
        assert text.count("●●") == 4
        assert "○" not in text
    assert "epoch" not in screen()


def test_lines_count_the_runs_of_earlier_commands_without_repeating_them():
    stream = io.StringIO()
    lines = Lines(8, stream)
    lines.finished(TODO[0], RECORD)
    lines.say("1 of 8 runs were already finished")
    lines.starts(TODO[1])
    lines.finished(TODO[1], RECORD)
    assert stream.getvalue().splitlines() == [
        "1 of 8 runs were already finished",
        "[2/8] group:groups=2, batch 2, seed 0: test loss 0.250, accuracy 87.5 %, 1.23 ms a step, "
        "2.0 s",
    ]


@pytest.mark.parametrize(("show", "kind"), [(False, Progress), (True, Lines)])
def test_what_is_no_terminal_gets_lines(show, kind, monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    assert type(choose(show, SETTINGS, TODO, set())) is kind
