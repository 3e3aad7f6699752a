"""Match detections with objects regardless of class: what a confusion matrix counts.

hotcoco's `confusion_matrix` gives the counts alone. These are the same pairs (a test holds the counts equal),
kept, so that a cell of the matrix can show its images.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fcos.data.annotations import Annotations
from fcos.metrics.coco import F1_IOU
from fcos.metrics.rows import Rows

NOTHING = -1


@dataclass(frozen=True)
class Pairs:
    """One entry for each pair, each object that nothing answers, and each detection that answers nothing.

    Attributes:
        boxes: `(N,)` index among the boxes of the annotations, or `NOTHING`.
        rows: `(N,)` index among the rows of results, or `NOTHING`.
        images: `(N,)` index of the image.
        there: `(N,)` label of the object, the number of classes for background.
        found: `(N,)` label of the detection, the number of classes for background.
        num_classes: without background.
    """

    boxes: NDArray[np.int64]
    rows: NDArray[np.int64]
    images: NDArray[np.int64]
    there: NDArray[np.int64]
    found: NDArray[np.int64]
    num_classes: int

    def matrix(self) -> NDArray[np.int64]:
        """`(classes + 1, classes + 1)` counts: what is there by what was found, background last."""
        side = self.num_classes + 1
        counts = np.bincount(self.there * side + self.found, minlength=side * side)
        return counts.reshape(side, side)

    def of_all(self, chosen: NDArray[np.int64]) -> Pairs:
        """The same pairs with rows of all results, of which `chosen` were paired."""
        return replace(self, rows=np.append(chosen, NOTHING)[self.rows])

    def images_of(self, there: int, found: int) -> list[int]:
        """Pictures of a cell, those with most of it first."""
        images, counts = np.unique(
            self.images[(self.there == there) & (self.found == found)], return_counts=True
        )
        return [int(image) for image in images[np.argsort(-counts, kind="stable")]]


def pair_up(
    annotations: Annotations,
    results: Rows,
    counted: NDArray[np.bool_],
    iou_threshold: float = F1_IOU,
) -> Pairs:
    """Each detection, best score first, takes the free object that it covers best.

    Args:
        annotations: what is there; crowd and difficult objects are left out.
        results: those that are shown.
        counted: `(N,)` False for detections that the evaluation ignores.
        iou_threshold: least overlap of a pair.
    """
    label_of = {category_id: label for label, category_id in enumerate(annotations.category_ids)}
    row_labels = np.array(
        [label_of[category_id] for category_id in results["category_id"].tolist()], np.int64
    )
    objects = ~annotations.is_crowd & ~annotations.is_difficult
    rows_of = rows_by_image(annotations, results)
    found: list[tuple[int, int, int]] = []  # box, row, image
    for image, rows in enumerate(rows_of):
        first, last = annotations.first_box[image : image + 2]
        boxes = np.arange(first, last)[objects[first:last]]
        rows = rows[counted[rows]]
        overlap = box_overlap(xyxy_of(results[rows]), annotations.boxes_xyxy[boxes])
        taken = np.zeros(len(boxes), bool)
        for place, row in enumerate(rows.tolist()):
            free = np.where(taken, -1.0, overlap[place])
            best = int(free.argmax()) if len(free) else -1
            if best >= 0 and free[best] >= iou_threshold:
                taken[best] = True
                found.append((int(boxes[best]), row, image))
            else:
                found.append((NOTHING, row, image))
        found.extend((int(box), NOTHING, image) for box in boxes[~taken])
    pairs = np.array(found, np.int64).reshape(-1, 3)
    # Index -1 reads the entry that is added at the end: background.
    background = annotations.num_classes
    return Pairs(
        boxes=pairs[:, 0],
        rows=pairs[:, 1],
        images=pairs[:, 2],
        there=np.append(annotations.labels, background)[pairs[:, 0]],
        found=np.append(row_labels, background)[pairs[:, 1]],
        num_classes=annotations.num_classes,
    )


def rows_by_image(annotations: Annotations, results: Rows) -> list[NDArray[np.int64]]:
    """The rows of results of each image, best score first."""
    order = np.lexsort((-results["score"], results["image_id"]))
    image_ids = results["image_id"][order]
    first = np.searchsorted(image_ids, annotations.image_ids, "left")
    last = np.searchsorted(image_ids, annotations.image_ids, "right")
    return [order[start:end] for start, end in zip(first, last, strict=True)]


def xyxy_of(results: Rows) -> NDArray[np.float64]:
    """`(N, 4)` xyxy of rows of results."""
    boxes = results["bbox"]
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def box_overlap(boxes: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """`(N, M)` IoU of boxes xyxy; in float64, so that it agrees with the evaluation's at the threshold."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = (high - low).clip(min=0).prod(axis=2)
    areas, other_areas = ((b[:, 2:] - b[:, :2]).prod(axis=1) for b in (boxes, others))
    united = areas[:, None] + other_areas[None] - shared
    overlap: NDArray[np.float64] = np.zeros_like(shared)
    np.divide(shared, united, out=overlap, where=united > 0)
    return overlap
