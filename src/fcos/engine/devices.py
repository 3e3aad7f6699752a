"""Where a training runs: the setting `device` to a Lightning Fabric."""

from __future__ import annotations

import logging
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning_fabric import Fabric

from fcos.config import TrainConfig
from fcos.errors import DeviceError

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
SECONDS_FOR_FIRST_TO_SPEAK = 3.0


def available_devices() -> str:
    """What is there, in words."""
    gpus = [f"GPU {i}: {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        gpus.append("mps")
    return ", ".join([*gpus, "cpu"])


def choose_device(device: list[int] | str) -> tuple[str, list[int] | int]:
    """Accelerator and device numbers of a `device` setting, checked against what is there."""
    num_gpus = torch.cuda.device_count()
    if device == "auto":
        if num_gpus:
            return "cuda", num_gpus
        return ("mps", 1) if torch.backends.mps.is_available() else ("cpu", 1)
    if isinstance(device, list):
        if missing := [number for number in device if not 0 <= number < num_gpus]:
            raise DeviceError(
                f"there is no GPU {', '.join(map(str, missing))} on this machine",
                where=f'"device": {device}',
                fix=f'there is: {available_devices()}. Set "device" to numbers from it, "auto", or "cpu"',
            )
        return "cuda", device
    if (device == "cuda" and not num_gpus) or (device == "mps" and not torch.backends.mps.is_available()):
        raise DeviceError(
            f"there is no {device} device on this machine",
            where=f'"device": "{device}"',
            fix=f'there is: {available_devices()}. Set "device" to "auto" or "cpu"',
        )
    return device, 1


def torch_device(device: list[int] | str) -> torch.device:
    """One torch device for prediction."""
    accelerator, numbers = choose_device(device)
    if isinstance(numbers, list):
        return torch.device(accelerator, numbers[0])
    return torch.device(accelerator)


def build_fabric(config: TrainConfig) -> Fabric:
    """A Fabric, not yet launched."""
    accelerator, devices = choose_device(config.device)
    if accelerator == "cpu":
        devices = config.num_processes
    if config.precision == "fp16" and accelerator == "cpu":  # Fabric would take bf16 instead
        raise DeviceError(
            "fp16 is for GPUs",
            where='"precision": "fp16" with device cpu',
            fix='set "precision" to "bf16" or "fp32"',
        )
    count = len(devices) if isinstance(devices, list) else devices
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # our lines say what it would
    return Fabric(
        accelerator=accelerator,
        devices=devices,
        strategy="ddp" if count > 1 else "auto",
        precision=PRECISIONS[config.precision],  # type: ignore[arg-type]
    )


@contextmanager
def launched(fabric: Fabric) -> Iterator[None]:
    """Start the processes of a training, and end them together.

    A process that fails leaves the others waiting for it. So the first one ends those that it started; and
    since most errors come in all processes alike, the others leave it the time to say so first.
    """
    fabric.launch()
    started: list[subprocess.Popen[bytes]] = getattr(fabric.strategy.launcher, "procs", [])
    try:
        yield
    except BaseException:
        for process in started:
            process.kill()
        if not fabric.is_global_zero:
            time.sleep(SECONDS_FOR_FIRST_TO_SPEAK)
        raise
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
