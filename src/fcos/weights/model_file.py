"""Model files: weights with a card that contains everything needed to use them.

One safetensors file; its metadata entry "fcos" is the card as JSON. Opening one runs no code from it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import torch
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from fcos.errors import WeightsError
from fcos.files import check_regular, written
from fcos.terminal import is_printable
from fcos.weights.archive import UnsafeFileError, parse_json

FORMAT_VERSION = 1
MAX_ID = 2**63 - 1
MAX_PROBLEMS = 10  # in a message

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
DTYPES = (*FLOATS, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
UPGRADE = "pip install --upgrade fcos-torch"
GIVE = "give a *.safetensors file that `fcos train` wrote, a run folder, or a published weight file"

T = TypeVar("T")
C = TypeVar("C")


def check_text(text: str) -> str:
    """Reject text with control characters."""
    if not is_printable(text):
        raise ValueError("contains control characters")
    return text


def check_different(values: tuple[T, ...]) -> tuple[T, ...]:
    """Reject duplicate entries."""
    if len(set(values)) < len(values):
        raise ValueError("contains the same entry twice")
    return values


Text = Annotated[str, AfterValidator(check_text)]
Id = Annotated[int, Field(ge=-MAX_ID, le=MAX_ID)]
Name = Annotated[str, Field(min_length=1)]
Setting = Annotated[Any, AfterValidator(lambda value: check_text(value) if isinstance(value, str) else value)]
CARD_CHECKS = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class ModelCard:
    """The metadata of a model file.

    Attributes:
        settings: the keys of `TrainConfig` that determine the model, its input and its detections.
        class_names: the name of each label.
        category_ids: the id of each label in the training annotations.
        threshold: default minimum score of shown detections (best F1 on the evaluation list).
        metrics: of its evaluation: map_mean, map_50, map_75, epoch.
        versions: of the libraries that wrote it.
        format_version: of this file format.
        origin: the code base that trained the weights; empty: this one.
    """

    __pydantic_config__: ClassVar = CARD_CHECKS

    settings: dict[Text, Setting]
    class_names: Annotated[tuple[Name, ...], AfterValidator(check_different)]
    category_ids: Annotated[tuple[Id, ...], AfterValidator(check_different)]
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.3
    metrics: dict[Text, float | int] = field(default_factory=dict)
    versions: dict[Text, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION
    origin: Text = ""


def save_model(path: Path, state: Mapping[str, Tensor], card: ModelCard) -> None:
    """Write a model file atomically."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    metadata = {"fcos": json.dumps(asdict(card))}
    with written(path) as partial:
        partial.write_bytes(save(tensors, metadata))  # `save_file` makes it readable only by its owner


def is_model_file(path: Path) -> bool:
    """Whether a file has our card."""
    if not path.is_file():  # opening a pipe may block forever
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return "fcos" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def read_model(path: Path) -> tuple[ModelCard, dict[str, Tensor]]:
    """The card and the tensors of a model file.

    Raises:
        WeightsError: it does not exist, is damaged, or has an invalid card.
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
            f"{path.name} contains weights, but no card that says how to use them", where=str(path), fix=GIVE
        )
    check_numbers(tensors, path)
    return card, tensors


# Cards of model files and of exported files -----------------------------------------------------------------


def card_of(content: Any, path: Path) -> ModelCard:
    """The card of a file from its parsed JSON.

    Raises:
        WeightsError: a newer version wrote it, or entries are invalid; the message lists them.
    """
    check_version(content, "format_version", FORMAT_VERSION, path)
    card = checked_card(ModelCard, content, path)
    if not len(card.class_names) == len(card.category_ids) > 0:
        raise unreadable_card(
            path, f"{len(card.category_ids)} category_ids for {len(card.class_names)} classes"
        )
    return card


def parse_card(text: str, path: Path) -> Any:
    """The JSON of a card."""
    try:
        return parse_json(text)
    except UnsafeFileError as error:
        raise unreadable_card(path, str(error)) from None


def check_version(content: Any, key: str, newest: int, path: Path) -> None:
    """Reject a card without a version, or with a newer one than we support."""
    version = content.get(key) if isinstance(content, dict) else None
    if type(version) is not int:
        raise unreadable_card(path, f"it has no {key}")
    if version > newest:
        raise WeightsError(
            f"{path.name} was written by a newer version of fcos", where=str(path), fix=UPGRADE
        )


def checked_card(kind: type[C], content: Any, path: Path) -> C:
    """A card from JSON; rejects missing, unknown and invalid entries."""
    try:
        return TypeAdapter(kind).validate_json(json.dumps(content))  # as JSON, in which tuples are lists
    except ValidationError as error:
        wrong = (
            f"{'.'.join(map(str, one['loc']))} {one['input']!r:.80}: {one['msg']}"
            for one in error.errors()[:MAX_PROBLEMS]
        )
        raise unreadable_card(path, "; ".join(wrong)) from None


def unreadable_card(path: Path, reason: str) -> WeightsError:
    """The error for an invalid card."""
    return WeightsError(f"the card of {path.name} cannot be read: {reason}", where=str(path), fix=GIVE)


def check_numbers(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Reject weights that are not finite numbers: a network with NaN would silently detect nothing."""
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
            fix="its training diverged, or the file is damaged: give another checkpoint",
        )


def _is_plain(value: Tensor) -> bool:
    """Whether a tensor stores all of its numbers, not one that is repeated a billion times."""
    is_dense = value.dtype in DTYPES and value.layout == torch.strided and not value.is_meta
    return is_dense and value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load the tensors of a file into a model that they fit exactly."""
    check_fits(model, tensors, path)
    model.load_state_dict(dict(tensors))


def check_fits(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Reject tensors of a file that do not match a model exactly (which may be on the meta device)."""
    wanted = model.state_dict()
    problems = [
        *missing_or_other_shape(wanted, tensors),
        *(f"unexpected: {key}" for key in tensors if key not in wanted),
    ]
    if problems:
        raise WeightsError(f"{path.name} does not fit its model:{listed(problems)}", where=str(path))


def missing_or_other_shape(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[str]:
    """Describe wanted tensors that a file lacks, or has with another shape."""
    missing = [f"missing: {key}" for key in wanted if key not in tensors]
    return missing + [
        f"{key} has shape {tuple(tensors[key].shape)}, expected {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in tensors and tensors[key].shape != value.shape
    ]


def listed(problems: Sequence[str]) -> str:
    """The first problems, one per line, and the number of further ones."""
    more = [f"and {len(problems) - MAX_PROBLEMS} more"] if len(problems) > MAX_PROBLEMS else []
    return "".join(f"\n  {line}" for line in [*problems[:MAX_PROBLEMS], *more])
