"""Label assignment drawn on images: the object assigned to each point of each level, and its predictions.

The assigner is the one used in training (`model/assign.py`), at the size of the resized images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

from fcos.config import TrainConfig
from fcos.config.conventions import CONVENTIONS
from fcos.data.annotations import Annotations
from fcos.metrics.coverage import place_objects
from fcos.model.build import build_fixed_assigner
from fcos.model.points import level_name
from fcos.predict.draw import as_base64, class_color
from fcos.report.examples import Example, Pane, ReportImage
from fcos.report.second_look import PointAnswers

MAX_OBJECTS = 25  # in an image, to be readable
MIN_SCORE = 0.1  # of points drawn
MAX_CELLS = 400  # per level: those with the best scores


@dataclass(frozen=True)
class Cell:
    """A point: the square of its stride around it, in pixels of the example image."""

    x: float
    y: float
    side: float
    color: str
    opacity: float
    title: str


@dataclass(frozen=True)
class HeatMap:
    """A value at every point of a level, one pixel per point; sides are pixels of the example image."""

    png: str  # base64
    width: float
    height: float
    largest: float


@dataclass(frozen=True)
class Level:
    """Targets and predictions of a level.

    Attributes:
        range: distances that it regresses, as text.
        num_objects: objects assigned to it.
        learned: positive points; opacity is centerness, colors are those of the objects.
        predicted: points with a score; opacity is the score, colors are those of the classes.
        quality: centerness (or predicted IoU) at every point, if there is a detector.
    """

    name: str
    stride: int
    range: str
    num_objects: int
    learned: tuple[Cell, ...]
    predicted: tuple[Cell, ...]
    quality: HeatMap | None


def assigned_image(
    annotations: Annotations, image: int, config: TrainConfig, answers: PointAnswers | None = None
) -> tuple[Example, tuple[Level, ...]]:
    """An annotated image with the targets of each level, and the predictions of a detector."""
    view = _View(annotations, image, config)
    levels = []
    first_points = np.cumsum(view.grid.points_per_level)[:-1]
    for level, points in enumerate(np.split(np.arange(len(view.matched)), first_points)):
        positive = points[view.matched[points] >= 0]
        predicted = view.predicted_cells(points, answers) if answers is not None else ()
        quality = answers[2] if predicted and answers is not None else None
        levels.append(
            Level(
                name=level_name(config.strides[level]),
                stride=config.strides[level],
                range=range_words(config, level),
                num_objects=len(np.unique(view.matched[positive])),
                learned=tuple(view.learned_cell(point) for point in positive.tolist()),
                predicted=predicted,
                quality=None if quality is None else view.heat_map(level, points, quality),
            )
        )
    unused = [level.name for level in levels if not level.learned]
    caption = f"at {view.size_hw[1]} x {view.size_hw[0]} pixels"
    if unused:
        caption += f"; {', '.join(unused)} have no positive points here"
    panes = [view.objects_pane()]
    return view.image.example(f"assigned-{image + 1}", panes, 0.0, caption=caption), tuple(levels)


def choose_assigned(annotations: Annotations, without: NDArray[np.bool_], most: int) -> list[int]:
    """Instructive images: first one with objects without a positive point, then many object sizes."""
    counts, images = np.diff(annotations.first_box), annotations.image_of_box
    num_without = np.bincount(images[without], minlength=len(annotations))
    longest = (annotations.boxes_xyxy[:, 2:] - annotations.boxes_xyxy[:, :2]).max(axis=1).clip(min=1)
    largest, smallest = np.ones(len(annotations)), np.full(len(annotations), np.inf)
    np.maximum.at(largest, images, longest)
    np.minimum.at(smallest, images, longest)
    readable = np.flatnonzero((counts > 0) & (counts <= MAX_OBJECTS))
    by_sizes = readable[np.argsort(-(largest / smallest)[readable], kind="stable")]
    by_without = readable[np.argsort(-num_without[readable], kind="stable")]
    first = [int(image) for image in by_without[:1] if num_without[image]]
    return list(dict.fromkeys([*first, *map(int, by_sizes[:most])]))[:most]


def range_words(config: TrainConfig, level: int) -> str:
    """The distances that a level regresses, as text."""
    ends = (0.0, *config.regress_ranges)
    if level == len(config.regress_ranges):
        return f"distances above {ends[-1]:g}"
    return f"distances {ends[level]:g} to {ends[level + 1]:g}"


class _View:
    """An image with its points and targets, which draws them."""

    def __init__(self, annotations: Annotations, image: int, config: TrainConfig) -> None:
        self.record = annotations[image]
        self.image = ReportImage(self.record, annotations)
        self.size_hw, self.grid, boxes, self.objects = place_objects(self.record, config)
        labels = torch.from_numpy(self.record.labels[self.objects])
        self.targets = build_fixed_assigner(config)(self.grid, [boxes], [labels])
        # The square of a point is its cell of the feature map.
        self.cell_begin = 0.0 if CONVENTIONS[config.rules].points == "corner" else 0.5
        self.matched = self.targets.matched[0].numpy()
        small = self.image.small
        self.scale = (small.width / self.size_hw[1], small.height / self.size_hw[0])  # x, y

    def name(self, label: int) -> str:
        """The name of a class."""
        return self.image.annotations.class_names[label]

    def objects_pane(self) -> Pane:
        """The objects, each in its own color; dashed if it has no positive point."""
        learned = set(self.objects[np.unique(self.matched[self.matched >= 0])].tolist())
        boxes = []
        for place, (box, label) in enumerate(
            zip(self.record.boxes_xyxy, self.record.labels.tolist(), strict=True)
        ):
            name = self.name(label)
            title = name if place in learned else f"{name}: no positive point"
            boxes.append(self.image.box(box, place, name, title, is_wrong=place not in learned))
        return self.image.pane("objects", boxes)

    def learned_cell(self, point: int) -> Cell:
        """A positive point."""
        place = int(self.objects[int(self.matched[point])])
        centerness = float(self.targets.centerness[0, point])
        left, top, right, bottom = (round(float(side)) for side in self.targets.distances[0, point])
        words = f"{self.name(int(self.record.labels[place]))}: centerness {centerness:.2f}"
        sides = f"left {left}, top {top}, right {right}, bottom {bottom}"
        return self._cell(point, place, 0.1 + 0.8 * centerness, f"{words}; {self._place(point)}; {sides}")

    def heat_map(self, level: int, points: NDArray[np.int64], quality: NDArray[np.float32]) -> HeatMap:
        """The quality of a level's points, row by row."""
        (height, width), values = self.grid.level_sizes[level], quality[points]
        stride = float(self.grid.strides[points[0]])
        image = Image.fromarray((255 * values).round().astype(np.uint8).reshape(height, width))
        image.putpalette(colormaps["viridis"](np.arange(256), bytes=True)[:, :3].tobytes())
        return HeatMap(
            png=as_base64(image, "PNG"),
            width=round(width * stride * self.scale[0], 1),
            height=round(height * stride * self.scale[1], 1),
            largest=float(values.max()),
        )

    def predicted_cells(self, points: NDArray[np.int64], answers: PointAnswers) -> tuple[Cell, ...]:
        """Points whose best class has a score of at least `MIN_SCORE`."""
        scores, labels, _ = answers
        assert len(scores) == len(self.matched), "the same points"
        predicted = points[scores[points] >= MIN_SCORE]
        predicted = predicted[np.argsort(-scores[predicted], kind="stable")][:MAX_CELLS]
        return tuple(
            self._cell(
                point,
                int(labels[point]),
                float(scores[point]),
                f"{self.name(int(labels[point]))} {scores[point]:.2f}; {self._place(point)}",
            )
            for point in predicted.tolist()
        )

    def _place(self, point: int) -> str:
        x, y = (float(value) for value in self.grid.points[point])
        return f"point {x:g}, {y:g}"

    def _cell(self, point: int, color: int, opacity: float, title: str) -> Cell:
        x, y = (float(value) for value in self.grid.points[point])
        stride = float(self.grid.strides[point])
        return Cell(
            x=round((x - self.cell_begin * stride) * self.scale[0], 1),
            y=round((y - self.cell_begin * stride) * self.scale[1], 1),
            side=round(stride * self.scale[0], 1),
            color="#{:02x}{:02x}{:02x}".format(*class_color(color)),
            opacity=round(opacity, 2),
            title=title,
        )
