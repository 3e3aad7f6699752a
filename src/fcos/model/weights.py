"""Model files: weights with a card that says everything needed to use them.

One safetensors file; its metadata entry "fcos" is the card as JSON. Opening one runs no code from it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fcos.errors import WeightsError

FORMAT_VERSION = 1

GIVE = "give a *.safetensors file that `fcos train` wrote, a run folder, or a published weight file"


@dataclass(frozen=True)
class ModelCard:
    """What a model file says about itself.

    Attributes:
        settings: the keys of `TrainConfig` that shape the model, its input and its detections.
        class_names: of each label.
        category_ids: of each label, as in the annotation file that it was trained on.
        threshold: score from which detections are worth showing (best F1 on the evaluation list).
        metrics: of the evaluation that chose it: map_mean, map_50, map_75, epoch.
        versions: of the libraries that wrote it.
        format_version: of this file format.
        origin: the code base that trained the weights; empty: this one.
    """

    settings: dict[str, Any]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    threshold: float = 0.3
    metrics: dict[str, float | int] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION
    origin: str = ""


def save_model(path: Path, state: Mapping[str, Tensor], card: ModelCard) -> None:
    """Write a model file; a reader never sees half of one."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    partial = path.with_name(f".{path.name}.partial")
    try:
        save_file(tensors, partial, metadata={"fcos": json.dumps(asdict(card))})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def is_model_file(path: Path) -> bool:
    """Whether a file has our card."""
    try:
        with safe_open(path, framework="pt") as file:
            return "fcos" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def read_model(path: Path) -> tuple[ModelCard, dict[str, Tensor]]:
    """The card and the tensors of a model file."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except FileNotFoundError:
        raise WeightsError(f"there is no model file {path}", fix=GIVE) from None
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path.name} is not a model file, or is damaged: {error}", where=str(path), fix=GIVE
        ) from None
    if "fcos" not in metadata:
        raise WeightsError(
            f"{path.name} holds weights, but no card that says how to use them", where=str(path), fix=GIVE
        )
    return read_card(metadata["fcos"], path), tensors


def read_card(text: str, path: Path) -> ModelCard:
    """The card of a file from its JSON."""
    try:
        content = json.loads(text)
        if content["format_version"] <= FORMAT_VERSION:
            content["class_names"] = tuple(content["class_names"])
            content["category_ids"] = tuple(content["category_ids"])
            return ModelCard(**content)
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"the card of {path.name} cannot be read ({type(error).__name__}: {error})",
            where=str(path),
            fix=GIVE,
        ) from None
    raise WeightsError(
        f"{path.name} was written by a newer version of fcos",
        where=str(path),
        fix="pip install --upgrade fcos-torch",
    )


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Put the tensors of a file into a model; refuses a file that does not fit exactly."""
    wanted = model.state_dict()
    problems = [f"missing: {key}" for key in wanted if key not in tensors]
    problems += [f"left over: {key}" for key in tensors if key not in wanted]
    problems += [
        f"{key} has shape {tuple(tensors[key].shape)}, wanted {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in tensors and tensors[key].shape != value.shape
    ]
    if problems:
        more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise WeightsError(
            f"{path.name} does not fit its model:\n  " + "\n  ".join(problems[:10]) + more, where=str(path)
        )
    model.load_state_dict(dict(tensors))
