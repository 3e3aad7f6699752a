from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from fcos.config import TrainConfig, load_config
from fcos.machine import num_cores
from fcos.train import devices
from fcos.train import throughput as waiting
from fcos.train.throughput import (
    EpochClock,
    EpochTimes,
    advice,
    describe,
    loader_advice,
    network_advice,
    too_many_workers,
)


class Time:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    clock = Time()
    monkeypatch.setattr(waiting, "time", clock)
    return clock


def config(**settings: Any) -> TrainConfig:
    return load_config({"list_train": "none", **settings})


def step(clock: EpochClock, time: Time, waits: float, computes: float) -> None:
    with clock.waiting():
        time.now += waits
    time.now += 0.5  # logging
    with clock.computing(4):
        time.now += computes


def test_waiting_and_computing_are_added_up_and_the_first_batch_is_the_start(time: Time) -> None:
    clock = EpochClock()
    for waits in (9.0, 1.0, 2.0):
        step(clock, time, waits, computes=3.0)

    times = clock.take()

    assert times == EpochTimes(num_images=12, elapsed_s=12.0, waited_s=3.0, start_s=9.0)
    assert times.waited_share == 0.25
    step(clock, time, 1.0, 1.0)
    assert clock.take() == EpochTimes(num_images=4, elapsed_s=2.0, waited_s=1.0, start_s=0.0)
    assert clock.take().waited_share == 0


def test_the_line_says_what_was_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "num_cores", lambda: 16)
    settings = config(num_workers=2, precision="bf16")
    waited = EpochTimes(num_images=380, elapsed_s=38.0, waited_s=4.56, start_s=1.0)
    monkeypatch.setattr(devices, "bf16_time", lambda: 0.7)
    little = replace(waited, waited_s=0.4)
    assert describe(waited, 3) == "epoch 3: 38 s, 10.0 img/s, 12% waiting for images"
    assert describe(little, 3) == "epoch 3: 38 s, 10.0 img/s, 1% waiting for images"
    assert advice(waited, settings, 1, "cuda") == "raise num_workers (now 2, 16 cores)"
    assert advice(little, settings, 1, "cpu") == (
        "the network is the bottleneck; faster with a smaller short_side and view_size, or a smaller model"
    )


@pytest.mark.parametrize(
    ("settings", "device", "bf16_time", "words"),
    [
        ({}, "cuda", 0.5, "precision=bf16"),
        ({}, "cuda", 2.0, "compile=true"),
        ({"precision": "bf16"}, "cuda", 2.0, "precision=fp16"),
        ({"precision": "bf16"}, "cuda", 0.5, "compile=true"),
        ({"precision": "bf16", "compile": True}, "cuda", 0.5, "smaller model"),
        ({}, "cpu", 1.0, "smaller short_side"),
        ({}, "cpu", 0.7, "precision=bf16"),
        ({"precision": "bf16"}, "cpu", 0.7, "smaller short_side"),
        ({"precision": "bf16"}, "cpu", 6.0, "precision=fp32"),
    ],
)
def test_what_makes_the_network_faster(
    settings: dict[str, Any], device: str, bf16_time: float, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "bf16_time", lambda: bf16_time)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16_time < 1)
    assert words in network_advice(config(**settings), device)


@pytest.mark.parametrize(
    ("settings", "num_processes", "device", "cores", "words"),
    [
        ({"num_workers": 0}, 1, "cpu", 8, "num_workers=1 loads them during steps (now 0, 8 cores)"),
        ({"num_workers": 4}, 1, "cpu", 6, "raise num_workers (now 4, 6 cores)"),
        ({"num_workers": 5}, 1, "cpu", 6, "all cores are in use (now 5, 6 cores)"),
        ({"num_workers": 5}, 1, "cuda", 6, "raise num_workers"),
        ({"num_workers": 3}, 2, "cuda", 6, "all cores are in use (now 3 for each of 2 devices, 6 cores)"),
        (
            {"num_workers": 8, "reduced_decode": False},
            1,
            "cuda",
            8,
            "reduced_decode=true, or use smaller files",
        ),
        ({"num_workers": 8, "augmentation": "strong"}, 1, "cuda", 8, "augmentation=standard"),
    ],
)
def test_what_brings_images_faster(
    settings: dict[str, Any], num_processes: int, device: str, cores: int, words: str
) -> None:
    assert words in loader_advice(config(**settings), num_processes, device, cores)


def test_more_loader_processes_than_cores_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "num_cores", lambda: 8)
    assert too_many_workers(config(num_workers=4), 2) is None
    said = too_many_workers(config(num_workers=5), 2)
    assert said is not None
    assert said.startswith("num_workers=5 starts 10 loader processes for 8 cores")
    assert said.endswith(", and fewer are just as fast")


def test_cores_are_counted_where_the_system_does_not_say_which_are_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr("os.sched_getaffinity", raising=False)  # as on macOS and Windows
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    assert num_cores() == 4
