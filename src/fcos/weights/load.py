"""Load a model file, our own or one of another code base, as a network with its settings."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import shorten
from typing import Literal

import torch
from pydantic import ValidationError

from fcos.config import TrainConfig, expects
from fcos.config.checks import broken_rules
from fcos.errors import ConfigError, WeightsError
from fcos.files import first_line_of
from fcos.files import is_run as is_run
from fcos.model.build import build_model
from fcos.model.fcos import FCOS
from fcos.weights.model_file import GIVE, UPGRADE, ModelCard, check_fits, load_tensors, read_model
from fcos.weights.published.opening import PICKLE_SUFFIXES, is_published
from fcos.weights.published.read import read_published
from fcos.weights.published.settings import ChannelOrder

ExportFormat = Literal["onnx", "openvino", "torch", "ncnn", "litert"]
# In their folders.
OPENVINO_GRAPH, NCNN_GRAPH, LITERT_GRAPH = "model.xml", "model.ncnn.param", "model.tflite"
GRAPHS: dict[str, ExportFormat] = {OPENVINO_GRAPH: "openvino", NCNN_GRAPH: "ncnn", LITERT_GRAPH: "litert"}

# The detector in this package, for 20 kinds of everyday objects; docs/everyday.md is its model card.
EVERYDAY, EVERYDAY_FILE = "everyday", Path(__file__).with_name("everyday.safetensors")
MODELS_OF_A_RUN = ("best.safetensors", "last.safetensors")

# More than any model needs; a file that asks for more would only fill the memory.
MOST = {
    **{"view_size": 2**15, "short_side": 2**15, "fpn_channels": 2**14, "head_channels": 2**14},
    **{"head_convs": 64, "candidates_per_level": 10**6, "detections_per_image": 10**6},
}
MOST_LEVELS = 12

# The settings in a model file: enough to build the model, prepare its input and interpret its output.
LATER_SETTINGS = ("tile", "horizontal_flip")  # training settings that prediction also uses
MODEL_SETTINGS = (
    *("model", "backbone", "backbone_channels", "stride_in_1x1", "pixel_mean", "pixel_std"),
    *("fpn_channels", "fpn_extra_from", "strides", "regress_ranges"),
    *("head_channels", "head_convs", "head_conv", "head_norm", "box_activation", "normalize_targets"),
    *("quality", "quality_tower", "view_size", "short_side", "rules"),
    *("score_threshold", "threshold_on", "nms_iou", "agnostic_nms"),
    *("candidates_per_level", "detections_per_image"),
    *LATER_SETTINGS,
)


@dataclass(frozen=True)
class LoadedModel:
    """A model file, ready to use.

    Attributes:
        model: in evaluation mode, on the CPU.
        config: its settings.
        card: all other information in the file.
        path: of the file.
        notes: assumptions about a file of another code base.
    """

    model: FCOS
    config: TrainConfig
    card: ModelCard
    path: Path
    notes: tuple[str, ...] = ()

    def with_agnostic_nms(self, agnostic_nms: bool) -> LoadedModel:
        """The same model with another setting `agnostic_nms`."""
        settings = {**self.card.settings, "agnostic_nms": agnostic_nms}
        config = self.config.model_copy(update={"agnostic_nms": agnostic_nms})
        return replace(self, config=config, card=replace(self.card, settings=settings))


def format_of(path: Path) -> ExportFormat | None:
    """The format of an exported file or folder, by its name; None if it is not one."""
    if path.is_dir():
        return next((name for graph, name in GRAPHS.items() if (path / graph).is_file()), None)
    return {".onnx": "onnx", ".xml": "openvino", ".pt2": "torch"}.get(path.suffix)  # type: ignore[return-value]


def is_model(word: str) -> bool:
    """Whether a word looks like a model: a run folder, a file with a known suffix, or "everyday"."""
    path = Path(word)
    in_folder = is_run(path) or any((path / name).is_file() for name in MODELS_OF_A_RUN)
    return (
        word == EVERYDAY
        or in_folder
        or bool(format_of(path))
        or path.suffix.lower() in (".safetensors", *PICKLE_SUFFIXES)
    )


def model_file_of(source: Path) -> Path:
    """The model file of a run folder (the best model) or of "everyday", or the file itself."""
    if str(source) == EVERYDAY and not source.exists():
        return EVERYDAY_FILE
    if not source.is_dir():
        return source
    for name in MODELS_OF_A_RUN:
        if (source / name).is_file():
            return source / name
    raise WeightsError(
        f"{source} contains no model",
        where="best.safetensors, last.safetensors",
        fix="give a run folder in which `fcos train` has finished an epoch, or a weight file",
    )


def load_model(source: Path | str, channel_order: ChannelOrder | None = None) -> LoadedModel:
    """The model of a run folder, a model file, "everyday", or a weight file of another code base.

    Args:
        source: the model; "everyday" is included in the package.
        channel_order: that the network expects, if the file does not state it, or states it wrongly.

    Raises:
        WeightsError: it cannot be read, does not fit its card, or would have to run code.
    """
    path = model_file_of(Path(source))
    if not is_published(path):
        card, tensors = read_model(path)
        config = settings_of_card(card, path)
        check_fits(outline(config, len(card.class_names), path), tensors, path)
        model = build_model(config, len(card.class_names))
        if channel_order == "bgr":  # ours take RGB: reverse the channels of the first convolution
            stem = next(key for key, value in tensors.items() if value.ndim == 4 and value.shape[1] == 3)
            tensors[stem] = tensors[stem].flip(1)
        load_tensors(model, tensors, path)
        return LoadedModel(model.eval(), config, card, path)

    file = read_published(path, channel_order)
    config, num_classes = settings_of_card(file.card, path), len(file.card.class_names)
    tensors = file.tensors_for(outline(config, num_classes, path).state_dict())
    model = build_model(config, num_classes)
    model.load_state_dict({**model.state_dict(), **tensors})
    return LoadedModel(model.eval(), config, file.card, path, file.notes)


def outline(config: TrainConfig, num_classes: int, path: Path) -> FCOS:
    """The network on the meta device, since a file may request any width.

    Raises:
        WeightsError: the network cannot be built.
    """
    # Freezing does not change the tensors, but determining the frozen layers runs the network.
    config = config.model_copy(update={"freeze_bn": False, "freeze_stages": 0})
    try:
        with torch.device("meta"):
            return build_model(config, num_classes)
    except ConfigError as error:
        raise WeightsError(error.what, where=str(path), fix=error.fix) from error
    except (RuntimeError, ValueError, OverflowError, TypeError) as error:  # sizes beyond 64 bits
        raise WeightsError(
            f"no network can be built from the settings of {path.name}: {first_line_of(error)}",
            where=str(path),
            fix=GIVE,
        ) from error


def settings_of_card(card: ModelCard, path: Path) -> TrainConfig:
    """The settings in a card, with defaults for all others.

    Raises:
        WeightsError: settings that this version does not know, or invalid values.
    """
    if unknown := [key for key in card.settings if key not in MODEL_SETTINGS]:
        raise WeightsError(
            f"{path.name} has settings that this version of fcos does not know: {', '.join(unknown)}",
            where=str(path),
            fix=UPGRADE,
        )
    try:
        config = TrainConfig(**card.settings)
        problems = [broken.what for broken in broken_rules(config)]
    except ValidationError as error:
        keys = dict.fromkeys(str(detail["loc"][0]) for detail in error.errors())
        problems = [
            f'"{key}": {shorten(json.dumps(card.settings.get(key)), 100)} is not a valid value; it takes '
            f"{expects(key)}"
            for key in keys
        ]
    else:
        problems += [
            f'"{key}": {value} is more than {most}'
            for key, most in MOST.items()
            if (value := getattr(config, key)) is not None and value > most
        ]
        if len(config.strides) > MOST_LEVELS:
            problems.append(f'"strides" has {len(config.strides)} entries, more than {MOST_LEVELS}')
    if problems:
        raise WeightsError(
            f"{path.name} has invalid settings: {'; '.join(problems)}", where=str(path), fix=GIVE
        )
    return config


def model_settings(config: TrainConfig) -> dict[str, object]:
    """The settings for a model file; `LATER_SETTINGS` only if they are not the default.

    Older versions can still open files without them.
    """
    return {
        key: value
        for key, value in config.model_dump(mode="json").items()
        if key in MODEL_SETTINGS
        and (key not in LATER_SETTINGS or value != TrainConfig.model_fields[key].default)
    }
