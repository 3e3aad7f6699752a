"""What a run keeps: `last.ckpt`, to go on exactly, and model files, to use."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError

from fcos.data.annotations import Annotations
from fcos.errors import TrainingError, WeightsError

# Settings that may differ when a run goes on: where it runs, what it writes, and where the data are (what
# they are is compared by `fingerprint`).
FREE_SETTINGS = frozenset(
    {
        *(
            "load",
            "save",
            "save_steps",
            "device",
            "num_processes",
            "num_workers",
            "micro_batch",
            "tensorboard",
            "activation_checkpointing",
        ),
        *("run_folder", "pretrain", "nbatch_eval", "eval_epochs"),
        *(
            "root_train",
            "list_train",
            "root_eval",
            "list_eval",
            "name_file",
            "data_format",
            "skip_invalid",
            "classes",
        ),
    }
)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what goes wrong when a file of the run is written into an error that says how to go on."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        raise TrainingError(
            f"could not write {path.name}: {error}",
            where=str(path),
            fix="make room on the disk, then go on with the same command and load=true; "
            "the last checkpoint that was written is whole",
        ) from error


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` when it is complete."""
    partial = path.with_name(f".{path.name}.partial")
    with writing(path):
        try:
            with partial.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def save_checkpoint(path: Path, payload: dict[str, Any]) -> None:
    """Write a checkpoint; the former one stays until the new one is whole (kill -9, full disk)."""
    with written_whole(path) as file:
        torch.save(payload, file)


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
    """A run goes on only with the settings that it began with; all differences are named."""
    changed = [key for key in new if key not in FREE_SETTINGS and key in old and old[key] != new[key]]
    if changed:
        raise WeightsError(
            "; ".join(
                f'the run was started with "{key}": {old[key]!r}, now it is {new[key]!r}' for key in changed
            ),
            where=str(path),
            fix=f"set {', '.join(changed)} back to go on exactly, or start a new run with load=false",
        )


def check_same_data(old: dict[str, str], new: dict[str, str], path: Path) -> None:
    """A run goes on only with the annotations that it began with, wherever they are now."""
    changed = [key for key in new if old[key] != new[key]]
    if changed:
        raise WeightsError(
            f"the {' and '.join(changed)} data are not those that the run was started with",
            where=str(path),
            fix="put the annotations back to go on exactly, or start a new run with load=false",
        )


def fingerprint(annotations: Annotations | None) -> str:
    """Changes when pictures, boxes or classes do; not when the files are moved."""
    if annotations is None:
        return "none"
    content = hashlib.sha256(repr((annotations.class_names, annotations.sizes_hw.tolist())).encode())
    for array in (annotations.first_box, annotations.labels, annotations.boxes_xyxy, annotations.is_crowd):
        content.update(array.tobytes())
    return content.hexdigest()
