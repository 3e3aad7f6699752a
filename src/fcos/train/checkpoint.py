"""`last.ckpt`, from which a run resumes exactly; writing the files of a run."""

from __future__ import annotations

import hashlib
import math
import shlex
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fcos.config import ALIASES, TrainConfig
from fcos.data.annotations import Annotations
from fcos.data.in_memory import content_name
from fcos.errors import CheckpointError
from fcos.files import explained, first_line_of, written
from fcos.weights.archive import read_archive

# Settings that may differ when a run resumes: devices, output, and the location of the data (whose content is
# compared by `fingerprint`).
FREE_SETTINGS = frozenset(
    "load save save_steps device num_processes num_workers micro_batch tensorboard activation_checkpointing "
    "run_folder pretrain nbatch_eval eval_epochs patience time_limit loggers "
    "root_train list_train root_eval list_eval name_file data_format skip_invalid classes".split()
)


@dataclass
class RunState:
    """The state of a run besides weights and optimizer; part of its checkpoint.

    Attributes:
        step: optimizer steps done.
        epoch_evaluated: last epoch that was completed: evaluated if due, model files written.
        best_map: best map_mean so far.
        elapsed_s: seconds of training and evaluation, over all sessions of the run.
        step_measured: step of the last evaluation, or of the last model file if there is no evaluation.
        since_best: evaluations since that of `best_map`.
        total_steps: of the whole training, as decided so far (`train/length.py`); 0: not yet.
        decided_by: what decided it, as in `Decision`.
        finished: the last step has been evaluated.
    """

    step: int = 0
    epoch_evaluated: int = 0
    best_map: float = -math.inf
    elapsed_s: float = 0.0
    step_measured: int = 0
    since_best: int = 0
    total_steps: int = 0
    decided_by: str = "epochs"
    finished: bool = False


def writing(path: Path) -> AbstractContextManager[None]:
    """Wraps writing to a file of the run: an error message explains how to resume."""
    return explained(path, fix=_how_to_resume(path.parent))


def written_in_run(path: Path) -> AbstractContextManager[Path]:
    """A temporary path for a file of the run; it replaces `path` once it is complete."""
    return written(path, fix=_how_to_resume(path.parent))


def save_checkpoint(path: Path, payload: dict[str, Any]) -> None:
    """Write a checkpoint; the previous one stays until the new one is complete (kill -9, full disk)."""
    with written_in_run(path) as partial, partial.open("wb") as file:  # given a path, torch hides the reason
        torch.save(payload, file)


def resume_command(run: Path) -> str:
    """The command that resumes exactly this run."""
    return f"fcos train {shlex.quote(str(run / 'config.json'))} load=true"


def _how_to_resume(run: Path) -> str:
    if not (run / "last.ckpt").is_file():
        return "free some disk space, or choose another run_folder that you can write to"
    return f"free some disk space, then: {resume_command(run)}; the last checkpoint is intact"


def check_checkpoint(path: Path) -> None:
    """Raise an error if there is no checkpoint to resume from."""
    if not path.is_file():
        raise CheckpointError(
            f"there is nothing to resume from: no {path.name} in {path.parent}",
            where="setting 'load'",
            fix='set "load": false to start a new run, or run_folder to the folder of the run',
        )


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint; only tensors and plain values are loaded, never code."""
    check_checkpoint(path)
    try:
        content: dict[str, Any] = dict(read_archive(path))
    except Exception as error:
        raise CheckpointError(
            f"{path.name} cannot be read: {first_line_of(error)}",
            where=str(path),
            fix="start a new run with load=false; best.safetensors of this run is still usable",
        ) from error
    return content


def settings_of(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The settings that a checkpoint was written with, under their current names.

    Settings that did not exist then get their defaults, which change nothing.
    """
    defaults = {key: field.default for key, field in TrainConfig.model_fields.items()}
    return defaults | {ALIASES.get(key, key): value for key, value in checkpoint["config"].items()}


def without_new_presets(config: TrainConfig, checkpoint: dict[str, Any]) -> TrainConfig:
    """The config without preset changes to settings that did not exist when the run was started."""
    known = {ALIASES.get(key, key) for key in checkpoint["config"]}
    fields = TrainConfig.model_fields.items()
    new = {
        key: f.default for key, f in fields if key not in known and config.origin(key).startswith("preset")
    }
    return config.model_copy(update=new)


def check_same_settings(old: dict[str, Any], new: dict[str, Any], path: Path) -> None:
    """Check that a run resumes with its own settings, or more epochs; the error lists all differences."""
    changed = [key for key in new if key not in FREE_SETTINGS and key in old and old[key] != new[key]]
    if "epochs" in changed and new["epochs"] > old["epochs"]:
        changed.remove("epochs")
    if changed:
        fewer = "; epochs can only be raised" if "epochs" in changed else ""
        raise CheckpointError(
            "; ".join(f'the run has "{key}": {old[key]!r}, not {new[key]!r}' for key in changed),
            where=str(path),
            fix=f"resume with the settings of the run: `{resume_command(path.parent)}`; or set "
            f"{', '.join(changed)} back, or start a new run with load=false{fewer}",
        )


def check_same_data(old: dict[str, str], new: dict[str, str], path: Path) -> None:
    """Check that a run resumes with its original annotations, wherever they are now."""
    changed = [key for key in new if old[key] != new[key]]
    if changed:
        raise CheckpointError(
            f"the {' and '.join(changed)} data differs from the data that the run was started with",
            where=str(path),
            fix="restore the annotations to resume, or start a new run with load=false",
        )


def fingerprints(train_set: Annotations, eval_set: Annotations | None) -> dict[str, str]:
    """Fingerprints of both data sets of a run."""
    return {"training": fingerprint(train_set), "evaluation": fingerprint(eval_set)}


def fingerprint(annotations: Annotations | None) -> str:
    """A hash that changes with image sizes, boxes or classes and, for data in memory, with pixels.

    It does not change when the files are moved.
    """
    if annotations is None:
        return "none"
    content = hashlib.sha256(repr((annotations.class_names, annotations.sizes_hw.tolist())).encode())
    for array in (annotations.first_box, annotations.labels, annotations.boxes_xyxy, annotations.is_crowd):
        content.update(array.tobytes())
    content.update(content_name(annotations.source).encode())
    return content.hexdigest()
