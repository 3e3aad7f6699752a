"""The processes and the device that a command predicts with."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from lightning_fabric import Fabric

MANY_IMAGES = 100  # for fewer, starting processes takes more time than it saves
MOST_PROCESSES = 8  # by default: each needs memory


@contextmanager
def connected(device: str | list[int], num_processes: int) -> Iterator[tuple[torch.device, Fabric | None]]:
    """The device of this process, and the Fabric that connects the processes, if there are several."""
    from fcos.predict.device import torch_device

    many_devices = isinstance(device, list) and len(device) > 1
    if not (many_devices or num_processes > 1 or was_started_with_others()):
        yield torch_device(device), None
        return
    from fcos.train.devices import build_fabric  # one process does without Fabric
    from fcos.train.launch import launched

    fabric = build_fabric(device, num_processes, one_by_default=True)
    with launched(fabric):
        yield fabric.device, fabric


def is_first_process() -> bool:
    """Whether this is the first of all processes, before they are connected."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


def was_started_with_others() -> bool:
    """Whether torchrun or srun started several processes of this command."""
    return any(os.environ.get(name, "1") != "1" for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"))


def can_fork(model: Path, device: str | list[int]) -> bool:
    """Whether the images can be split between forks of this process.

    Forks start at once and share the model's memory. But forks must not compute on macOS, do not exist on
    Windows, and lose the threads of an exported file's runtime.
    """
    from fcos.predict.device import choose_device
    from fcos.weights.load import format_of

    on_cpu = choose_device(device)[0] == "cpu"
    return sys.platform == "linux" and on_cpu and not format_of(model) and not was_started_with_others()


def usual_processes(num_images: int) -> int:
    """The default number of processes."""
    import torch

    return min(torch.get_num_threads(), MOST_PROCESSES) if num_images >= MANY_IMAGES else 1
