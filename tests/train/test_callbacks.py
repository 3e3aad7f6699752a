from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from fcos import Callback, Detector, TrainEvent
from fcos.train.run import train

if TYPE_CHECKING:
    from ..rectangles import Tiny


class Notes(Callback):
    """Keeps what it is told; stops after a step or an epoch."""

    def __init__(self, *, stop_at_step: int = 0, stop_at_epoch: float = 0) -> None:
        self.steps: list[TrainEvent] = []
        self.epochs: list[TrainEvent] = []
        self.ends: list[TrainEvent] = []
        self.stop_at_step, self.stop_at_epoch = stop_at_step, stop_at_epoch

    def on_step(self, event: TrainEvent) -> None:
        self.steps.append(event)
        if event.step == self.stop_at_step:
            event.stop()

    def on_epoch(self, event: TrainEvent) -> None:
        self.epochs.append(event)
        if self.stop_at_epoch and event.epoch >= self.stop_at_epoch:
            event.stop()

    def on_end(self, event: TrainEvent) -> None:
        self.ends.append(event)


def test_callbacks_are_told_what_the_metrics_say(tiny: Tiny) -> None:
    notes = Notes()
    config = tiny.config("run", epochs=4, eval_epochs=2)
    detector = Detector.train(config, callbacks=[Callback(), notes])
    assert detector.class_names == ("red", "blue")
    lines = tiny.lines("run")  # one a step
    assert [(event.step, event.epoch) for event in notes.steps] == [
        (line["step"], line["epoch"]) for line in lines
    ]
    for event, line in zip(notes.steps, lines, strict=True):
        assert {"step": event.step, "epoch": event.epoch, **event.metrics} == pytest.approx(line)
    first, second = tiny.lines("run", "eval")
    names = ("map_mean", "map_50", "map_75")
    assert [event.step for event in notes.epochs] == [3, 5, 8, 10]
    assert [event.metrics for event in notes.epochs] == [
        *({}, {name: first[name] for name in names}),
        *({}, {name: second[name] for name in names}),
    ]
    [end] = notes.ends
    assert (end.step, end.epoch, end.metrics) == (10, 4.0, notes.epochs[-1].metrics)
    assert end.run == tiny.runs / "run"
    with pytest.raises(dataclasses.FrozenInstanceError):
        end.step = 3  # type: ignore[misc]


def test_callback_ends_the_training_within_an_epoch(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    notes = Notes(stop_at_step=4)
    run = train(tiny.config("run", epochs=4), [notes])
    assert (run.finished, run.exit_code) == (True, 0)
    assert "a callback ended training" in capsys.readouterr().err
    assert [(line["step"], line["epoch"]) for line in tiny.lines("run", "eval")] == [(3, 1), (4, 1.6)]
    assert tiny.lines("run")[-1]["step"] == 4
    assert notes.ends[0].metrics["map_mean"] == tiny.lines("run", "eval")[-1]["map_mean"]
    assert (tiny.runs / "run" / "best.safetensors").is_file()

    tiny.train("run", epochs=4, load=True)
    said = capsys.readouterr().err
    assert f"already finished: {tiny.runs}/run was ended by a callback" in said
    assert tiny.train("run", epochs=5, load=True).finished
    assert tiny.lines("run")[-1]["step"] == 13


def test_callback_ends_the_training_after_an_epoch_without_evaluation(tiny: Tiny) -> None:
    train(tiny.config("run", epochs=4, eval_epochs=4), [Notes(stop_at_epoch=2)])
    assert [(line["step"], line["epoch"]) for line in tiny.lines("run", "eval")] == [(5, 2)]


def test_the_end_is_told_after_an_error_too(tiny: Tiny) -> None:
    class Fails(Notes):
        def on_step(self, event: TrainEvent) -> None:
            raise ZeroDivisionError

    notes = Fails()
    with pytest.raises(ZeroDivisionError):
        train(tiny.config("run"), [notes])
    assert [event.step for event in notes.ends] == [1]
