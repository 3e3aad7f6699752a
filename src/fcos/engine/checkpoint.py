"""What a run keeps: `last.ckpt`, to go on exactly, and model files, to use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from fcos.errors import TrainingError, WeightsError

# Settings that may differ when a run goes on: where it runs and what it writes, not what it computes.
FREE_SETTINGS = frozenset(
    {
        *("load", "save", "save_steps", "device", "num_processes", "num_workers", "micro_batch", "tensorboard"),
        *("run_folder", "pretrain", "nbatch_eval", "eval_epoches"),
    }
)


def save_checkpoint(path: Path, payload: dict[str, Any]) -> None:
    """Write a checkpoint; the former one stays until the new one is whole (kill -9, full disk)."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            torch.save(payload, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        raise TrainingError(
            f"could not write the checkpoint: {error}",
            where=str(path),
            fix="make room on the disk, then go on with the same command and load=true; "
            "the checkpoint before this one is whole",
        ) from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint; only tensors and plain values are loaded, never code."""
    if not path.is_file():
        raise WeightsError(
            f"there is nothing to go on from: no {path.name} in {path.parent}",
            where="setting 'load'",
            fix='set "load": false to start afresh, or run_folder to the folder of the run',
        )
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise WeightsError(
            f"{path.name} cannot be read: {(str(error).splitlines() or [''])[0]}",
            where=str(path),
            fix="start afresh with load=false; best.safetensors of the run is still usable",
        ) from error
    return content


def check_same_settings(old: dict[str, Any], new: dict[str, Any], path: Path) -> None:
    """A run goes on only with the settings that it began with; the first difference is named."""
    for key, value in new.items():
        if key not in FREE_SETTINGS and key in old and old[key] != value:
            raise WeightsError(
                f'the run was started with "{key}": {old[key]!r}, now it is {value!r}',
                where=str(path),
                fix=f"set {key} back to go on exactly, or start a new run with load=false",
            )
