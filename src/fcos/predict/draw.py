"""Draw boxes with readable labels on an image.

Drawn with Pillow: `torchvision.utils.draw_bounding_boxes` lets labels run off the image, and not all versions
that we support can choose the text color by its background.
"""

from __future__ import annotations

import base64
import colorsys
import io
import math
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import get_data_path
from matplotlib.ft2font import FT2Font
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from fcos.data.annotations import Record
from fcos.predict.detections import Detections
from fcos.terminal import printable_line

Rgb = tuple[int, int, int]
Box = tuple[int, int, int, int]  # xyxy, pixels

GOLDEN_RATIO = 0.618034  # step around the color wheel that keeps hues well spread for any number of classes
MAX_NAME = 200  # characters of a label
MAX_ROWS = 8  # of labels stacked in a box
GAP = 8  # pixels between two images side by side


def class_color(label: int) -> Rgb:
    """The color of a class, independent of the other classes."""
    hue = (0.58 + label * GOLDEN_RATIO) % 1
    saturation, value = ((0.85, 0.95), (0.55, 1.0), (0.95, 0.7))[label // 8 % 3]
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, value))
    return red, green, blue


def draw_boxes(
    image: Image.Image,
    boxes_xyxy: ArrayLike,
    labels: ArrayLike,
    class_names: Sequence[str],
    scores: ArrayLike | None = None,
    track_ids: ArrayLike | None = None,
) -> Image.Image:
    """A copy of the image with boxes and the names of their classes.

    Args:
        image: any mode; the copy is RGB.
        boxes_xyxy: `(N, 4)` xyxy, pixels of `image`; tensor, array or list.
        labels: `(N,)` 0-based, index into `class_names`.
        class_names: names in any script for which this machine has a font.
        scores: `(N,)`, written after the names; the best is drawn last, on top.
        track_ids: `(N,)`, written before the names; -1: none.
    """
    drawn = image.convert("RGB")
    boxes = _inside(np.asarray(boxes_xyxy, np.float64).reshape(-1, 4), drawn.size)
    classes = np.asarray(labels, np.int64).reshape(-1).tolist()
    values = None if scores is None else np.asarray(scores, np.float64).reshape(-1)
    ids = None if track_ids is None else np.asarray(track_ids, np.int64).reshape(-1).tolist()
    draw = ImageDraw.Draw(drawn)
    font_size = _font_size(drawn.size)
    line_width = max(1, round(min(drawn.size) / 250))
    order = list(range(len(boxes))) if values is None else np.argsort(values, kind="stable").tolist()
    for i in order:  # all boxes first, so that no line crosses a label
        draw.rectangle(boxes[i], outline=class_color(classes[i]), width=line_width)
    taken: list[Box] = []
    for i in reversed(order):  # labels of the best scores are placed first
        name = printable_line(class_names[classes[i]][:MAX_NAME])
        if ids and ids[i] >= 0:
            name = f"#{ids[i]} {name}"
        text = _fitting(name, "" if values is None else f" {values[i]:.2f}", font_size, drawn.width)
        label = _label(text, class_color(classes[i]), font_size)
        x, y = place_of_label(label.size, boxes[i], drawn.size, taken)
        drawn.paste(label, (x, y))
        taken.append((x, y, x + label.width, y + label.height))
    return drawn


def draw_side_by_side(detections: Detections, ground_truth: Record) -> Image.Image:
    """The ground truth on the left, the detections on the right, with a title above each."""
    image = detections.image
    assert image is not None, "Detector.predict keeps the image"
    there = draw_boxes(image, ground_truth.boxes_xyxy, ground_truth.labels, detections.class_names)
    font = label_font("", _font_size(image.size))
    title_height = sum(font.getmetrics()) + GAP
    both = Image.new("RGB", (2 * image.width + GAP, image.height + title_height), "white")
    draw = ImageDraw.Draw(both)
    titled = ("ground truth", there), ("detections", detections.draw())
    for x, (title, one) in zip((0, image.width + GAP), titled, strict=True):
        both.paste(one, (x, title_height))
        draw.text((x + GAP, GAP // 2), title, fill="black", font=font)
    return both


def as_base64(image: Image.Image, format: str = "JPEG", **options: Any) -> str:
    """An image file in base64, for an HTML page."""
    content = io.BytesIO()
    image.save(content, format, **options)
    return base64.b64encode(content.getvalue()).decode()


def _inside(boxes_xyxy: NDArray[np.float64], size: tuple[int, int]) -> list[Box]:
    """The outermost pixels of boxes, clipped to the image, both ends inclusive, as Pillow draws."""
    last = np.array(size) - 1
    top_left = np.floor(boxes_xyxy[:, :2]).clip(0, last)
    bottom_right = (np.ceil(boxes_xyxy[:, 2:]) - 1).clip(0, last)
    sides = np.hstack([np.minimum(top_left, bottom_right), np.maximum(top_left, bottom_right)])
    return [(x1, y1, x2, y2) for x1, y1, x2, y2 in sides.astype(int).tolist()]


def _fitting(name: str, score: str, font_size: int, max_width: int) -> str:
    """Name and score, with the name truncated to fit into a label of this width."""
    font, room = label_font(name, font_size), max_width - 2 * _margin(font_size)
    if font.getlength(name + score) <= room:
        return name + score
    while name and font.getlength(f"{name}...{score}") > room:
        name = name[:-1]
    return f"{name}...{score}"


def _margin(font_size: int) -> int:
    return max(1, font_size // 6)


@lru_cache(maxsize=256)  # the same classes and scores recur; 50 MB for 12-megapixel images
def _label(text: str, color: Rgb, font_size: int) -> Image.Image:
    """A filled rectangle with the text."""
    font = label_font(text, font_size)
    margin = _margin(font_size)
    left, top, right, bottom = ImageDraw.Draw(Image.new("RGB", (1, 1))).textbbox((0, 0), text, font=font)
    width, height = math.ceil(right - left) + 2 * margin, math.ceil(bottom - top) + 2 * margin
    label = Image.new("RGB", (width, height), color)
    ImageDraw.Draw(label).text((margin - left, margin - top), text, fill=readable_on(color), font=font)
    return label


def place_of_label(
    label_size: tuple[int, int], box: Box, size: tuple[int, int], taken: Sequence[Box]
) -> tuple[int, int]:
    """The upper left corner of a label, inside the image, where it hides the least of other labels.

    Above the box, else below its top edge, else at its other corners, else shifted down or up its left side.
    """
    (width, height), (x1, y1, x2, y2) = label_size, box
    left, right = x1, x2 + 1 - width
    places = [(left, y1 - height), (left, y1), (right, y1 - height), (right, y1), (left, y2 + 1)]
    places += [(left, y2 + 1 - height), (right, y2 + 1), (right, y2 + 1 - height)]
    places += [(left, y1 + row * height) for row in range(1, min(MAX_ROWS, (y2 - y1) // height))]
    places += [(left, y1 - row * height) for row in range(2, MAX_ROWS)]
    last_x, last_y = max(0, size[0] - width), max(0, size[1] - height)
    places = [(min(max(0, x), last_x), y) for x, y in places if 0 <= y <= last_y] or [
        (min(max(0, left), last_x), min(max(0, y1), last_y))
    ]
    best, fewest = places[0], width * height + 1
    for x, y in places:
        hidden = hidden_pixels((x, y, x + width, y + height), taken)
        if hidden < fewest:
            best, fewest = (x, y), hidden
        if not hidden:
            break
    return best


def hidden_pixels(box: Box, others: Sequence[Box]) -> int:
    """How many pixels of a box are covered by others; ends are exclusive."""
    return sum(
        max(0, min(box[2], x2) - max(box[0], x1)) * max(0, min(box[3], y2) - max(box[1], y1))
        for x1, y1, x2, y2 in others
    )


def readable_on(color: Rgb) -> str:
    """Black or white, whichever has more contrast to `color`."""
    red, green, blue = color
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 128 else "white"


def _font_size(size: tuple[int, int]) -> int:
    return max(11, round(min(size) / 32))


def label_font(text: str, size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib; for scripts that it lacks, a font of this machine."""
    return _load_font(_font_file(frozenset(text)), size)


@cache
def _load_font(file: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size)


@cache
def _font_file(characters: frozenset[str]) -> Path:
    default = Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    if _has_glyphs(default, characters):
        return default
    from matplotlib.font_manager import fontManager  # scans the machine's fonts, which takes a while

    # "Last Resort", which comes with matplotlib, claims to have every glyph, but draws only boxes.
    others = (Path(entry.fname) for entry in fontManager.ttflist if "Last Resort" not in entry.name)
    # If no font has them, the default font draws empty boxes for missing glyphs.
    return next((file for file in others if _has_glyphs(file, characters)), default)


def _has_glyphs(file: Path, characters: frozenset[str]) -> bool:
    return {ord(character) for character in characters} <= FT2Font(str(file)).get_charmap().keys()
