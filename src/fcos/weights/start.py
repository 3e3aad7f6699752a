"""Start training from a detector."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fcos.config import TrainConfig
from fcos.config.checks import broken_rules
from fcos.errors import ConfigError
from fcos.model.fcos import FCOS
from fcos.weights.load import LATER_SETTINGS, MODEL_SETTINGS, LoadedModel, load_model, model_file_of
from fcos.weights.model_file import is_model_file, load_tensors
from fcos.weights.published.coco import coco_file
from fcos.weights.published.layouts import layout_of
from fcos.weights.published.opening import is_published, open_state

# Settings of a training run: for example, the number of evaluated detections does not depend on the weights.
NOT_ADOPTED = ("model", "score_threshold", "candidates_per_level", "detections_per_image", *LATER_SETTINGS)
QUALITY = "head.quality."  # the quality branch, which training may add or remove
FINER = re.compile(r"^(pyramid\.(?:lateral|output)\.)(\d+)")  # layers that are numbered from the finest level
# Tensors with one row per class.
CLASS_TENSORS = ("head.logits.weight", "head.logits.bias")


def find_start(config: TrainConfig) -> LoadedModel | None:
    """The detector in `pretrain`; None if it is a backbone's file, true or false."""
    if not isinstance(config.pretrain, str) or config.pretrain == "imagenet":
        return None
    path = coco_file() if config.pretrain == "coco" else model_file_of(Path(config.pretrain))
    if is_model_file(path) or (is_published(path) and layout_of(open_state(path).tensors) is not None):
        return load_model(path)
    return None


def adopt_settings(config: TrainConfig, start: LoadedModel) -> tuple[TrainConfig, list[str]]:
    """`adopt` the settings of a detector."""
    return adopt(config, start.config.model_dump(), start.path)


def adopt(config: TrainConfig, settings: Mapping[str, Any], source: Path) -> tuple[TrainConfig, list[str]]:
    """Adopt a detector's settings where the user gave none; also returns the changes as text.

    Args:
        settings: of the detector, or of the run that started from it.
        source: the file with these settings.

    Raises:
        ConfigError: the user's settings conflict with the adopted ones.
    """
    keys = [key for key in MODEL_SETTINGS if key not in NOT_ADOPTED]
    changes = {
        key: settings[key]
        for key in keys
        if config.origin(key).split(" ")[0] in ("default", "preset")
        and getattr(config, key) != settings.get(key, getattr(config, key))
    }
    adopted = config.model_copy(update=changes)
    # model_copy shares private attributes: without this, the caller's config would change too
    adopted._origins = config._origins | {key: f"file {source}" for key in changes}
    if broken := next(broken_rules(adopted), None):
        raise ConfigError(broken.what, where=f"settings adopted from {source}", fix=broken.fix)
    return adopted, [f"{key} {json.dumps(value)}" for key, value in changes.items()]


def load_start(model: FCOS, class_names: Sequence[str], start: LoadedModel) -> list[str]:
    """Load a detector's weights into a model with other classes; returns the classes that both have.

    The outputs of those classes are copied by name; other outputs keep their initial weights, as does a
    quality branch that the detector does not have.
    """
    fresh, tensors = model.state_dict(), dict(start.model.state_dict())
    known = [name for name in class_names if name in start.card.class_names]
    rows = torch.tensor([start.card.class_names.index(name) for name in known], dtype=torch.int64)
    places = torch.tensor([list(class_names).index(name) for name in known], dtype=torch.int64)
    for key in CLASS_TENSORS:
        if tensors[key].shape[1:] == fresh[key].shape[1:]:
            tensors[key] = fresh[key].clone().index_copy_(0, places, tensors[key][rows])
    if model.strides[0] < start.model.strides[0]:
        tensors = _with_finer_level(tensors, fresh)
    tensors = {key: value for key, value in tensors.items() if not key.startswith(QUALITY) or key in fresh}
    tensors |= {k: v for k, v in fresh.items() if k.startswith(QUALITY) and start.model.head.quality is None}
    tensors |= {"pixel_mean": model.pixel_mean, "pixel_std": model.pixel_std}
    load_tensors(model, tensors, start.path)
    return known


def _with_finer_level(tensors: dict[str, Tensor], fresh: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a detector with an additional finest level, whose layers are newly initialized."""
    shifted = {FINER.sub(lambda m: f"{m[1]}{int(m[2]) + 1}", key): value for key, value in tensors.items()}
    scales = torch.cat([tensors["head.scales"][:1], tensors["head.scales"]])
    pyramid = {key: value for key, value in fresh.items() if key.startswith("pyramid.")}
    return pyramid | shifted | {"head.scales": scales}
