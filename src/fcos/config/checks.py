"""Rules between settings, and checks against files and class names.

`broken_rules` runs when a config is loaded, after each value has been checked separately. Training calls the
`check_...` functions, which check files and names, before it starts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from fcos.errors import ConfigError
from fcos.files import without_part
from fcos.terminal import counted

if TYPE_CHECKING:
    from fcos.config import TrainConfig

NAMED_WEIGHTS = ("imagenet", "everyday", "coco")  # values of `pretrain` that are not paths
DATA_PATHS = ("root_train", "list_train", "root_eval", "list_eval", "name_file")


class Broken(NamedTuple):
    """A violated rule between settings."""

    keys: tuple[str, ...]  # the settings involved; their lines are shown
    what: str
    fix: str


def broken_rules(config: TrainConfig) -> Iterator[Broken]:
    """Every rule between settings that this config violates."""
    rules = (_levels, _backbone, _image_size, _schedule, _devices, _batch, _settings_without_effect)
    for rule in rules:
        yield from rule(config)


def _levels(config: TrainConfig) -> Iterator[Broken]:
    strides, ranges = config.strides, config.regress_ranges
    doubled = all(b == 2 * a for a, b in pairwise(strides))
    if strides[:1] not in ([4], [8]) or strides[-1] < 32 or not doubled:
        yield Broken(
            ("strides",),
            f"strides {strides} must start with 4 or 8 and double from level to level, up to 32 or more",
            "give for example [8, 16, 32, 64, 128]",
        )
    if any(b <= a for a, b in pairwise([0, *ranges])):
        yield Broken(
            ("regress_ranges",), f"regress_ranges {ranges} must be positive and increasing", "sort them"
        )
    if len(ranges) != len(strides) - 1:
        yield Broken(
            ("regress_ranges", "strides"),
            f"regress_ranges has {counted(len(ranges), 'entry', 'entries')} for "
            f"{counted(len(strides), 'stride')}",
            f"give {len(strides) - 1}: one per level except the last, which has no upper limit",
        )


def _backbone(config: TrainConfig) -> Iterator[Broken]:
    for key, count in (("backbone_channels", 5), ("pixel_mean", 3), ("pixel_std", 3)):
        numbers = getattr(config, key)
        if numbers is not None and (len(numbers) != count or (key != "pixel_mean" and min(numbers) <= 0)):
            above = "" if key == "pixel_mean" else " above 0"
            yield Broken((key,), f"{key} {numbers} is not {count} numbers{above}", f"give {count}, or null")


def _image_size(config: TrainConfig) -> Iterator[Broken]:
    if config.short_side is not None and config.short_side > config.view_size:
        yield Broken(
            ("short_side", "view_size"),
            f"short_side {config.short_side} is more than view_size {config.view_size}, the longest side",
            f"set view_size to at least {config.short_side}, or short_side to null",
        )


def _schedule(config: TrainConfig) -> Iterator[Broken]:
    entries = config.lr_schedule
    if any(b <= a for a, b in pairwise([0, *entries])):
        yield Broken(("lr_schedule",), f"lr_schedule {entries} must be positive and increasing", "sort it")
    if any(entry < 1 for entry in entries) and any(entry >= 1 for entry in entries):
        yield Broken(
            ("lr_schedule",),
            f"lr_schedule {entries} mixes fractions of training (below 1) with iterations",
            "give only iterations, such as [60000, 80000], or only fractions, such as [0.67, 0.89]",
        )


def _devices(config: TrainConfig) -> Iterator[Broken]:
    device = config.device
    if isinstance(device, list) and (not device or min(device) < 0 or len(set(device)) < len(device)):
        yield Broken(
            ("device",), f"device {device} must be a list of distinct GPU numbers", "give for example [0, 1]"
        )


def _batch(config: TrainConfig) -> Iterator[Broken]:
    num_devices = len(config.device) if isinstance(config.device, list) else 1  # "auto": unknown here
    if config.device == "cpu":
        num_devices = config.num_processes
    try:
        split_batch(config.nbatch_train, num_devices, config.micro_batch)
    except ConfigError as error:
        yield Broken(("nbatch_train", "micro_batch", "device", "num_processes"), error.what, error.fix)


def _settings_without_effect(config: TrainConfig) -> Iterator[Broken]:
    """Settings that another setting disables must not be ignored silently."""
    no_quality, whole_box = config.quality == "none", not config.center_sampling
    cosine, adamw, not_cpu = config.lr_policy == "cosine", config.optimizer == "adamw", config.device != "cpu"
    static, by_predictions = config.assigner == "static", config.assigner in ("simota", "tal", "dsla")
    never_static = not static and config.static_start == 0
    switched_off = [
        ("quality_tower", no_quality, "quality", '"centerness" or "iou"'),
        ("center_radius", whole_box, "center_sampling", "true"),
        ("center_sampling", never_static, "assigner", '"static"'),
        ("center_radius", never_static, "assigner", '"static"'),
        ("static_start", static, "assigner", '"atss", "simota", "tal" or "dsla"'),
        ("class_target", by_predictions, "assigner", '"static" or "atss"'),
        ("mix_until", not config.mixes_images, "mosaic", "more than 0 (or mixup, or copy_paste)"),
        ("focal_alpha", config.class_loss == "qfl", "class_loss", '"focal" or "vfl"'),
        ("lr_schedule", cosine, "lr_policy", '"step"'),
        ("lr_gamma", cosine, "lr_policy", '"step"'),
        ("momentum", adamw, "optimizer", '"sgd"'),
        ("num_processes", not_cpu, "device", '"cpu"'),
    ]
    for key, off, switch, needed in switched_off:
        if off and getattr(config, key) != type(config).model_fields[key].default:
            yield Broken(
                (key, switch),
                f'"{key}" has no effect while "{switch}" is {json.dumps(getattr(config, switch))}',
                f'remove "{key}", or set "{switch}" to {needed}',
            )


def split_batch(
    batch_size: int, num_devices: int, micro_batch: int | Literal["auto"] | None
) -> tuple[int, int]:
    """Split the batch of an optimizer step.

    Args:
        batch_size: images per optimizer step, over all devices.
        num_devices: devices to split the batch over.
        micro_batch: images per forward pass on one device; None, or "auto" until it is known: the device's
            whole share.

    Returns:
        Images per forward pass on one device, and the number of accumulated passes.
    """
    micro_batch = None if micro_batch == "auto" else micro_batch
    unit = num_devices * (micro_batch or 1)
    if batch_size % unit == 0:
        share = batch_size // num_devices
        return micro_batch or share, share // (micro_batch or share)
    below = batch_size // unit * unit
    sizes = [size for size in (below, below + unit) if size > 0]
    devices = counted(num_devices, "device")
    micro = f" in micro-batches of {micro_batch}" if micro_batch else ""
    raise ConfigError(
        f"nbatch_train {batch_size} cannot be split evenly over {devices}{micro}",
        where="nbatch_train, micro_batch, device",
        fix=f"give nbatch_train {' or '.join(map(str, sizes))}",
    )


def check_paths(config: TrainConfig) -> None:
    """Reject a config without training data, or with missing files; the error lists every missing path."""
    problems = []
    if not config.list_train:
        problems.append(
            ConfigError(
                "there is no training data",
                where='setting "list_train"',
                fix="set list_train (annotations) and root_train (images), or use `fcos train FOLDER`",
            )
        )
    if config.patience and not config.list_eval:
        problems.append(
            ConfigError(
                '"patience" has no effect without evaluation data',
                where=config.origin("patience"),
                fix='set list_eval, or remove "patience"',
            )
        )
    raise_all([*problems, *missing_paths(config)])


def missing_paths(config: TrainConfig) -> Iterator[ConfigError]:
    """An error for each path in the settings that does not exist."""
    paths = {key: getattr(config, key) for key in DATA_PATHS}
    if isinstance(config.pretrain, str) and config.pretrain not in NAMED_WEIGHTS and not config.load:
        paths["pretrain"] = config.pretrain
    for key, path in paths.items():
        if path and not os.path.exists(without_part(path)):
            there = next((str(parent) for parent in Path(path).parents if parent.exists()), "none")
            yield ConfigError(
                f'"{key}": {path} does not exist',
                where=config.origin(key),
                fix=f"correct the path; its existing part is {there}",
            )


def check_classes(config: TrainConfig, class_names: Sequence[str]) -> None:
    """Reject `classes` that differs from the number of names, and `class_weights` for unknown names."""
    if unknown := [name for name in config.class_weights or () if name not in class_names]:
        raise ConfigError(
            f'"class_weights" has {", ".join(map(json.dumps, unknown))}, which the data does not have',
            where=config.origin("class_weights"),
            fix=f"the classes are {', '.join(map(json.dumps, class_names))}",
        )
    if config.classes is None or config.classes == len(class_names):
        return
    named = counted(len(class_names), "class name")
    background = " (background is not counted)" if config.classes == len(class_names) + 1 else ""
    raise ConfigError(
        f'"classes" is {config.classes}, but the data has {named}{background}',
        where=config.origin("classes"),
        fix=f'give "classes": {len(class_names)}, or correct the names in '
        f"{config.name_file or config.list_train}",
    )


def raise_all(problems: Sequence[ConfigError]) -> None:
    """Raise one error for all problems; do nothing if there are none."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise ConfigError("\n".join([f"{len(problems)} settings are wrong", *map(str, problems)]))
