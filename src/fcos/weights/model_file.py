"""Model files: weights with a card that says everything needed to use them.

One safetensors file; its metadata entry "fcos" is the card as JSON. Opening one runs no code from it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from fcos.errors import WeightsError
from fcos.files import check_regular, written
from fcos.terminal import counted, is_printable
from fcos.weights.archive import UnsafeFileError, parse_json

FORMAT_VERSION = 1
MAX_ID = 2**63 - 1

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
DTYPES = (*FLOATS, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
LISTS = ("class_names", "category_ids")
UPGRADE = "pip install --upgrade fcos-torch"
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
    """Write a model file, whole or not at all."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    metadata = {"fcos": json.dumps(asdict(card))}
    with written(path) as partial:
        partial.write_bytes(save(tensors, metadata))  # `save_file` makes it readable by its owner alone


def is_model_file(path: Path) -> bool:
    """Whether a file has our card."""
    if not path.is_file():  # a pipe would wait for ever
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return "fcos" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def read_model(path: Path) -> tuple[ModelCard, dict[str, Tensor]]:
    """The card and the tensors of a model file.

    Raises:
        WeightsError: there is no such file, it is damaged, or its card makes no sense.
    """
    if not os.path.lexists(path):
        raise WeightsError(f"there is no model file {path}", fix=GIVE)
    check_regular(path, WeightsError)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            card = read_card(metadata["fcos"], path) if "fcos" in metadata else None
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path.name} is not a model file, or is damaged: {error}", where=str(path), fix=GIVE
        ) from None
    if card is None:
        raise WeightsError(
            f"{path.name} holds weights, but no card that says how to use them", where=str(path), fix=GIVE
        )
    check_numbers(tensors, path)
    return card, tensors


def read_card(text: str, path: Path) -> ModelCard:
    """The card of a file from its JSON."""
    try:
        return card_of(parse_json(text), path)
    except UnsafeFileError as error:
        raise unreadable_card(path, str(error)) from None


def card_of(content: Any, path: Path) -> ModelCard:
    """The card of a file from what its JSON holds.

    Raises:
        WeightsError: it was written by a newer version, or holds what cannot be; all of it is named.
    """
    version = content.get("format_version") if isinstance(content, dict) else None
    if not is_whole(version):
        raise unreadable_card(path, "it has no format_version")
    if version > FORMAT_VERSION:
        raise WeightsError(
            f"{path.name} was written by a newer version of fcos", where=str(path), fix=UPGRADE
        )
    if wrong := list(_wrong_entries(content)):
        raise unreadable_card(path, "; ".join(wrong))
    names, ids = tuple(content["class_names"]), tuple(content["category_ids"])
    return ModelCard(**{**content, "class_names": names, "category_ids": ids})


def unreadable_card(path: Path, reason: str) -> WeightsError:
    """The error for a file whose description of itself makes no sense."""
    return WeightsError(f"the card of {path.name} cannot be read: {reason}", where=str(path), fix=GIVE)


def _wrong_entries(card: dict[str, Any]) -> Iterator[str]:
    """What is wrong with each entry of a card, in words."""
    known = [entry.name for entry in fields(ModelCard)]
    yield from (f"{key!r} is not known" for key in card if key not in known)
    yield from (f"{key} is missing" for key in ("settings", *LISTS) if key not in card)
    names, ids = (card.get(key, []) for key in LISTS)
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        yield "class_names is not a list of text"
    elif len(set(names)) < len(names):
        yield "class_names has a name twice"
    if not isinstance(ids, list) or not all(is_whole(number) and abs(number) <= MAX_ID for number in ids):
        yield "category_ids is not a list of whole numbers"
    elif isinstance(names, list) and (len(ids) != len(names) or not ids or len(set(ids)) < len(ids)):
        classes = counted(len(names), "class", "classes")
        yield f"{len(ids)} category_ids ({len(set(ids))} different) for {classes}"
    settings = card.get("settings", {})
    if not isinstance(settings, dict):
        yield "settings is not an object"
    elif not all(is_printable(value) for value in settings.values() if isinstance(value, str)):
        yield "settings has control characters"
    threshold = card.get("threshold", 0.0)
    if not is_number(threshold) or not 0 <= threshold <= 1:
        yield f"threshold {threshold!r} is not a number from 0 to 1"
    metrics, versions = card.get("metrics", {}), card.get("versions", {})
    if (
        not isinstance(metrics, dict)
        or not all(map(is_printable, metrics))
        or not all(map(is_number, metrics.values()))
    ):
        yield "metrics is not numbers by name"
    if not isinstance(versions, dict) or not all(isinstance(value, str) for value in versions.values()):
        yield "versions is not text by name"
    if not isinstance(origin := card.get("origin", ""), str) or not is_printable(origin):
        yield "origin is not text that can be shown"


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a value of JSON is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value of JSON is a finite number."""
    return is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def check_numbers(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights that are not numbers: a network of NaN detects nothing, without a word."""
    strange = [key for key, value in tensors.items() if not _is_plain(value)]
    if strange:
        value = tensors[strange[0]]
        raise WeightsError(
            f"{path.name} holds tensors that are not plain numbers, such as {strange[0]} ({value.dtype}, "
            f"{value.layout}, {value.device})",
            where=str(path),
            fix="save its weights as dense float32, float16 or bfloat16 tensors",
        )
    broken = [
        key for key, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()
    ]
    if broken:
        raise WeightsError(
            f"{path.name} holds NaN or infinity in {len(broken)} of {len(tensors)} tensors, such as "
            f"{broken[0]}",
            where=str(path),
            fix="the training that wrote it diverged, or the file is damaged: give another checkpoint",
        )


def _is_plain(value: Tensor) -> bool:
    """Whether a tensor has numbers in memory of its own, not one that stands for a billion."""
    is_dense = value.dtype in DTYPES and value.layout == torch.strided and not value.is_meta
    return is_dense and value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Put the tensors of a file into a model; refuses a file that does not fit exactly."""
    check_fits(model, tensors, path)
    model.load_state_dict(dict(tensors))


def check_fits(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors of a file that are not exactly those of a model (which may be on the meta device)."""
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
