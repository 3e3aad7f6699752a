"""Images in a page: small JPEGs with boxes drawn over them, and crops.

The boxes are SVG, so a page can hide them by score and give them tooltips.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fcos.data.annotations import Annotations, Record
from fcos.data.image import read_image
from fcos.metrics.analysis import Analysis
from fcos.metrics.rows import labels_of, xyxy_of
from fcos.predict.draw import as_base64, class_color, hidden_pixels, label_font, place_of_label, readable_on
from fcos.terminal import printable_line

LONGEST_SIDE = 480  # of an example image, pixels
CROP_SIDE = 170  # of a crop
CROP_MARGIN = 0.6  # fraction of the box's longer side, on each side
JPEG_QUALITY = 75
MIN_SCORE = 0.05  # of detections, the minimum of the threshold slider
FEW_OBJECTS = 8  # if an image has more, labels are smaller
MAX_DETECTIONS = 60  # of an example image
FONT_TO_MEASURE = 32  # pixels
OUTCOMES = {1: "correct", 0: "wrong", -1: "not counted"}


@dataclass(frozen=True)
class Box:
    """A box on an image, in its pixels, with its label.

    Attributes:
        text: the label.
        title: its tooltip.
        text_x, text_y: start of the label's baseline (`with_labels`).
        score: of a detection; None for ground truth.
        found_with: score of the detection that matches this object, -1 if none does; None for detections, and
            for objects that evaluation ignores.
        is_wrong: a detection that matches no object.
        is_ignored: a detection that evaluation ignores.
    """

    x: float
    y: float
    width: float
    height: float
    text: str
    title: str
    color: str
    text_color: str
    text_x: float = 0.0
    text_y: float = 0.0
    score: float | None = None
    found_with: float | None = None
    is_wrong: bool = False
    is_ignored: bool = False


@dataclass(frozen=True)
class Pane:
    """One view of an image: ground truth, or detections."""

    title: str
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Example:
    """An image with its views.

    Attributes:
        key: unique in the page.
        jpeg: base64.
        width, height: of the JPEG, in which the boxes are given.
        threshold: minimum score of shown detections.
        notes: further lines below the image.
        tags: for the filters of the page.
    """

    key: str
    name: str
    jpeg: str
    width: int
    height: int
    font_size: float
    line_width: float
    panes: tuple[Pane, ...]
    threshold: float
    caption: str = ""
    notes: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Crop:
    """A crop of an image around a box, and the key of the example with the whole image, if there is one.

    Attributes:
        annotated: the annotated boxes that are visible in it.
    """

    jpeg: str
    width: int
    height: int
    box: Box
    annotated: tuple[Box, ...]
    caption: str
    name: str
    example: str | None


class ReportImage:
    """A small copy of an image, and how to scale boxes to it."""

    def __init__(self, record: Record, annotations: Annotations) -> None:
        self.record, self.annotations = record, annotations
        self.original = Image.fromarray(read_image(record.path).permute(1, 2, 0).numpy())
        self.small = self.original.copy()
        self.small.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        self.scale = np.array(self.small.size * 2) / np.array(self.original.size * 2)
        crowded = len(record.labels) > FEW_OBJECTS
        self.font_size = max(self.small.size) / (34 if crowded else 26)

    def box(self, box_xyxy: Any, label: int, text: str, title: str = "", **more: Any) -> Box:
        """A box of the original image."""
        scaled = np.asarray(box_xyxy) * self.scale
        return place_box(scaled, text, title or text, class_color(label), self.small.size, **more)

    def pane(self, title: str, boxes: Sequence[Box]) -> Pane:
        """A view with these boxes, the most important last; their labels hide little of each other."""
        return Pane(title, with_labels(boxes, self.small.size, self.font_size))

    def ground_truth(self, first_box: int, told: Mapping[int, str], analysis: Analysis | None = None) -> Pane:
        """The annotated objects.

        Args:
            first_box: index of the first box of this image among all.
            told: why boxes (by index among all) were missed.
            analysis: to mark missed objects; None: all are drawn alike.
        """
        boxes = []
        for place, (box_xyxy, label) in enumerate(
            zip(self.record.boxes_xyxy, self.record.labels.tolist(), strict=True)
        ):
            name = title = self.annotations.class_names[label]
            found_with = None
            if self.record.is_crowd[place] or self.record.is_difficult[place]:
                title += ", crowd or difficult: not counted"
            elif analysis is not None:
                found_with = round(float(analysis.found_with[first_box + place]), 4)
                why = told.get(first_box + place, "")
                title += f", missed: {why}" if why else f", detected with {found_with:.2f}"
            boxes.append(self.box(box_xyxy, label, name, title, found_with=found_with))
        return self.pane("ground truth", boxes)

    def detections(self, title: str, rows: NDArray[np.int64], analysis: Analysis) -> Pane:
        """The detections; `rows` of the analysis, best score first."""
        rows = rows[analysis.rows["score"][rows] >= MIN_SCORE][:MAX_DETECTIONS]
        rows = rows[::-1]  # draw the best last, on top of the others
        found, is_right = analysis.rows[rows], analysis.is_right[rows].tolist()
        labels = labels_of(self.annotations, found).tolist()
        boxes = []
        for box, label, score, right in zip(xyxy_of(found), labels, found["score"], is_right, strict=True):
            text = f"{self.annotations.class_names[label]} {score:.2f}"
            words = f"{text}, {OUTCOMES[right]}"
            marks = {"is_wrong": right == 0, "is_ignored": right < 0}
            boxes.append(self.box(box, label, text, words, score=round(float(score), 4), **marks))
        return self.pane(title, boxes)

    def example(self, key: str, panes: Sequence[Pane], threshold: float, **more: Any) -> Example:
        """The image with these views."""
        return Example(
            key=key,
            name=self.record.path.name,
            jpeg=as_base64(self.small, quality=JPEG_QUALITY),
            width=self.small.width,
            height=self.small.height,
            font_size=round(self.font_size, 1),
            line_width=round(max(self.small.size) / 200, 1),
            panes=tuple(panes),
            threshold=threshold,
            **more,
        )

    def crop(self, box_xyxy: NDArray[np.float64], label: int, caption: str, example: str | None) -> Crop:
        """A crop around a box of the original image."""
        x1, y1, x2, y2 = (float(side) for side in box_xyxy)
        margin = max(CROP_MARGIN * max(x2 - x1, y2 - y1), 8)
        window = (
            int(max(0, x1 - margin)),
            int(max(0, y1 - margin)),
            int(min(self.original.width, np.ceil(x2 + margin))),
            int(min(self.original.height, np.ceil(y2 + margin))),
        )
        piece = self.original.crop(window)
        factor = CROP_SIDE / max(piece.size)  # enlarges small objects, so that they are recognizable
        piece = piece.resize((max(1, round(piece.width * factor)), max(1, round(piece.height * factor))))
        inside, *others = (np.stack([box_xyxy, *self.record.boxes_xyxy]) - np.array(window[:2] * 2)) * factor
        names = [self.annotations.class_names[other] for other in self.record.labels]
        annotated = [
            place_box(other, "", f"annotated: {name}", class_color(other_label), piece.size)
            for other, name, other_label in zip(others, names, self.record.labels.tolist(), strict=True)
        ]
        return Crop(
            jpeg=as_base64(piece, quality=JPEG_QUALITY),
            width=piece.width,
            height=piece.height,
            box=place_box(inside, "", caption, class_color(label), piece.size),
            annotated=tuple(box for box in annotated if box.width and box.height),
            caption=caption,
            name=self.record.path.name,
            example=example,
        )


def place_box(
    box_xyxy: Any,
    text: str,
    title: str,
    rgb: tuple[int, int, int],
    size: tuple[int, int],
    **more: Any,
) -> Box:
    """A box clipped to an image of this size (width, height)."""
    x1, y1, x2, y2 = (round(float(side), 1) for side in np.clip(box_xyxy, 0, (*size, *size)))
    return Box(
        x=x1,
        y=y1,
        width=round(x2 - x1, 1),
        height=round(y2 - y1, 1),
        text=text,
        title=title,
        color="#{:02x}{:02x}{:02x}".format(*rgb),
        text_color=readable_on(rgb),
        **more,
    )


def with_labels(boxes: Sequence[Box], size: tuple[int, int], font_size: float) -> tuple[Box, ...]:
    """The boxes with their labels placed as in `draw_boxes`; the last box, drawn on top, chooses first.

    Args:
        boxes: in pixels of the image.
        size: width, height of the image.
        font_size: pixels; the browser's font is unknown, but hardly wider than ours.
    """
    taken: list[tuple[int, int, int, int]] = []
    placed = []
    for box in reversed(boxes):
        if box.text:
            text = printable_line(box.text)
            length = label_font(text, FONT_TO_MEASURE).getlength(text) / FONT_TO_MEASURE
            width, height = math.ceil((length + 0.3) * font_size), math.ceil(1.2 * font_size)
            sides = (box.x, box.y, box.x + box.width, box.y + box.height)
            x1, y1, x2, y2 = (round(side) for side in sides)
            x, y = place_of_label((width, height), (x1, y1, x2 - 1, y2 - 1), size, taken)
            place = (x, y, x + width, y + height)
            if len(boxes) > FEW_OBJECTS and hidden_pixels(place, taken):
                placed.append(replace(box, text=""))  # its tooltip still shows it
                continue
            taken.append(place)
            box = replace(box, text_x=round(x + 0.15 * font_size, 1), text_y=round(y + 0.95 * font_size, 1))
        placed.append(box)
    return tuple(reversed(placed))
