"""Whether images or the network are the bottleneck of training, and how to make it faster.

Only time in which the training loop has no batch and nothing to do counts as waiting. On a GPU the loop waits
for the device once per step, before the optimizer's kernels are launched: those may still run while the next
batch is fetched, so waiting can be overstated by their few milliseconds per step.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fcos.config import TrainConfig
from fcos.machine import num_cores
from fcos.terminal import counted

WORTH_A_CHANGE = 0.05  # fraction of the time; below it, faster loading would make no visible difference


@dataclass
class EpochTimes:
    """How the time of an epoch's steps was spent.

    Attributes:
        num_images: images trained on, over all devices.
        elapsed_s: of the steps, without the start of the loader, evaluation and writing files.
        waited_s: part of `elapsed_s` spent waiting for images.
        start_s: until the loader had its first batch; 0 if it was already running.
    """

    num_images: int = 0
    elapsed_s: float = 0.0
    waited_s: float = 0.0
    start_s: float = 0.0

    @property
    def waited_share(self) -> float:
        """`waited_s` as a fraction of `elapsed_s`."""
        return self.waited_s / max(self.elapsed_s, 1e-9)


class EpochClock:
    """Adds up the times of an epoch. The first batch of a session counts as starting the loader."""

    def __init__(self) -> None:
        self.times, self.loader_runs = EpochTimes(), False

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time fetching a batch."""
        started_at = time.monotonic()
        yield
        elapsed_s = time.monotonic() - started_at
        if not self.loader_runs:
            self.times.start_s, self.loader_runs = elapsed_s, True
            return
        self.times.waited_s += elapsed_s
        self.times.elapsed_s += elapsed_s

    @contextmanager
    def computing(self, num_images: int) -> Iterator[None]:
        """Time a training step."""
        started_at = time.monotonic()
        yield
        self.times.elapsed_s += time.monotonic() - started_at
        self.times.num_images += num_images

    def take(self) -> EpochTimes:
        """Return the times since the last call, and reset."""
        times, self.times = self.times, EpochTimes()
        return times


def describe(times: EpochTimes, epoch: int | float) -> str:
    """How long an epoch took, and the fraction spent waiting; `times` of the device that waited longest."""
    rate = times.num_images / max(times.elapsed_s, 1e-9)
    took = f"epoch {epoch:g}: {times.elapsed_s:.0f} s, {rate:.1f} img/s"
    return f"{took}, {times.waited_share:.0%} waiting for images"


def advice(times: EpochTimes, config: TrainConfig, num_processes: int, device: str) -> str:
    """How to train faster; `times` of the device that waited longest."""
    if times.waited_share < WORTH_A_CHANGE:
        return f"the network is the bottleneck; faster with {network_advice(config, device)}"
    return loader_advice(config, num_processes, device, num_cores())


def too_many_workers(config: TrainConfig, num_processes: int) -> str | None:
    """A warning if training starts more loader processes than this machine has cores."""
    workers, cores = config.num_workers * num_processes, num_cores()
    if workers <= cores:
        return None
    return (
        f"num_workers={config.num_workers} starts {counted(workers, 'loader process', 'loader processes')} "
        f"for {counted(cores, 'core')}: "
        "each needs memory, and fewer are just as fast"
    )


def network_advice(config: TrainConfig, device: str) -> str:
    """A setting that makes a step faster."""
    from fcos.train.devices import prefers_bf16, slow_precision  # import torch

    if config.precision == "fp32" and prefers_bf16(device):
        return "precision=bf16"
    if slow_precision(config.precision, device):
        return "precision=fp32" if device == "cpu" else "precision=fp16"
    if device == "cuda" and not config.compile:
        return "compile=true, if images have only a few different sizes"
    return "a smaller short_side and view_size, or a smaller model"


def loader_advice(config: TrainConfig, num_processes: int, device: str, cores: int) -> str:
    """A change that loads images faster."""
    workers = config.num_workers * num_processes
    each = f" for each of {num_processes} devices" if num_processes > 1 else ""
    now = f"now {config.num_workers}{each}, {counted(cores, 'core')}"
    if config.num_workers == 0:
        return f"images are loaded between steps; num_workers=1 loads them during steps ({now})"
    # A process that computes on the CPU needs its own core; one that feeds a GPU needs hardly any.
    free = cores - (0 if device == "cuda" else num_processes) - workers
    if free > 0:
        return f"raise num_workers ({now})"
    ways = [] if config.reduced_decode else ["reduced_decode=true"]
    ways.append(f"use smaller files (a JPEG with a longest side of {2 * config.view_size} pixels is enough)")
    if config.augmentation == "strong":
        ways.append("augmentation=standard")
    return f"all cores are in use ({now}); {', or '.join(ways)}"
