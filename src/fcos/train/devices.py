"""Build a Lightning Fabric from the setting `device`."""

from __future__ import annotations

import logging
import time
from functools import cache

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment

from fcos.errors import DeviceError
from fcos.predict.device import choose_device
from fcos.terminal import counted
from fcos.train.launch import find_launch

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


@cache
def bf16_time() -> float:
    """Time of a convolution's training step on the CPU in bfloat16, relative to float32.

    Measured, in a tenth of a second or, if bfloat16 is slow, in one second. On three processors it was 0.7, 2
    (both with bfloat16 instructions) and 6 (without).
    """

    def seconds(number_format: torch.dtype) -> float:
        weight = torch.zeros(96, 96, 3, 3, dtype=number_format, requires_grad=True)  # uses no random numbers
        image = torch.zeros(4, 96, 40, 56, dtype=number_format, requires_grad=True)
        times: list[float] = []
        while len(times) < 5 and sum(times) < 0.2:
            started_at = time.perf_counter()
            result = torch.nn.functional.conv2d(image, weight, padding=1)
            torch.autograd.grad(result.sum(), (image, weight))
            times.append(time.perf_counter() - started_at)
        return min(times)

    return seconds(torch.bfloat16) / seconds(torch.float32)


def prefers_bf16(device: str) -> bool:
    """Whether "cuda", "cpu" or "mps" trains faster in bfloat16 than in float32."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device == "cpu" and bf16_time() < 0.8


def slow_precision(precision: str, device: str) -> str | None:
    """A warning for a precision that is slow on the device; None otherwise."""
    if precision != "bf16":
        return None
    if device == "cpu" and bf16_time() > 1.2:
        return (
            f"precision=bf16 is slow on this processor: a convolution takes {bf16_time():.1f} times as long "
            "as with precision=fp32, a training step up to 30 times"
        )
    if device == "cuda" and not prefers_bf16(device):
        return "precision=bf16 is slow on this GPU, which only emulates it; precision=fp16 is fast"
    return None


def build_fabric(
    device: list[int] | str, num_processes: int = 1, precision: str = "fp32", *, one_by_default: bool = False
) -> Fabric:
    """A Fabric, not yet launched; under torchrun or srun, with the processes that they have started.

    Arguments are the settings; with `one_by_default`, "auto" and "cuda" mean one GPU, not all.
    """
    launch = find_launch()
    accelerator, devices = choose_device(device)
    if accelerator == "cpu":
        devices = num_processes
    elif one_by_default and isinstance(devices, int):
        devices = 1
    if precision == "fp16" and accelerator == "cpu":  # Fabric would use bf16 instead
        raise DeviceError(
            "fp16 needs a GPU",
            where='"precision": "fp16" with device cpu',
            fix='set "precision" to "bf16" or "fp32"',
        )
    if launch.num_local is not None:
        devices = _devices_of_launch(launch.num_local, accelerator, devices, num_processes)
    count = (len(devices) if isinstance(devices, list) else devices) * launch.num_machines
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # our own output covers its messages
    return Fabric(
        accelerator=accelerator,
        devices=devices,
        num_nodes=launch.num_machines,
        plugins=[launch.environment],  # also for one process: Fabric would detect SLURM by itself, and warn
        strategy="ddp" if count > 1 else "auto",
        precision=PRECISIONS[precision],  # type: ignore[arg-type]
    )


def fabric_of_one(device: torch.device, precision: str) -> Fabric:
    """A Fabric for only this device, even in one process of several; needs no launch."""
    return Fabric(
        accelerator=device.type,
        devices=1 if device.index is None else [device.index],
        plugins=[LightningEnvironment()],
        precision=PRECISIONS[precision],  # type: ignore[arg-type]
    )


def local_world_size(fabric: Fabric) -> int:
    """Processes on this machine, one per device."""
    return fabric.world_size // int(getattr(fabric.strategy, "num_nodes", 1))


def _devices_of_launch(
    num_local: int, accelerator: str, devices: list[int] | int, num_processes: int
) -> list[int] | int:
    """The devices of the processes that torchrun or srun started on this machine."""
    if accelerator == "cpu" and num_processes not in (1, num_local):
        wrong = f'"num_processes" is {num_processes}'
    elif isinstance(devices, list) and len(devices) != num_local:
        wrong = f'"device" names {counted(len(devices), "GPU")}'
    elif accelerator == "cuda" and torch.cuda.device_count() < num_local:
        wrong = f"each process sees {counted(torch.cuda.device_count(), 'GPU')}"
    else:
        return devices if isinstance(devices, list) else num_local
    raise DeviceError(
        f"{counted(num_local, 'process was', 'processes were')} started on this machine, but {wrong}",
        where="torchrun --nproc-per-node, srun --ntasks-per-node",
        fix="start one process per GPU, with all GPUs visible to every process (srun --gpu-bind=none), "
        "or omit the setting",
    )
