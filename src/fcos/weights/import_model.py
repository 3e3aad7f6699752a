"""Convert a detector of another code base to a model file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast, get_args

from fcos.config import load_config
from fcos.errors import ConfigError, WeightsError
from fcos.files import check_writable
from fcos.machine import package_versions
from fcos.model.build import build_model
from fcos.terminal import counted
from fcos.weights.load import MODEL_SETTINGS, load_model, model_settings
from fcos.weights.model_file import ModelCard, load_tensors, save_model
from fcos.weights.published.settings import ChannelOrder

# Only for `fcos import`: our own networks always take RGB.
CHANNEL_ORDER = "channel_order"


def import_model(
    source: Path,
    output: Path,
    *,
    changes: Sequence[str] = (),
    class_names: tuple[str, ...] | None = None,
    overwrite: bool = False,
) -> ModelCard:
    """Write a detector as a model file, and return its card.

    Args:
        source: as in `load_model`.
        output: the file to write.
        changes: `key=value`, if the file was trained with another configuration than its authors'; settings,
            or `channel_order=rgb` or `bgr`, the order that its network expects.
        class_names: of the outputs, if the file does not contain them.
        overwrite: replace an existing file.
    """
    if output.suffix != ".safetensors":
        raise WeightsError(
            f"{output} is not a *.safetensors file", fix=f"give {output.with_suffix('.safetensors')}"
        )
    if output.exists() and not overwrite:
        raise WeightsError(f"{output} already exists", fix="give another file, or --force")
    check_writable(output)
    orders = [word.partition("=")[2] for word in changes if word.partition("=")[0] == CHANNEL_ORDER]
    if strange_orders := [order for order in orders if order not in get_args(ChannelOrder)]:
        raise ConfigError(
            f'"{CHANNEL_ORDER}": "{strange_orders[0]}" is not a valid value',
            where="command line",
            fix="give rgb or bgr, the order that the network in the file expects",
        )
    loaded = load_model(source, cast("ChannelOrder", orders[-1]) if orders else None)
    changes = [word for word in changes if word.partition("=")[0] != CHANNEL_ORDER]
    config = load_config(loaded.card.settings, changes)
    given = [key for key in type(config).model_fields if config.origin(key).startswith("command line")]
    if strange := [key for key in given if key not in MODEL_SETTINGS]:
        raise ConfigError(
            f'"{strange[0]}" is not a setting of a model file',
            where="command line",
            fix=f"use one of {CHANNEL_ORDER}, {', '.join(MODEL_SETTINGS)}",
        )
    model = build_model(config, len(loaded.card.class_names))
    statistics = {"pixel_mean": model.pixel_mean, "pixel_std": model.pixel_std}
    load_tensors(model, {**loaded.model.state_dict(), **statistics}, loaded.path)
    names = class_names or loaded.card.class_names
    if len(names) != len(loaded.card.class_names):
        raise WeightsError(
            f"{counted(len(names), 'name')} for {counted(len(loaded.card.class_names), 'output')}",
            where=str(loaded.path),
            fix="give a name file with one line per output, not counting 'background'",
        )
    card = replace(
        loaded.card,
        settings=model_settings(config),
        class_names=names,
        versions=package_versions("fcos-torch", "torch", "timm"),
    )
    save_model(output, model.state_dict(), card)
    return card
