"""Detectors taken over: written as a model file of ours, or as the start of a training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import cast, get_args

import torch

from fcos.build import MODEL_SETTINGS, LoadedModel, build_model, load_model
from fcos.config import TrainConfig, load_config
from fcos.config_rules import broken_rules
from fcos.errors import ConfigError, WeightsError
from fcos.files import check_writable
from fcos.model.fcos import FCOS
from fcos.model.published.download import coco_file
from fcos.model.published.layouts import layout_of
from fcos.model.published.opening import is_published, open_state
from fcos.model.published.settings import ChannelOrder
from fcos.model.weights import ModelCard, is_model_file, load_tensors, save_model
from fcos.terminal import counted

# What a training decides itself: how many detections are worth measuring does not belong to the weights.
NOT_ADOPTED = ("model", "score_threshold", "candidates_per_level", "detections_per_image")
# Of `fcos import` alone: our own networks always take RGB.
CHANNEL_ORDER = "channel_order"
# The weights of one class each.
CLASS_TENSORS = ("head.logits.weight", "head.logits.bias")


def import_model(
    source: Path,
    output: Path,
    *,
    changes: Sequence[str] = (),
    class_names: tuple[str, ...] | None = None,
    overwrite: bool = False,
) -> ModelCard:
    """Write a detector as a model file of ours; returns its card.

    Args:
        source: what `load_model` takes.
        output: the file to write.
        changes: `key=value`, where the file was trained with another configuration than its authors'; besides
            settings `channel_order=rgb` or `bgr`, which its network takes.
        class_names: of the outputs, where the file does not say them.
        overwrite: a file that is there.
    """
    if output.suffix != ".safetensors":
        raise WeightsError(
            f"{output} is no *.safetensors file", fix=f"give {output.with_suffix('.safetensors')}"
        )
    if output.exists() and not overwrite:
        raise WeightsError(f"{output} is there already", fix="give another file, or --force")
    check_writable(output)
    orders = [word.partition("=")[2] for word in changes if word.partition("=")[0] == CHANNEL_ORDER]
    if strange_orders := [order for order in orders if order not in get_args(ChannelOrder)]:
        raise ConfigError(
            f'"{CHANNEL_ORDER}": "{strange_orders[0]}" is not possible',
            where="command line",
            fix="give rgb or bgr: what the network of the file takes",
        )
    loaded = load_model(source, cast("ChannelOrder", orders[-1]) if orders else None)
    changes = [word for word in changes if word.partition("=")[0] != CHANNEL_ORDER]
    config = load_config(loaded.card.settings, changes)
    given = [key for key in type(config).model_fields if config.origin(key).startswith("command line")]
    if strange := [key for key in given if key not in MODEL_SETTINGS]:
        raise ConfigError(
            f'"{strange[0]}" has no place in a model file',
            where="command line",
            fix=f"there are {CHANNEL_ORDER}, {', '.join(MODEL_SETTINGS)}",
        )
    model = build_model(config, len(loaded.card.class_names))
    statistics = {"pixel_mean": model.pixel_mean, "pixel_std": model.pixel_std}
    load_tensors(model, {**loaded.model.state_dict(), **statistics}, loaded.path)
    names = class_names or loaded.card.class_names
    if len(names) != len(loaded.card.class_names):
        raise WeightsError(
            f"{counted(len(names), 'name')} for {counted(len(loaded.card.class_names), 'output')}",
            where=str(loaded.path),
            fix="give a names file with a line for each output ('background' does not count)",
        )
    card = replace(
        loaded.card,
        settings=settings_of(config),
        class_names=names,
        versions={name: version(name) for name in ("fcos-torch", "torch", "timm")},
    )
    save_model(output, model.state_dict(), card)
    return card


def settings_of(config: TrainConfig) -> dict[str, object]:
    """The settings that a model file carries."""
    return {key: value for key, value in config.model_dump(mode="json").items() if key in MODEL_SETTINGS}


def find_start(config: TrainConfig) -> LoadedModel | None:
    """The detector that `pretrain` names; None if it is a backbone's file, true or false."""
    if not isinstance(config.pretrain, str):
        return None
    path = coco_file() if config.pretrain == "coco" else Path(config.pretrain)
    if not (path.is_dir() or is_model_file(path) or is_published(path)):
        return None
    if is_published(path) and layout_of(open_state(path).tensors) is None:
        return None
    return load_model(path)


def adopt_settings(config: TrainConfig, start: LoadedModel) -> tuple[TrainConfig, list[str]]:
    """The settings with those of a detector wherever the user gave none, and what changed, in words.

    Raises:
        ConfigError: what the user gave does not go together with what was adopted.
    """
    keys = [key for key in MODEL_SETTINGS if key not in NOT_ADOPTED]
    changes = {
        key: getattr(start.config, key)
        for key in keys
        if config.origin(key).split(" ")[0] in ("default", "preset")
        and getattr(config, key) != getattr(start.config, key)
    }
    adopted = config.model_copy(update=changes)
    # model_copy shares private attributes: the caller's config would take these for its own
    adopted._origins = config._origins | {key: f"file {start.path}" for key in changes}
    if broken := next(broken_rules(adopted), None):
        raise ConfigError(broken.what, where=f"settings adopted from {start.path}", fix=broken.fix)
    return adopted, [f"{key} {json.dumps(value)}" for key, value in changes.items()]


def load_start(model: FCOS, class_names: Sequence[str], start: LoadedModel) -> list[str]:
    """Put a detector's weights into a model of other classes; returns the classes that both know.

    The outputs of those classes are taken over by name, the others keep their fresh weights.
    """
    fresh, tensors = model.state_dict(), dict(start.model.state_dict())
    known = [name for name in class_names if name in start.card.class_names]
    rows = torch.tensor([start.card.class_names.index(name) for name in known], dtype=torch.int64)
    places = torch.tensor([list(class_names).index(name) for name in known], dtype=torch.int64)
    for key in CLASS_TENSORS:
        if tensors[key].shape[1:] == fresh[key].shape[1:]:
            tensors[key] = fresh[key].clone().index_copy_(0, places, tensors[key][rows])
    tensors |= {"pixel_mean": model.pixel_mean, "pixel_std": model.pixel_std}
    load_tensors(model, tensors, start.path)
    return known
