"""The setting `device`, checked on this machine; gathering results of several devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import torch

from fcos.errors import DeviceError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

T = TypeVar("T")


def available_devices() -> str:
    """A list of this machine's devices, for messages."""
    gpus = [f"GPU {i}: {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        gpus.append("mps")
    return ", ".join([*gpus, "cpu"])


def choose_device(device: list[int] | str) -> tuple[str, list[int] | int]:
    """Accelerator and device numbers of a `device` setting, checked on this machine."""
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
                fix=f'set "device" to available GPUs, "auto" or "cpu"; available: {available_devices()}',
            )
        return "cuda", device
    if (device == "cuda" and not num_gpus) or (device == "mps" and not torch.backends.mps.is_available()):
        raise DeviceError(
            f"there is no {device} device on this machine",
            where=f'"device": "{device}"',
            fix=f'set "device" to "auto" or "cpu"; available: {available_devices()}',
        )
    return device, 1


def torch_device(device: list[int] | str) -> torch.device:
    """One torch device for prediction."""
    accelerator, numbers = choose_device(device)
    if isinstance(numbers, list):
        return torch.device(accelerator, numbers[0])
    try:
        return torch.device(accelerator)
    except RuntimeError:
        raise DeviceError(
            f"{device!r} is not a device", fix=f"use auto or one of these: {available_devices()}"
        ) from None


def gather(found: list[T], fabric: Fabric | None) -> list[T]:
    """The lists of all devices concatenated, on the first one; empty on the others."""
    if fabric is None or fabric.world_size == 1:
        return found
    everyone: list[Any] | None = [None] * fabric.world_size if fabric.is_global_zero else None
    torch.distributed.gather_object(found, everyone)
    return [entry for rank in everyone or () for entry in rank]
