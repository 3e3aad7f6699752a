"""Model files: weights with a card that contains everything needed to use them.

One safetensors file; its metadata entry "fcos" is the card as JSON. Opening one runs no code from it.
"""

from __future__ import annotations

import json
import math
import os
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from fcos.errors import WeightsError
from fcos.files import check_regular, written
from fcos.terminal import is_printable
from fcos.weights.archive import UnsafeFileError, parse_json

FORMAT_VERSION = 1
MAX_ID = 2**63 - 1

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
DTYPES = (*FLOATS, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
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
        WeightsError: it does not exist, is damaged, or its card makes no sense.
    """
    if not os.path.lexists(path):
        raise WeightsError(f"there is no model file {path}", fix=GIVE)
    check_regular(path, WeightsError)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            card = card_of(parse_card(metadata["fcos"], path), path) if "fcos" in metadata else None
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path.name} is not a model file, or is damaged: {error}", where=str(path), fix=GIVE
        ) from None
    if card is None:
        raise WeightsError(
            f"{path.name} contains weights, but not how to use them", where=str(path), fix=GIVE
        )
    check_numbers(tensors, path)
    return card, tensors


def card_of(content: Any, path: Path) -> ModelCard:
    """The card of a file from its parsed JSON.

    Raises:
        WeightsError: a newer version wrote it, or entries are wrong; all of them are listed.
    """
    check_version(content, "format_version", FORMAT_VERSION, path)
    check_entries(content, ModelCard, ENTRIES, path)
    names, ids = tuple(content["class_names"]), tuple(content["category_ids"])
    if not len(names) == len(ids) > 0:
        raise unreadable_card(path, f"{len(ids)} category_ids for {len(names)} classes")
    return ModelCard(**{**content, "class_names": names, "category_ids": ids})


# Cards of model files and of exported files -----------------------------------------------------------------


def parse_card(text: str, path: Path) -> Any:
    """The JSON of a card."""
    try:
        return parse_json(text)
    except UnsafeFileError as error:
        raise unreadable_card(path, str(error)) from None


def check_version(content: Any, key: str, newest: int, path: Path) -> None:
    """Refuse a card without a version, or of a newer one than we know."""
    version = content.get(key) if isinstance(content, dict) else None
    if not is_whole(version):
        raise unreadable_card(path, f"it has no {key}")
    if version > newest:
        raise WeightsError(
            f"{path.name} was written by a newer version of fcos", where=str(path), fix=UPGRADE
        )


def check_entries(content: dict[str, Any], kind: type, entries: Mapping[str, Entry], path: Path) -> None:
    """Refuse entries that the data class `kind` does not have, does not have enough of, or has otherwise."""
    known = {entry.name: entry for entry in fields(kind)}
    wrong = [f"{key!r} is not known" for key in content if key not in known]
    for key, (is_right, words) in entries.items():
        has_default = known[key].default is not MISSING or known[key].default_factory is not MISSING
        if key not in content and not has_default:
            wrong.append(f"{key} is missing")
        elif key in content and not is_right(content[key]):
            wrong.append(f"{key} {reprlib.repr(content[key])} is not {words}")
    if wrong:
        raise unreadable_card(path, "; ".join(wrong))


def unreadable_card(path: Path, reason: str) -> WeightsError:
    """The error for a card that makes no sense."""
    return WeightsError(f"the card of {path.name} cannot be read: {reason}", where=str(path), fix=GIVE)


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a value of JSON is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value of JSON is a finite number."""
    return is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def is_text(value: object) -> TypeGuard[str]:
    """Whether a value of JSON is text without control characters."""
    return isinstance(value, str) and is_printable(value)


def is_list_of(is_right: Callable[[Any], bool], value: object) -> bool:
    """Whether a value of JSON is a list of such values."""
    return isinstance(value, list) and all(map(is_right, value))


def _is_table_of(is_right: Callable[[Any], bool], value: object) -> bool:
    return isinstance(value, dict) and all(map(is_text, value)) and all(map(is_right, value.values()))


Entry = tuple[Callable[[Any], bool], str]  # whether a value is right, and what is right, in words
ENTRIES: dict[str, Entry] = {
    "settings": (
        partial(_is_table_of, lambda value: not isinstance(value, str) or is_text(value)),
        "an object with text that can be shown",
    ),
    "class_names": (
        lambda value: (
            is_list_of(lambda name: isinstance(name, str) and bool(name), value)
            and len(set(value)) == len(value)
        ),
        "a list of different names",
    ),
    "category_ids": (
        lambda value: (
            is_list_of(lambda number: is_whole(number) and abs(number) <= MAX_ID, value)
            and len(set(value)) == len(value)
        ),
        "a list of different whole numbers",
    ),
    "threshold": (lambda value: is_number(value) and 0 <= value <= 1, "a number from 0 to 1"),
    "metrics": (partial(_is_table_of, is_number), "numbers by name"),
    "versions": (partial(_is_table_of, lambda value: isinstance(value, str)), "text by name"),
    "origin": (is_text, "text that can be shown"),
}


def check_numbers(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights that are not numbers: a network of NaN would silently detect nothing."""
    strange = [key for key, value in tensors.items() if not _is_plain(value)]
    if strange:
        value = tensors[strange[0]]
        raise WeightsError(
            f"{path.name} contains tensors that are not plain numbers, such as {strange[0]} ({value.dtype}, "
            f"{value.layout}, {value.device})",
            where=str(path),
            fix="save its weights as dense float32, float16 or bfloat16 tensors",
        )
    broken = [
        key for key, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()
    ]
    if broken:
        raise WeightsError(
            f"{path.name} contains NaN or infinity in {len(broken)} of {len(tensors)} tensors, such as "
            f"{broken[0]}",
            where=str(path),
            fix="the training that wrote it diverged, or the file is damaged: give another checkpoint",
        )


def _is_plain(value: Tensor) -> bool:
    """Whether a tensor stores all of its numbers, instead of one that is repeated a billion times."""
    is_dense = value.dtype in DTYPES and value.layout == torch.strided and not value.is_meta
    return is_dense and value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load the tensors of a file into a model that they fit exactly."""
    check_fits(model, tensors, path)
    model.load_state_dict(dict(tensors))


def check_fits(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors of a file that are not exactly those of a model (which may be on the meta device)."""
    wanted = model.state_dict()
    problems = [f"missing: {key}" for key in wanted if key not in tensors]
    problems += [f"unexpected: {key}" for key in tensors if key not in wanted]
    problems += [
        f"{key} has shape {tuple(tensors[key].shape)}, expected {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in tensors and tensors[key].shape != value.shape
    ]
    if problems:
        more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise WeightsError(
            f"{path.name} does not fit its model:\n  " + "\n  ".join(problems[:10]) + more, where=str(path)
        )
