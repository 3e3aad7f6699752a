"""Early stopping and the time limit: when they end a training, and that a resumed run decides the same."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest

from fcos.config import load_config
from fcos.data.loader import build_train_loader
from fcos.data.mixing import Mixing
from fcos.errors import ConfigError
from fcos.train.length import Decision, Length, steps_that_fit
from fcos.train.step import OptimizerStep

if TYPE_CHECKING:
    from ..rectangles import Tiny

NEVER_BETTER = {"lr_base": 1e-9, "epochs": 6, "patience": 2}  # AP stays 0: the first evaluation is the best
SECONDS_PER_STEP = 6.0
TIMED = {"epochs": 20, "eval_epochs": 20, "time_limit": 2, "lr_policy": "cosine", "lr_base": 0.01}


def length(**settings: Any) -> Length:
    """For 80 images in steps of 8, 24 images for evaluation: 10 steps an epoch, 100 in all."""
    config = load_config({"nbatch_train": 8, "epochs": 10, "save_steps": 7, **settings})
    return Length(config, full_steps=100, steps_per_epoch=10.0, num_eval_images=24)


def test_steps_that_fit_pay_for_their_evaluations() -> None:
    assert steps_that_fit(100.0, step_s=2.0, evaluation_s=0.0, steps_between=10.0) == 50
    # 10 s are for the last evaluation; in the other 90 a step costs 2 s and a twentieth of an evaluation
    assert steps_that_fit(100.0, step_s=2.0, evaluation_s=10.0, steps_between=20.0) == 36
    assert steps_that_fit(5.0, step_s=2.0, evaluation_s=10.0, steps_between=20.0) == 0


def test_the_time_per_step_leaves_out_the_first_one_and_evaluations() -> None:
    timed = length(time_limit=2)
    assert not timed.after_step(1, 30.0)  # the loader started
    assert timed.decide(1, 100, 30.0, 0) == Decision(100, "epochs")  # nothing is known yet
    assert timed.decide(1, 41, 30.0, 0) == Decision(41, "time_limit")  # as the session before decided
    assert [timed.after_step(step, 28.0 + 2 * step) for step in range(2, 8)] == [
        *(False, False, False),
        *(True, False, True),  # 5: the first measurement; 7: a checkpoint is due
    ]
    # 2 s a step, 78 left. An evaluation of 24 images is guessed at a third of 3 steps: 2 s.
    wanted = 7 + math.floor((120 - 42 - 2) / (2 + 2 / 10))
    line = "41 steps (4.1 epochs) fit into time_limit=2"
    assert timed.decide(7, 100, 42.0, 0) == Decision(wanted, "time_limit", line)
    timed.after_evaluation(8.0)
    wanted = 7 + math.floor((120 - 50 - 8) / (2 + 8 / 10))
    assert timed.decide(7, 41, 50.0, 0) == (
        wanted,
        "time_limit",
        line.replace("41", "29").replace("4.1", "2.9"),
    )
    assert timed.decide(7, 29, 50.0, 0).line == ""  # nothing new


def test_epochs_that_fit_are_not_exceeded() -> None:
    timed = length(time_limit=60)
    for step in range(1, 6):
        timed.after_step(step, 2.0 * step)
    assert timed.decide(5, 100, 10.0, 0) == Decision(100, "epochs")
    line = "100 steps (10.0 epochs) fit into time_limit=60"  # more than before
    assert timed.decide(5, 41, 10.0, 0) == Decision(100, "epochs", line)


def test_without_a_limit_no_step_is_a_moment_to_decide() -> None:
    assert not any(length().after_step(step, 1.0) for step in range(1, 30))


def test_patience_ends_the_training_without_a_new_best(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny.train("whole", **NEVER_BETTER).finished
    said = capsys.readouterr().err
    assert "no better AP in 2 evaluations (patience): training ends here" in said
    measured = "map_mean 0.0000  map_50 0.0000  map_75 0.0000"
    shown = [line for line in said.splitlines() if line.endswith(("  best", measured))]
    assert shown == [f"epoch   1/6  {measured}  best", *(f"epoch   {i}/6  {measured}" for i in (2, 3))]
    assert [line["epoch"] for line in tiny.lines("whole", "eval")] == [1, 2, 3]
    for step in (4, 8):  # within an epoch, and at the end of the last one, before its evaluation
        tiny.train_until(step, f"stopped_{step}", **NEVER_BETTER)
        tiny.train(f"stopped_{step}", **NEVER_BETTER, load=True)
        ours, theirs = tiny.checkpoint(f"stopped_{step}"), tiny.checkpoint("whole")
        for checkpoint in (ours, theirs):
            del checkpoint["config"], checkpoint["state"]["elapsed_s"]
        assert list(tiny.differences(ours, theirs)) == []

    capsys.readouterr()
    assert tiny.train("whole", **NEVER_BETTER, load=True).finished
    said = capsys.readouterr().err
    assert f"already finished: {tiny.runs}/whole was ended by patience" in said
    assert "load=true patience=4" in said
    assert tiny.train("whole", **NEVER_BETTER | {"epochs": 7}, load=True).finished
    assert [line["epoch"] for line in tiny.lines("whole", "eval")] == [1, 2, 3, 4, 5]  # counted anew


def test_every_process_ends_where_the_first_decides(tiny: Tiny) -> None:
    process = tiny.start("run", **NEVER_BETTER, time_limit=1000, num_processes=2)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert [line["epoch"] for line in tiny.lines("run", "eval")] == [1, 2, 3]


def test_patience_without_evaluation_is_refused(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match='"patience" has no effect without evaluation data'):
        tiny.train("run", patience=2, list_eval="", root_eval="")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of the training loop: a step takes SECONDS_PER_STEP, everything else none."""
    now, step = [100.0], OptimizerStep.__call__

    def take(self: OptimizerStep, *arguments: Any) -> Any:
        now[0] += SECONDS_PER_STEP
        return step(self, *arguments)

    monkeypatch.setattr("fcos.train.loop.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(OptimizerStep, "__call__", take)
    return now


@pytest.mark.usefixtures("clock")
def test_the_part_without_mixed_images_moves_with_the_end(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[int] = []
    mix = Mixing.__call__

    def note(self: Mixing, *arguments: Any) -> Any:
        ends.append(self.until)
        return mix(self, *arguments)

    monkeypatch.setattr(Mixing, "__call__", note)
    timed = TIMED | {"mosaic": 1.0, "mix_until": 0.5, "num_workers": 0}
    tiny.train("whole", **timed)
    # 50 steps of 8 images are planned; 19 fit, which is known after step 3 (see the next test)
    assert ends == [25 * 8] * 3 * 8 + [9 * 8] * 16 * 8

    tiny.train_until(7, "stopped", **timed)
    tiny.train("stopped", **timed, load=True)
    ours, theirs = tiny.checkpoint("stopped"), tiny.checkpoint("whole")
    del ours["config"], theirs["config"]
    assert list(tiny.differences(ours, theirs)) == []


@pytest.mark.usefixtures("clock")
def test_the_loader_does_not_start_again_where_no_image_is_mixed_any_more(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = mock.Mock(side_effect=build_train_loader)
    monkeypatch.setattr("fcos.train.loop.build_train_loader", starts)
    tiny.train("run", **TIMED | {"mosaic": 1.0, "mix_until": 0.01, "num_workers": 0})
    assert starts.call_count == 1


def test_schedule_is_laid_out_over_the_steps_that_fit(
    tiny: Tiny, clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny.train("whole", **TIMED).finished
    lines = tiny.lines("whole")
    # First decided at the end of the first epoch, after step 3. An evaluation of 7 images is guessed at a
    # third of 7/8 step, 1.75 s, once in 50 steps.
    steps = 3 + math.floor((120 - 3 * 6 - 1.75) / (6 + 1.75 / 50))
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    factors = [0.5 * (1 + math.cos(math.pi * step / (50 if step < 3 else steps))) for step in range(steps)]
    assert [line["lr"] for line in lines] == pytest.approx([0.01 * factor for factor in factors])
    assert "19 steps (7.6 epochs) fit into time_limit=2" in capsys.readouterr().err
    assert [(line["step"], line["epoch"]) for line in tiny.lines("whole", "eval")] == [(19, 7.6)]
    assert (tiny.runs / "whole" / "best.safetensors").is_file()

    clock[0] += 1e6  # the time between sessions does not count
    tiny.train_until(9, "stopped", **TIMED)
    clock[0] += 1e6
    tiny.train("stopped", **TIMED, load=True)
    ours, theirs = tiny.checkpoint("stopped"), tiny.checkpoint("whole")
    del ours["config"], theirs["config"]
    assert list(tiny.differences(ours, theirs)) == []

    capsys.readouterr()
    tiny.train("whole", **TIMED | {"epochs": 30}, load=True)
    assert "has reached its time_limit\ntrain longer with: " in capsys.readouterr().err
    tiny.train("whole", **TIMED | {"time_limit": 3}, load=True)
    assert tiny.lines("whole")[-1]["step"] == 29
