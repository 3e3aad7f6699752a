from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable

import pytest
from rich.console import Console

from fcos.train.log import Display, Meter, StepReport

STEP = StepReport({"classification": 1.0, "box": 0.5, "quality": 0.25}, num_positive=8, grad_norm=2, lr=0.01)


def console(get_time: Callable[[], float] | None = None) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=160, _environ={}, get_time=get_time)


def shown(console: Console) -> str:
    """What a terminal was sent, without colors and movements of the cursor."""
    assert isinstance(console.file, io.StringIO)
    return re.sub(r"\x1b\[[?\d;]*\w", "", console.file.getvalue())


def test_meter_averages_until_it_is_taken() -> None:
    meter = Meter(images_per_step=4)
    meter.add(STEP)
    meter.add(STEP._replace(losses=STEP.losses | {"classification": 3.0}, lr=0.02))
    entry = meter.take()
    assert entry.pop("images_per_s") > 0
    assert entry == {
        "loss": 2.75,
        "loss_classification": 2.0,
        "loss_box": 0.5,
        "loss_quality": 0.25,
        "num_positive": 8,
        "grad_norm": 2,
        "lr": 0.02,  # of the last step
    }
    meter.add(STEP)
    assert meter.take()["loss"] == 1.75


def test_meter_goes_on_from_a_checkpoint() -> None:
    meter, resumed = Meter(images_per_step=4), Meter(images_per_step=4)
    meter.add(STEP._replace(losses=STEP.losses | {"box": math.pi}))
    resumed.load_state_dict(json.loads(json.dumps(meter.state_dict())))
    for each in (meter, resumed):
        each.add(STEP)
    ours, theirs = resumed.take(), meter.take()
    del ours["images_per_s"], theirs["images_per_s"]
    assert ours == theirs


def test_evaluation_does_not_count_as_slow_training(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    meter = Meter(images_per_step=4)
    now = 1000.0
    meter.restart_clock()
    now = 1002.0
    meter.add(STEP)
    assert meter.images_per_s == 2.0


def test_plain_lines_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    display, meter = Display(100, 10, enabled=True), Meter(images_per_step=4)
    for step in (20, 30, 40):
        now += 6.0
        meter.add(STEP)
        display.step(step, meter.text)
    display.line("epoch 1/2")
    display.close()
    said = capsys.readouterr()
    assert said.out == ""
    # A line each 10 seconds: after 12 seconds 20 of 90 steps are done.
    assert said.err.splitlines() == [
        "step 30/100  loss 1.750 (classification 1.000 box 0.500 quality 0.250)  "
        "lr 0.01  0.7 img/s  left 0:00:42",
        "epoch 1/2",
    ]


def test_bar_in_a_terminal_shows_losses_rate_speed_and_time_left() -> None:
    now = 0.0
    terminal = console(get_time=lambda: now)
    display, meter = Display(100, 0, enabled=True, console=terminal), Meter(images_per_step=4)
    for step in range(1, 31):
        now += 2.0
        meter.add(STEP)
        display.step(step, meter.text)
    display.progress.refresh()
    display.close()
    said = shown(terminal)
    assert "30/100" in said
    assert "loss 1.750 (classification 1.000 box 0.500 quality 0.250)  lr 0.01" in said
    assert "img/s" in said
    assert "0:01:00 left 0:02:20" in said  # 70 steps of 2 seconds
    assert "━" in said


def test_evaluation_has_a_bar_that_goes_away() -> None:
    terminal = console()
    display = Display(100, 0, enabled=True, console=terminal)
    advance = display.evaluating(4)
    advance(2)
    display.progress.refresh()
    assert "2/4" in shown(terminal)
    advance(2)
    assert len(display.progress.tasks) == 1
    display.close()


def test_other_processes_show_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display(2, 0, enabled=False)
    display.step(1, "loss 1")
    display.line("epoch 1/2")
    display.evaluating(3)(3)
    display.close()
    assert capsys.readouterr() == ("", "")


def test_square_brackets_are_text() -> None:
    terminal = console()
    display = Display(2, 0, enabled=True, console=terminal)
    display.line("class [red] 0.5")
    display.close()
    assert "class [red] 0.5" in shown(terminal)


@pytest.mark.parametrize(
    ("total_steps", "left"), [(1, "0:00:00"), (7, "0:01:01"), (361, "1:01:00"), (10_001, "1 day, 4:14:40")]
)
def test_time_left_is_in_hours_minutes_and_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], total_steps: int, left: str
) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    display = Display(total_steps, 0, enabled=True)
    now = 10.168  # seconds of the first step
    display.step(1, "loss 1")
    display.close()
    assert capsys.readouterr().err.splitlines() == [f"step 1/{total_steps}  loss 1  left {left}"]
