"""A tiny data set of colored rectangles, and the cheapest real network to train on it."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from PIL import Image, ImageDraw

from fcos.config import TrainConfig, load_config
from fcos.train.log import Meter, StepReport
from fcos.train.run import Run, train

from .processes import Process

COLORS = {"red": (220, 40, 40), "blue": (40, 60, 220)}
NOT_NUMBERS = {"kind", "elapsed_s", "network_s", "images_per_s"}  # or such as differ from run to run

# A training of ten steps takes about a second.
SETTINGS = {
    "backbone": "test_efficientnet",
    "pretrain": False,
    "freeze_stages": 0,
    "fpn_channels": 16,
    "head_channels": 16,
    "head_convs": 1,
    "strides": [8, 16, 32],
    "regress_ranges": [16, 32],
    "view_size": 64,
    "short_side": None,
    "device": "cpu",
    "num_workers": 0,
    "nbatch_train": 8,
    "nbatch_eval": 4,
    "epochs": 2,
    "warmup_iter": 0,
    "tensorboard": False,
}


def draw_rectangles(folder: Path, num_images: int, seed: int) -> list[str]:
    """Images of 0 to 3 rectangles that do not touch; returns the lines of a list in the seed's format."""
    random = torch.Generator().manual_seed(seed)

    def draw_number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=random))

    folder.mkdir(parents=True)
    lines = []
    for number in range(num_images):
        image = Image.new("RGB", (64, draw_number(48, 65)), (90, 110, 90))
        canvas, words = ImageDraw.Draw(image), [f"{number:03d}.png"]
        num_boxes = 0 if number % 6 == 5 else draw_number(1, 4)
        for column in range(num_boxes):  # one rectangle in each third of the image
            class_id = draw_number(0, 2)
            left, top = column * 21 + draw_number(0, 6), draw_number(0, 20)
            right, bottom = left + draw_number(10, 16), top + draw_number(10, 28)
            canvas.rectangle((left, top, right - 1, bottom - 1), fill=list(COLORS.values())[class_id])
            words += map(str, (top, left, bottom, right, class_id + 1))
        image.save(folder / words[0])
        lines.append(" ".join(words))
    return lines


class Tiny:
    """Trainings of a tiny network on rectangles, each in a folder of its own name.

    Attributes:
        data: folder with train.json and the data that it names.
        runs: folder of the runs.
    """

    def __init__(self, data: Path, runs: Path) -> None:
        self.data, self.runs = data, runs
        self.started: list[Process] = []

    def arguments(self, name: str, **settings: Any) -> list[str]:
        """What a user types behind `fcos train`."""
        settings = {"run_folder": str(self.runs / name), **settings}
        words = (value if isinstance(value, str) else json.dumps(value) for value in settings.values())
        return [f"{key}={word}" for key, word in zip(settings, words, strict=True)]

    def config(self, name: str, **settings: Any) -> TrainConfig:
        return load_config(self.data / "train.json", self.arguments(name, **settings))

    def train(self, name: str, **settings: Any) -> Run:
        """Train in this process."""
        return train(self.config(name, **settings))

    def train_until(self, step: int, name: str, **settings: Any) -> Run:
        """Train, with a SIGTERM during the step before this one: the step that is under way is the last."""
        add, done = Meter.add, count(2)

        def add_and_signal(meter: Meter, report: StepReport) -> None:
            add(meter, report)
            if next(done) == step:
                os.kill(os.getpid(), signal.SIGTERM)

        with mock.patch.object(Meter, "add", add_and_signal):
            run = self.train(name, **settings)
        assert not run.finished
        return run

    def start(self, name: str, **settings: Any) -> Process:
        """`fcos train` in a process, and a process group, of its own."""
        words = ["-m", "fcos", "train", self.data / "train.json", *self.arguments(name, **settings)]
        return self.start_python(*words)

    def start_python(self, *words: str | Path, env: Mapping[str, str] | None = None) -> Process:
        """What is left of it when the test is over is killed."""
        self.started.append(Process(*words, env=env))
        return self.started[-1]

    def end_processes(self) -> None:
        """What a test that failed left running."""
        for process in self.started:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.close()

    def checkpoint(self, name: str) -> dict[str, Any]:
        content: dict[str, Any] = torch.load(self.runs / name / "last.ckpt", weights_only=True)
        return content

    def lines(self, name: str, kind: str = "train") -> list[dict[str, Any]]:
        """Lines of metrics.jsonl without what a clock says."""
        file = self.runs / name / "metrics.jsonl"
        entries = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        chosen = [entry for entry in entries if entry["kind"] == kind]
        return [{key: entry[key] for key in entry if key not in NOT_NUMBERS} for entry in chosen]

    def wait_for_step(self, name: str, step: int, process: Process) -> None:
        """Until a running training has done this step."""
        end = time.monotonic() + 120
        while not any(line["step"] >= step for line in self.lines(name)):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < end, "the training does not begin"
            time.sleep(0.02)

    @staticmethod
    def differences(left: Any, right: Any, where: str = "") -> Iterator[str]:
        """Where two nests of dicts, lists, tensors and numbers differ, to the last bit."""
        if isinstance(left, dict) and isinstance(right, dict) and left.keys() == right.keys():
            for key in left:
                yield from Tiny.differences(left[key], right[key], f"{where}/{key}")
        elif isinstance(left, list | tuple) and len(left) == len(right):
            for i, (a, b) in enumerate(zip(left, right, strict=True)):
                yield from Tiny.differences(a, b, f"{where}/{i}")
        elif isinstance(left, torch.Tensor):
            if not torch.equal(left, right):
                yield where
        elif left != right:
            yield f"{where}: {left} and {right}"


@pytest.fixture(scope="session")
def rectangles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 20 training and 7 evaluation images, their lists and a train.json."""
    folder = tmp_path_factory.mktemp("rectangles")
    for name, num_images, seed in (("train", 20, 0), ("eval", 7, 1)):
        lines = draw_rectangles(folder / name, num_images, seed)
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    (folder / "names.txt").write_text("\n".join(["background", *COLORS]) + "\n")
    data = {
        "root_train": "train",
        "list_train": "train.txt",
        "root_eval": "eval",
        "list_eval": "eval.txt",
        "name_file": "names.txt",
    }
    (folder / "train.json").write_text(json.dumps(data | SETTINGS, indent=1))
    return folder


@pytest.fixture
def tiny(rectangles: Path, tmp_path: Path) -> Iterator[Tiny]:
    """Trainings in a folder of this test."""
    trainings = Tiny(rectangles, tmp_path)
    yield trainings
    trainings.end_processes()


@pytest.fixture(scope="module")
def tiny_of_module(rectangles: Path, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Trainings that several tests of a file look at."""
    return Tiny(rectangles, tmp_path_factory.mktemp("runs"))
