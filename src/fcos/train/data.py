"""The data of a run: reading it, and checking it (on the first process; the same on every machine)."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fcos.config import TrainConfig
from fcos.config.checks import check_classes
from fcos.data.annotations import Annotations
from fcos.data.check import CheckReport, check, drop_invalid, require_boxes
from fcos.data.formats import find_name_file, read_annotations, read_names, read_with_classes_of
from fcos.data.image_files import common_images
from fcos.data.loader import build_eval_transform
from fcos.data.names import with_classes_of
from fcos.data.summary import DataSummary, summarize
from fcos.errors import DatasetError
from fcos.terminal import counted, track
from fcos.train.checkpoint import fingerprints
from fcos.train.log import say

if TYPE_CHECKING:
    from lightning_fabric import Fabric

MAX_WARNINGS = 5  # printed for each data set


def load_data(
    config: TrainConfig, fabric: Fabric
) -> tuple[Annotations, Annotations | None, dict[str, DataSummary]]:
    """Training and evaluation annotations, ready to use, and their summaries.

    The first process checks them first.
    """
    name_file = name_file_of(config)
    if name_file and not config.name_file:
        say(fabric, f"class names from {name_file}")
    if name_file and not read_names(name_file)[1]:
        say(fabric, f"{name_file} does not start with 'background', so every line is read as a class")
    train_set = read_train_set(config)
    check_classes(config, train_set.class_names)
    train_set, report = usable(train_set, "training", config, fabric)
    cards = {"training": summarize(train_set, report)}
    if config.boxarea_th:
        say(fabric, left_out(train_set, config))
    if not config.list_eval:
        say(fabric, "no list_eval: the model is not evaluated, and the result is the last model")
        return train_set, None, cards
    eval_set = read_eval_set(config, train_set.class_names)
    eval_set, eval_report = usable(eval_set, "evaluation", config, fabric)
    eval_set = with_classes_of(eval_set, train_set.class_names)
    if not eval_set.is_counted.any():
        raise DatasetError(
            "all boxes are difficult or crowd regions, so there is nothing to evaluate on",
            where=config.list_eval,
            fix="correct 'difficult', 'ignore' or 'iscrowd', or leave list_eval empty",
        )
    warnings = []
    if common := common_images(train_set, eval_set):
        warnings.append(
            f"{counted(len(common), 'image is', 'images are')} in both training and evaluation, for example "
            f"{common[0][0].name}: the AP will be too high"
        )
        say(fabric, f"warning: {warnings[0]}")
    cards["evaluation"] = summarize(eval_set, eval_report, warnings)
    return train_set, eval_set, cards


def read_train_set(config: TrainConfig) -> Annotations:
    """The annotations of `list_train`."""
    root = Path(config.root_train) if config.root_train else None
    source, names = Path(config.list_train), name_file_of(config)
    return read_annotations(source, root=root, names=names, format=config.data_format)


def read_eval_set(config: TrainConfig, class_names: Sequence[str]) -> Annotations:
    """The annotations of `list_eval`; if they have no class names, with those of the training data."""
    root = Path(config.root_eval) if config.root_eval else None
    source, names = Path(config.list_eval), name_file_of(config)
    return read_with_classes_of(source, class_names, root=root, names=names, format=config.data_format)


def name_file_of(config: TrainConfig) -> Path | None:
    """The file of class names from the settings, or the one next to a list."""
    if config.name_file:
        return Path(config.name_file)
    root = Path(config.root_train) if config.root_train else None
    return find_name_file(Path(config.list_train), root, config.data_format)


def check_same_everywhere(fabric: Fabric, train_set: Annotations, eval_set: Annotations | None) -> None:
    """Raise an error if the copies of the data differ between machines."""
    ours = fingerprints(train_set, eval_set)
    if fabric.broadcast(ours) != ours:
        raise DatasetError(
            "the annotations on this machine differ from those on the first machine",
            where=socket.gethostname(),
            fix="copy the same data to every machine",
        )


def usable(
    annotations: Annotations, what: str, config: TrainConfig, fabric: Fabric
) -> tuple[Annotations, CheckReport]:
    """The valid annotations, and the report of the check; problems are errors unless `skip_invalid`."""
    report = None
    if fabric.is_global_zero:
        report = check(annotations, track=partial(track, what=f"checking {what} images"))
        if not config.skip_invalid or report.of_all:
            report.raise_problems()
        if report.problems:
            say(fabric, f"{what}: {report.summary()} (skipped)")
        for warning in report.warnings[:MAX_WARNINGS]:
            say(fabric, f"warning: {warning}")
        if len(report.warnings) > MAX_WARNINGS:
            more = counted(len(report.warnings) - MAX_WARNINGS, "more warning")
            say(fabric, f"... and {more} of the {what} data: `fcos check {annotations.source}`")
    report = fabric.broadcast(report)
    assert report is not None
    left = drop_invalid(annotations, report)
    require_boxes(left)
    return left, report


def left_out(annotations: Annotations, config: TrainConfig) -> str:
    """Describe how many boxes are smaller than `boxarea_th` at full size."""
    transform = build_eval_transform(config)
    resized = [transform.resized_size((h, w)) for h, w in annotations.sizes_hw.tolist()]
    scale_hw = np.array(resized).reshape(-1, 2) / annotations.sizes_hw
    scale_xy = np.repeat(scale_hw[:, ::-1], np.diff(annotations.first_box), axis=0)
    sides = (annotations.boxes_xyxy[:, 2:] - annotations.boxes_xyxy[:, :2]) * scale_xy
    areas = sides.prod(axis=1)[~annotations.is_crowd]
    num_small = int((areas < config.boxarea_th).sum())
    return (
        f"{num_small} of {counted(len(areas), 'training box', 'training boxes')} "
        f"({num_small / max(1, len(areas)):.1%}) are smaller than {config.boxarea_th:g} square pixels after "
        "resizing and ignored in training; evaluation counts all boxes"
    )
