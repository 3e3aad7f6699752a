"""What is in a data set, in numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fcos.data.annotations import Annotations

COCO_SMALL, COCO_LARGE = 32.0**2, 96.0**2  # square pixels, limits of COCO's area ranges


@dataclass(frozen=True)
class Counts:
    """What a data set holds.

    Attributes:
        boxes_per_class, images_per_class: by class name, classes without boxes included.
        boxes_per_size: COCO's small (below 32^2 square pixels), medium, large (from 96^2), by `areas`.
        sides: shortest, median, longest height and width of the images, pixels; None if none opens.
    """

    num_images: int
    num_boxes: int
    num_empty: int
    num_crowd: int
    num_difficult: int
    most_boxes: int
    boxes_per_class: dict[str, int]
    images_per_class: dict[str, int]
    boxes_per_size: dict[str, int]
    sides: dict[str, tuple[int, int, int]] | None


def count(annotations: Annotations, sizes_hw: NDArray[np.int32] | None = None) -> Counts:
    """Count what is in the annotations; `sizes_hw` as in `CheckReport`, else as stated."""
    sizes = annotations.sizes_hw if sizes_hw is None else sizes_hw
    counts = np.diff(annotations.first_box)
    known = (annotations.labels >= 0) & (annotations.labels < annotations.num_classes)
    labels, images = annotations.labels[known], image_of_box(annotations)[known]
    boxes_of = np.bincount(labels, minlength=annotations.num_classes)
    # An image and a class as one number, so that each counts once.
    pairs = np.unique(images * max(annotations.num_classes, 1) + labels)
    images_of = np.bincount(pairs % max(annotations.num_classes, 1), minlength=annotations.num_classes)
    areas = annotations.areas[np.isfinite(annotations.areas)]
    size_range = np.digitize(areas, [COCO_SMALL, COCO_LARGE])
    opened = sizes[sizes[:, 0] > 0]
    return Counts(
        num_images=len(annotations),
        num_boxes=len(annotations.labels),
        num_empty=int((counts == 0).sum()),
        num_crowd=int(annotations.is_crowd.sum()),
        num_difficult=int(annotations.is_difficult.sum()),
        most_boxes=int(counts.max(initial=0)),
        boxes_per_class=_by_name(annotations, boxes_of),
        images_per_class=_by_name(annotations, images_of),
        boxes_per_size={
            name: int((size_range == place).sum()) for place, name in enumerate(("small", "medium", "large"))
        },
        sides={
            name: (int(side.min()), int(np.median(side)), int(side.max()))
            for name, side in zip(("height", "width"), opened.T, strict=True)
        }
        if len(opened)
        else None,
    )


def image_of_box(annotations: Annotations) -> NDArray[np.int64]:
    """`(boxes,)` the index of each box's image."""
    return np.repeat(np.arange(len(annotations)), np.diff(annotations.first_box))


def _by_name(annotations: Annotations, counts: NDArray[np.int64]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for name, count in zip(annotations.class_names, counts.tolist(), strict=True):
        total[name] += count  # two categories of a COCO file may share a name
    return dict(total)
