"""What an exported file says about itself, as text by name.

The entry "fcos" is everything this package needs to open it again; the others say the same in words that any
program can read, each as JSON: class names, preprocessing, thresholds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from fcos.config import TrainConfig
from fcos.config.conventions import CONVENTIONS
from fcos.data.loader import PADDING_MULTIPLE
from fcos.errors import WeightsError
from fcos.terminal import is_printable
from fcos.weights.archive import UnsafeFileError, parse_json
from fcos.weights.model_file import UPGRADE, ModelCard, is_number, is_whole, unreadable_card
from fcos.weights.model_file import card_of as read_model_card

Precision = Literal["fp32", "int8"]

FORMAT_VERSION = 1
ENTRY = "fcos"

GIVE = "give a file that `fcos export` wrote"


@dataclass(frozen=True)
class ExportCard:
    """What an exported file says about itself.

    Attributes:
        model: as the model file says.
        pixel_mean: RGB, in 0..255; the graph subtracts it.
        pixel_std: RGB, in 0..255; the graph divides by it.
        precision: of the weights and convolutions.
        num_parameters: of the network.
        notes: how it was made, in sentences.
    """

    model: ModelCard
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    precision: Precision = "fp32"
    num_parameters: int = 0
    notes: tuple[str, ...] = ()


def input_dtype(config: TrainConfig) -> Literal["uint8", "float32"]:
    """What the graph takes: bytes, except where resizing does not round."""
    return "float32" if CONVENTIONS[config.rules].resize == "float" else "uint8"


def to_metadata(card: ExportCard, config: TrainConfig) -> dict[str, str]:
    """The entries of a file."""
    content = {"export_version": FORMAT_VERSION, **asdict(card)}
    return {ENTRY: json.dumps(content), **{key: json.dumps(value) for key, value in _in_words(card, config)}}


def _in_words(card: ExportCard, config: TrainConfig) -> list[tuple[str, Any]]:
    conventions = CONVENTIONS[config.rules]
    return [
        ("class_names", card.model.class_names),
        ("category_ids", card.model.category_ids),
        ("pixel_mean", card.pixel_mean),
        ("pixel_std", card.pixel_std),
        ("short_side", config.short_side),
        ("longest_side", config.view_size),
        ("size_rule", conventions.size),
        ("resize", conventions.resize),
        ("input_dtype", input_dtype(config)),
        ("padding_multiple", PADDING_MULTIPLE),
        ("score_threshold", config.score_threshold),
        ("threshold_on", config.threshold_on),
        ("nms_iou", config.nms_iou),
        ("agnostic_nms", config.agnostic_nms),
        ("candidates_per_level", config.candidates_per_level),
        ("detections_per_image", config.detections_per_image),
        ("inclusive_boxes", conventions.inclusive_boxes),
        ("show_from_score", card.model.threshold),
        ("precision", card.precision),
    ]


def from_metadata(entries: Mapping[str, str], path: Path) -> ExportCard:
    """The card of a file.

    Raises:
        WeightsError: the file has none, or one of a newer version.
    """
    if ENTRY not in entries:
        raise WeightsError(
            f'{path.name} does not say how to use it: no entry "{ENTRY}" in its metadata',
            where=str(path),
            fix=GIVE,
        )
    try:
        content = parse_json(entries[ENTRY])
    except UnsafeFileError as error:
        raise unreadable_card(path, str(error)) from None
    version = content.pop("export_version", None) if isinstance(content, dict) else None
    if not is_whole(version):
        raise unreadable_card(path, "it has no export_version")
    if version > FORMAT_VERSION:
        raise WeightsError(
            f"{path.name} was exported by a newer version of fcos", where=str(path), fix=UPGRADE
        )
    model = read_model_card(content.pop("model", None), path)
    if wrong := list(_wrong_entries(content)):
        raise unreadable_card(path, "; ".join(wrong))
    lists = {key: tuple(content.pop(key)) for key in ("pixel_mean", "pixel_std", "notes") if key in content}
    return ExportCard(model, **{**content, **lists})


def _wrong_entries(card: dict[str, Any]) -> Iterator[str]:
    """What is wrong with each entry of a card, in words."""
    known = [entry.name for entry in fields(ExportCard)]
    yield from (f"{key!r} is not known" for key in card if key not in known)
    for key, least in (("pixel_mean", -math.inf), ("pixel_std", 0)):
        numbers = card.get(key)
        if (
            not isinstance(numbers, list)
            or len(numbers) != 3
            or not all(is_number(number) and number > least for number in numbers)
        ):
            yield f"{key} {numbers!r} is not three numbers{' above 0' if least == 0 else ''}"
    if card.get("precision", "fp32") not in get_args(Precision):
        yield f"precision {card['precision']!r} is not known"
    if not is_whole(card.get("num_parameters", 0)):
        yield "num_parameters is no whole number"
    notes = card.get("notes", [])
    if not isinstance(notes, list) or not all(isinstance(note, str) and is_printable(note) for note in notes):
        yield "notes is not a list of text"
