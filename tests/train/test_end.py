"""Whatever goes wrong in a training or an evaluation, its processes end within ten seconds, and say why."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ..rectangles import Tiny

MOST_SECONDS = 10.0

# `fcos` with one fault; each says FAULT at the moment from which the time counts.
FAULTY = """
import multiprocessing, os, signal, sys, time
import torch
import fcos.train.evaluation
import fcos.train.loop as engine
from fcos.data.batch import EvalDataset, TrainDataset
from fcos.train.log import Meter

fault, rank = os.environ["FAULT"], os.environ.get("LOCAL_RANK", "0")
faulty_rank = os.environ.get("FAULTY_RANK", "0")


def say():
    print("FAULT", file=sys.stderr, flush=True)


def after(count, function, happen):
    calls = [0]

    def called(*arguments, **named):
        calls[0] += 1
        if calls[0] == count and rank == faulty_rank:
            happen()
        return function(*arguments, **named)

    return called


def disk_is_full():
    say()
    raise OSError(28, "No space left on device")


def bug():
    say()
    raise ZeroDivisionError("a bug")


def kill_worker():
    say()
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    time.sleep(60)  # the error comes in the midst of anything


def interrupt_twice():
    say()
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)


def stuck(self, place, getitem=TrainDataset.__getitem__):
    if place[1] > 20:
        time.sleep(60)
    return getitem(self, place)


def image_is_gone(self, place, getitem=TrainDataset.__getitem__):
    if place[1] == 20:
        say()
        os.unlink(self.annotations[place[0]].path)
    return getitem(self, place)


def kills_itself(self, place):
    say()
    os.kill(os.getpid(), signal.SIGKILL)


if fault == "full disk":
    torch.save = after(2, torch.save, disk_is_full)
elif fault == "bug":
    engine.OptimizerStep.__call__ = after(2, engine.OptimizerStep.__call__, bug)
elif fault == "bug, worker stuck":
    engine.OptimizerStep.__call__ = after(2, engine.OptimizerStep.__call__, bug)
    TrainDataset.__getitem__ = stuck
elif fault == "bug in evaluation":
    backend = fcos.train.evaluation.TorchBackend
    backend.detect = after(1, backend.detect, bug)
elif fault == "worker killed":
    Meter.add = after(2, Meter.add, kill_worker)
elif fault == "Ctrl-C twice":
    Meter.add = after(2, Meter.add, interrupt_twice)
elif fault == "image gone":
    TrainDataset.__getitem__ = image_is_gone
elif fault == "evaluation worker killed":
    EvalDataset.__getitem__ = kills_itself

from fcos.cli import main

main(prog_name="fcos")
"""


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    file = tmp_path / "faulty.py"
    file.write_text(FAULTY)
    return file


def seconds_to_end(tiny: Tiny, words: list[str], **environment: str) -> tuple[float, str, int]:
    """From the fault to the end of all processes; what was said, and the exit code."""
    process = tiny.start_python(*words, env=os.environ | environment)
    said = []
    for line in process.stderr:
        said.append(line)
        if "FAULT" in line:
            break
    else:
        pytest.fail("no fault: " + "".join(said))
    began_at = time.monotonic()
    _, rest = process.communicate(timeout=3 * MOST_SECONDS)  # until nobody holds its stderr
    return time.monotonic() - began_at, rest, process.returncode


@pytest.mark.parametrize(
    ("fault", "settings", "message", "code"),
    [
        ("full disk", {}, "OutputError: cannot be written: No space left on device", 2),
        ("bug", {}, "ZeroDivisionError: a bug", 1),
        ("bug, worker stuck", {}, "ZeroDivisionError: a bug", 1),
        ("bug in evaluation", {}, "ZeroDivisionError: a bug", 1),
        ("worker killed", {}, "TrainingError: a data loader process was killed", 2),
        ("evaluation worker killed", {}, "TrainingError: a data loader process was killed", 2),
        ("Ctrl-C twice", {}, "stopped by Ctrl-C", 130),
        ("image gone", {}, "DatasetError: ", 2),
        ("full disk", {"num_processes": 2}, "OutputError: cannot be written: No space left on device", 2),
        ("worker killed", {"num_processes": 2}, "TrainingError: a data loader process was killed", 2),
    ],
    ids=lambda value: "".join(value) if isinstance(value, str) else str(value),
)
def test_training_ends_soon_after_an_error(
    tiny: Tiny, faulty: Path, fault: str, settings: dict[str, Any], message: str, code: int
) -> None:
    arguments = tiny.arguments("run", epochs=40, num_workers=2, save_steps=1, **settings)
    data = tiny.runs / "data"  # a copy: one fault removes an image
    shutil.copytree(tiny.data, data)
    elapsed_s, said, ended = seconds_to_end(
        tiny, [str(faulty), "train", str(data / "train.json"), *arguments], FAULT=fault
    )
    assert elapsed_s < MOST_SECONDS, said
    assert message in said
    assert ended == code
    assert ("Traceback" in said) == (code == 1)


def test_error_on_the_second_device_ends_the_first(tiny: Tiny, faulty: Path) -> None:
    arguments = tiny.arguments("run", epochs=40, num_workers=1, num_processes=2)
    elapsed_s, said, ended = seconds_to_end(
        tiny,
        [str(faulty), "train", str(tiny.data / "train.json"), *arguments],
        **{"FAULT": "bug", "FAULTY_RANK": "1"},
    )
    assert elapsed_s < MOST_SECONDS, said
    assert ended != 0


def test_evaluation_ends_soon_after_a_worker_was_killed(tiny: Tiny, faulty: Path) -> None:
    run = tiny.train("run", epochs=1, num_workers=0)
    settings = run.folder / "config.json"
    settings.write_text(settings.read_text().replace('"num_workers": 0', '"num_workers": 1'))
    elapsed_s, said, ended = seconds_to_end(
        tiny, [str(faulty), "eval", str(run.folder)], FAULT="evaluation worker killed"
    )
    assert elapsed_s < MOST_SECONDS, said
    assert "TrainingError: a data loader process was killed" in said
    assert ended == 2
    assert "Traceback" not in said
