"""The metadata of an exported file, as named strings.

This package needs only the entry "fcos" to open it; the others give the same information as JSON to other
programs: class names, preprocessing, thresholds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from fcos.config import TrainConfig
from fcos.config.conventions import CONVENTIONS
from fcos.data.loader import PADDING_MULTIPLE
from fcos.errors import WeightsError, needs_extra
from fcos.weights.model_file import (
    CARD_CHECKS,
    ModelCard,
    Text,
    card_of,
    check_version,
    checked_card,
    parse_card,
)

Precision = Literal["fp32", "int8"]

FORMAT_VERSION = 1
ENTRY = "fcos"

GIVE = "give a file that `fcos export` wrote"


@dataclass(frozen=True)
class ExportCard:
    """The metadata of an exported file.

    Attributes:
        model: the card of the model file.
        pixel_mean: RGB, in 0..255; the graph subtracts it.
        pixel_std: RGB, in 0..255; the graph divides by it.
        precision: of the weights and convolutions.
        num_parameters: of the network.
        notes: how it was made, in sentences.
    """

    __pydantic_config__: ClassVar = CARD_CHECKS

    model: ModelCard
    pixel_mean: Annotated[tuple[float, ...], Field(min_length=3, max_length=3)]
    pixel_std: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=3, max_length=3)]
    precision: Precision = "fp32"
    num_parameters: int = 0
    notes: tuple[Text, ...] = ()


def cannot_open(path: Path, how: str, reason: str, fix: str = GIVE) -> WeightsError:
    """The error for a file that its library rejects."""
    return WeightsError(f"{path.name} cannot be opened {how}: {reason}", where=str(path), fix=fix)


def needs(name: str) -> AbstractContextManager[None]:
    """`needs_extra` for a format, whose extra has the same name."""
    return needs_extra(f"the format {name}", name)


def input_dtype(config: TrainConfig) -> Literal["uint8", "float32"]:
    """The input dtype of the graph: uint8, unless resizing does not round."""
    return "float32" if CONVENTIONS[config.rules].resize == "float" else "uint8"


def to_metadata(card: ExportCard, config: TrainConfig) -> dict[str, str]:
    """The entries of a file."""
    conventions = CONVENTIONS[config.rules]
    entries = {
        ENTRY: {"export_version": FORMAT_VERSION, **asdict(card)},
        "class_names": card.model.class_names,
        "category_ids": card.model.category_ids,
        "pixel_mean": card.pixel_mean,
        "pixel_std": card.pixel_std,
        "short_side": config.short_side,
        "longest_side": config.view_size,
        "size_rule": conventions.size,
        "resize": conventions.resize,
        "input_dtype": input_dtype(config),
        "padding_multiple": PADDING_MULTIPLE,
        "strides": config.strides,
        "score_threshold": config.score_threshold,
        "threshold_on": config.threshold_on,
        "nms_iou": config.nms_iou,
        "agnostic_nms": config.agnostic_nms,
        "candidates_per_level": config.candidates_per_level,
        "detections_per_image": config.detections_per_image,
        "inclusive_boxes": conventions.inclusive_boxes,
        "show_from_score": card.model.threshold,
        "precision": card.precision,
    }
    return {key: json.dumps(value) for key, value in entries.items()}


def from_metadata(entries: Mapping[str, str], path: Path) -> ExportCard:
    """The card of a file.

    Raises:
        WeightsError: it has none, a newer version wrote it, or entries are invalid.
    """
    if ENTRY not in entries:
        raise WeightsError(
            f'{path.name} does not say how to use it: no entry "{ENTRY}" in its metadata',
            where=str(path),
            fix=GIVE,
        )
    content = parse_card(entries[ENTRY], path)
    check_version(content, "export_version", FORMAT_VERSION, path)
    del content["export_version"]
    card_of(content.get("model"), path)  # reports what is wrong with it
    return checked_card(ExportCard, content, path)
