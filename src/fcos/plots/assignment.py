"""FCOS's own view of a picture: which points of which level learn which object, and how central they lie.

The points are those of the assigner that trains (`model/targets.py`), at the size of the resized pictures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fcos.data.annotations import Annotations, Record
from fcos.data.batch import padded_size
from fcos.data.loader import PADDING_MULTIPLE
from fcos.data.transforms import resized_size
from fcos.metrics.coverage import PointRules
from fcos.model.points import PointGrid, make_grid
from fcos.model.targets import StaticAssigner, Targets
from fcos.plots.boxes import class_colour
from fcos.plots.examples import Example, Pane, Picture

MAX_OBJECTS = 25  # of a picture that is easy to read


@dataclass(frozen=True)
class Cell:
    """A positive point: the square of its stride around it, in pixels of the example picture."""

    x: float
    y: float
    side: float
    colour: str
    opacity: float
    title: str


@dataclass(frozen=True)
class Level:
    """The positive points of a level.

    Attributes:
        range: which distances it regresses, in words.
        num_objects: that it learns.
    """

    name: str
    stride: int
    range: str
    num_objects: int
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Assigned:
    """A picture with its objects, and each level with its positive points."""

    example: Example
    levels: tuple[Level, ...]


def assign_picture(record: Record, rules: PointRules) -> tuple[PointGrid, Targets, NDArray[np.int64]]:
    """The points of a picture, what they learn, and which object of the record each index of `matched` is."""
    assert record.size_hw is not None, "checked annotations have sizes"
    size_hw = resized_size(record.size_hw, rules.short_side, rules.view_size)
    objects = np.flatnonzero(~record.is_crowd)
    scale_hw = np.array(size_hw) / np.array(record.size_hw)
    boxes = torch.from_numpy(record.boxes_xyxy[objects] * scale_hw[[1, 0, 1, 0]]).float()
    grid = make_grid(padded_size([size_hw], PADDING_MULTIPLE), rules.strides)
    assigner = StaticAssigner(rules.regress_ranges, rules.center_radius)
    return grid, assigner(grid, [boxes], [torch.from_numpy(record.labels[objects])]), objects


def assigned_picture(annotations: Annotations, image: int, rules: PointRules) -> Assigned:
    """A picture of the annotations as FCOS learns it."""
    record = annotations[image]
    picture = Picture(record, annotations)
    grid, targets, objects = assign_picture(record, rules)
    matched = targets.matched[0].numpy()
    is_learned = np.zeros(len(record.labels), bool)
    is_learned[objects[np.unique(matched[matched >= 0])]] = True
    levels, first = [], 0
    for level, count in enumerate(grid.points_per_level):
        positive = first + np.flatnonzero(matched[first : first + count] >= 0)
        cells = tuple(_cell(int(point), picture, grid, targets, objects, rules) for point in positive)
        levels.append(
            Level(
                name=f"P{round(math.log2(rules.strides[level]))}",
                stride=rules.strides[level],
                range=range_words(rules, level),
                num_objects=len(np.unique(matched[positive])),
                cells=cells,
            )
        )
        first += count
    unused = [level.name for level in levels if not level.cells]
    caption = f"at {' x '.join(map(str, _input_size(record, rules)[::-1]))} pixels"
    if unused:
        caption += f"; {', '.join(unused)} learn nothing here"
    example = picture.example(
        f"assigned-{image + 1}", [_objects(picture, is_learned)], threshold=0.0, caption=caption
    )
    return Assigned(example, tuple(levels))


def choose_assigned(annotations: Annotations, without: NDArray[np.bool_], most: int) -> list[int]:
    """Pictures that show much: first one with objects that no point learns, then those of many sizes."""
    counts = np.diff(annotations.first_box)
    images = np.repeat(np.arange(len(annotations)), counts)
    num_without = np.bincount(images[without], minlength=len(annotations))
    longest = (annotations.boxes_xyxy[:, 2:] - annotations.boxes_xyxy[:, :2]).max(axis=1).clip(min=1)
    largest, smallest = np.ones(len(annotations)), np.full(len(annotations), np.inf)
    np.maximum.at(largest, images, longest)
    np.minimum.at(smallest, images, longest)
    is_readable = (counts > 0) & (counts <= MAX_OBJECTS)
    by_sizes = np.flatnonzero(is_readable)[np.argsort(-(largest / smallest)[is_readable], kind="stable")]
    by_without = np.flatnonzero(is_readable)[np.argsort(-num_without[is_readable], kind="stable")]
    first = [int(image) for image in by_without[:1] if num_without[image]]
    return list(dict.fromkeys([*first, *map(int, by_sizes[:most])]))[:most]


def range_words(rules: PointRules, level: int) -> str:
    """Which distances a level regresses."""
    ends = (0.0, *rules.regress_ranges)
    if level == len(rules.regress_ranges):
        return f"distances from {ends[-1]:g} on"
    return f"distances {ends[level]:g} to {ends[level + 1]:g}"


def _input_size(record: Record, rules: PointRules) -> tuple[int, int]:
    assert record.size_hw is not None
    return resized_size(record.size_hw, rules.short_side, rules.view_size)


def _objects(picture: Picture, is_learned: NDArray[np.bool_]) -> Pane:
    """The objects, each in a colour of its own; dashed where no point learns it."""
    record, boxes = picture.record, []
    for place, (box_xyxy, label) in enumerate(zip(record.boxes_xyxy, record.labels.tolist(), strict=True)):
        name = picture.annotations.class_names[label]
        title = name if is_learned[place] else f"{name}: no point learns it"
        boxes.append(picture.box(box_xyxy, place, name, title, is_wrong=not is_learned[place]))
    return Pane("objects", tuple(boxes))


def _cell(
    point: int,
    picture: Picture,
    grid: PointGrid,
    targets: Targets,
    objects: NDArray[np.int64],
    rules: PointRules,
) -> Cell:
    place = int(objects[int(targets.matched[0, point])])
    height, width = _input_size(picture.record, rules)
    scale_x, scale_y = picture.small.width / width, picture.small.height / height
    x, y = (float(value) for value in grid.points[point])
    stride, centerness = float(grid.strides[point]), float(targets.centerness[0, point])
    left, top, right, bottom = (round(float(value)) for value in targets.distances[0, point])
    name = picture.annotations.class_names[picture.record.labels[place]]
    return Cell(
        x=round((x - stride / 2) * scale_x, 1),
        y=round((y - stride / 2) * scale_y, 1),
        side=round(stride * scale_x, 1),
        colour="#{:02x}{:02x}{:02x}".format(*class_colour(place)),
        opacity=round(0.1 + 0.8 * centerness, 2),
        title=f"{name}: centerness {centerness:.2f}; point {x:g}, {y:g}; left {left}, top {top}, "
        f"right {right}, bottom {bottom}",
    )
