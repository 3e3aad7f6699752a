"""Choose the input size for objects of some size, and say what it costs in training time.

A detector with stride 8 hardly finds what is smaller than two of its cells after resizing. Larger images cost
time by their number of pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcos.config.load import preset_default
from fcos.data.annotations import Annotations
from fcos.data.image import read_header
from fcos.errors import DatasetError

SMALLEST_BOX = 16.0  # pixels after resizing: two cells of the finest level (stride 8)
FINER_BELOW = 8.0  # pixels: a level of stride 4 is added where even the largest size leaves smaller boxes
FACTORS = (1.0, 1.2, 1.4, 1.6, 2.0)  # on the preset's size: up to 4 times the time
LARGEST_RATIO = 2.5  # of the sides of an image
READ_SIZES = 200  # images whose size is read from the file where the annotations do not tell it
FINER_STRIDES = [4, 8, 16, 32, 64, 128]
FINER_RANGES = [32.0, 64.0, 128.0, 256.0, 512.0]


def choose_size(train: Annotations, preset: str) -> dict[str, tuple[Any, str]]:
    """The preset's size; larger if boxes would be too small, smaller if images are small.

    Returns:
        Settings, each with its value and why: the two sides in pixels, and a finer level where one is needed.
    """
    usual: int = preset_default(preset, "short_side")
    usual_view: int = preset_default(preset, "view_size")
    sizes, box_sides = image_sizes(train)
    if not len(sizes):
        unread = "the preset's; no image could be read"
        return {"short_side": (usual, unread), "view_size": (usual_view, unread)}

    short, long = sizes.min(axis=1), sizes.max(axis=1)
    ratio = float(np.clip(np.percentile(long / short, 90), usual_view / usual, LARGEST_RATIO))
    sharpest = max(64, int(2 * np.median(short)))  # beyond twice its pixels an image shows no more
    candidates = sorted({min(round(usual * factor), sharpest) for factor in FACTORS})
    smallest = float(np.percentile(box_sides, 10)) if len(box_sides) else np.inf
    side = next((side for side in candidates if smallest * side >= SMALLEST_BOX), candidates[-1])
    seen = smallest * side

    reasons = [f"images are {np.median(long):.0f} x {np.median(short):.0f}"]
    reasons.append(f"9 of 10 boxes are then larger than {seen:.0f} pixels" if len(box_sides) else "no boxes")
    if side > usual:
        reasons.append(f"{(side / usual) ** 2:.1f} x the training time of {usual}")
    if seen < SMALLEST_BOX:
        reasons.append("the images show no more" if side == sharpest else "as large as is affordable")
    chosen: dict[str, tuple[Any, str]] = {
        "short_side": (side, "; ".join(reasons)),
        "view_size": (round(side * ratio), f"longest side, for images of {ratio:.2f} : 1"),
    }
    if side == sharpest and seen < FINER_BELOW:
        why = "a level of stride 4: objects this small in images that show no more when enlarged"
        chosen |= {"strides": (FINER_STRIDES, why), "regress_ranges": (FINER_RANGES, "for these levels")}
    return chosen


def image_sizes(annotations: Annotations) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sizes of images and boxes, of all or of an even sample.

    Returns:
        `(images, 2)` height, width in pixels; `(boxes,)` square root of each box's area, relative to the
        shorter side of its image. Images that cannot be read are left out.
    """
    known = (annotations.sizes_hw > 0).all(axis=1)
    if known.all():
        indices = np.arange(len(annotations))
    else:
        indices = np.unique(np.linspace(0, len(annotations) - 1, READ_SIZES).astype(int))
    sizes, box_sides = [], []
    for index in indices:
        record = annotations[int(index)]
        try:
            size = record.size_hw or read_header(record.path).size_hw
        except DatasetError:
            continue  # training reports every broken image before it starts
        sizes.append(size)
        sides = record.boxes_xyxy[:, 2:] - record.boxes_xyxy[:, :2]
        box_sides.append(np.sqrt(np.clip(sides, 0, None).prod(axis=1)) / min(size))
    boxes = np.concatenate(box_sides) if box_sides else np.zeros(0)
    return np.array(sizes, np.float64).reshape(-1, 2), boxes[np.isfinite(boxes)]
