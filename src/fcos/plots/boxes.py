"""Boxes with readable labels on a photograph.

Drawn with Pillow: `torchvision.utils.draw_bounding_boxes` lets labels run out of the picture and cannot
choose the text's colour by its background in all versions that we support.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import get_data_path
from matplotlib.ft2font import FT2Font
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont

from fcos.data.annotations import Record
from fcos.detections import Detections

Rgb = tuple[int, int, int]

GOLDEN_RATIO = 0.618034  # steps of it around the colour circle never come close to an earlier one for long
GAP = 8  # pixels between two pictures side by side


def class_colour(label: int) -> Rgb:
    """The colour of a class: always the same, whatever other classes there are."""
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
    """A copy of the picture with boxes and the names of their classes.

    Args:
        image: any mode; the copy is RGB.
        boxes_xyxy: `(N, 4)` xyxy, pixels of `image`; tensor, array or list.
        labels: `(N,)` 0-based, index into `class_names`.
        class_names: names in any script that the fonts of this machine have.
        scores: `(N,)`, written behind the names; the best is drawn last, on top.
        track_ids: `(N,)`, written before the names; -1: none.
    """
    picture = image.convert("RGB")
    boxes = np.asarray(boxes_xyxy, np.float64).reshape(-1, 4)
    classes = np.asarray(labels, np.int64).reshape(-1).tolist()
    values = None if scores is None else np.asarray(scores, np.float64).reshape(-1)
    ids = None if track_ids is None else np.asarray(track_ids, np.int64).reshape(-1).tolist()
    draw = ImageDraw.Draw(picture)
    line_width = max(1, round(min(picture.size) / 250))
    order = range(len(boxes)) if values is None else np.argsort(values, kind="stable").tolist()
    for i in order:  # all lines first: no line crosses a label
        draw.rectangle(_inside(boxes[i], picture.size), outline=class_colour(classes[i]), width=line_width)
    for i in order:
        text = class_names[classes[i]] + ("" if values is None else f" {values[i]:.2f}")
        if ids and ids[i] >= 0:
            text = f"#{ids[i]} {text}"
        _draw_label(draw, text, boxes[i], class_colour(classes[i]), picture.size)
    return picture


def draw_side_by_side(detections: Detections, ground_truth: Record) -> Image.Image:
    """What is there on the left, what was found on the right, with a title above each."""
    image = detections.image
    assert image is not None, "Detector.predict keeps the picture"
    there = draw_boxes(image, ground_truth.boxes_xyxy, ground_truth.labels, detections.class_names)
    font = label_font("", _font_size(image.size))
    title_height = sum(font.getmetrics()) + GAP
    both = Image.new("RGB", (2 * image.width + GAP, image.height + title_height), "white")
    draw = ImageDraw.Draw(both)
    titled = ("ground truth", there), ("detections", detections.draw())
    for x, (title, picture) in zip((0, image.width + GAP), titled, strict=True):
        both.paste(picture, (x, title_height))
        draw.text((x + GAP, GAP // 2), title, fill="black", font=font)
    return both


def _inside(box_xyxy: Any, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The outermost whole pixels of a box that are on the picture, both ends included, as Pillow draws."""
    width, height = size
    x1, x2 = (int(x) for x in np.clip([np.floor(box_xyxy[0]), np.ceil(box_xyxy[2]) - 1], 0, width - 1))
    y1, y2 = (int(y) for y in np.clip([np.floor(box_xyxy[1]), np.ceil(box_xyxy[3]) - 1], 0, height - 1))
    return x1, y1, max(x1, x2), max(y1, y2)


def _draw_label(
    draw: ImageDraw.ImageDraw, text: str, box_xyxy: Any, colour: Rgb, size: tuple[int, int]
) -> None:
    """A filled label above the box; below its top where there is no room; always inside of the picture."""
    font = label_font(text, _font_size(size))
    margin = max(1, font.size // 6)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 2 * margin, bottom - top + 2 * margin
    x1, y1, _, _ = _inside(box_xyxy, size)
    x = max(0, min(x1, size[0] - width))
    y = y1 - height if y1 >= height else min(y1, size[1] - height)
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
    draw.text((x + margin - left, y + margin - top), text, fill=readable_on(colour), font=font)


def readable_on(colour: Rgb) -> str:
    """Black or white, whichever stands out from `colour` more."""
    red, green, blue = colour
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 128 else "white"


def _font_size(size: tuple[int, int]) -> int:
    return max(11, round(min(size) / 32))


def label_font(text: str, size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib; a font of this machine for scripts that it lacks."""
    return _load_font(_font_file(frozenset(text)), size)


@cache
def _load_font(file: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size)


@cache
def _font_file(characters: frozenset[str]) -> Path:
    default = Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    if _has_glyphs(default, characters):
        return default
    from matplotlib.font_manager import fontManager  # looks through the machine's fonts, which takes a while

    # "Last Resort", which matplotlib brings, claims to have every glyph and draws a box for each.
    others = (Path(entry.fname) for entry in fontManager.ttflist if "Last Resort" not in entry.name)
    # Where no font has them, the default's empty boxes say that glyphs are missing.
    return next((file for file in others if _has_glyphs(file, characters)), default)


def _has_glyphs(file: Path, characters: frozenset[str]) -> bool:
    return {ord(character) for character in characters} <= FT2Font(str(file)).get_charmap().keys()
