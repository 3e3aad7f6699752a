"""What an exported file says about itself, as text by name.

The entry "fcos" is everything this package needs to open it again; the others say the same in words that any
program can read, each as JSON: class names, preprocessing, thresholds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from fcos.config import TrainConfig
from fcos.data.loader import PADDING_MULTIPLE
from fcos.errors import WeightsError
from fcos.model.weights import ModelCard, read_card
from fcos.rules import RULES

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
    return "float32" if RULES[config.rules].resize == "float" else "uint8"


def to_metadata(card: ExportCard, config: TrainConfig) -> dict[str, str]:
    """The entries of a file."""
    content = {"export_version": FORMAT_VERSION, **asdict(card)}
    return {ENTRY: json.dumps(content), **{key: json.dumps(value) for key, value in _in_words(card, config)}}


def _in_words(card: ExportCard, config: TrainConfig) -> list[tuple[str, Any]]:
    rules = RULES[config.rules]
    return [
        ("class_names", card.model.class_names),
        ("category_ids", card.model.category_ids),
        ("pixel_mean", card.pixel_mean),
        ("pixel_std", card.pixel_std),
        ("short_side", config.short_side),
        ("longest_side", config.view_size),
        ("size_rule", rules.size),
        ("resize", rules.resize),
        ("input_dtype", input_dtype(config)),
        ("padding_multiple", PADDING_MULTIPLE),
        ("score_threshold", config.score_threshold),
        ("threshold_on", config.threshold_on),
        ("nms_iou", config.nms_iou),
        ("agnostic_nms", config.agnostic_nms),
        ("candidates_per_level", config.candidates_per_level),
        ("detections_per_image", config.detections_per_image),
        ("inclusive_boxes", rules.inclusive_boxes),
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
        content = json.loads(entries[ENTRY])
        version = content.pop("export_version")
        if version <= FORMAT_VERSION:
            model = read_card(json.dumps(content.pop("model")), path)
            lists = {key: tuple(content.pop(key)) for key in ("pixel_mean", "pixel_std", "notes")}
            return ExportCard(model, **{**content, **lists})
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(
            f"what {path.name} says about itself cannot be read ({type(error).__name__}: {error})",
            where=str(path),
            fix=GIVE,
        ) from None
    raise WeightsError(
        f"{path.name} was exported by a newer version of fcos",
        where=str(path),
        fix="pip install --upgrade fcos-torch",
    )
