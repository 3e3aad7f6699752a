"""Match detections with objects regardless of class, for a confusion matrix.

hotcoco's `confusion_matrix` gives only the counts. These are the same pairs (a test checks that the counts
are equal), so that a cell of the matrix can link to its images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fcos.data.annotations import Annotations
from fcos.metrics.coco import F1_IOU
from fcos.metrics.rows import Rows, labels_of, rows_by_image, xyxy_of


@dataclass(frozen=True)
class LabelPairs:
    """One entry for each pair, each object without a detection, and each detection without an object.

    Attributes:
        images: `(N,)` index of the image.
        there: `(N,)` label of the object, the number of classes for background.
        found: `(N,)` label of the detection, the number of classes for background.
        num_classes: without background.
    """

    images: NDArray[np.int64]
    there: NDArray[np.int64]
    found: NDArray[np.int64]
    num_classes: int

    def matrix(self) -> NDArray[np.int64]:
        """`(classes + 1, classes + 1)` counts: true label by predicted label, background last."""
        side = self.num_classes + 1
        counts = np.bincount(self.there * side + self.found, minlength=side * side)
        return counts.reshape(side, side)

    def images_of(self, there: int, found: int) -> list[int]:
        """Images of a cell, those with most of it first."""
        images, counts = np.unique(
            self.images[(self.there == there) & (self.found == found)], return_counts=True
        )
        return [int(image) for image in images[np.argsort(-counts, kind="stable")]]


def pair_up(annotations: Annotations, results: Rows, counted: NDArray[np.bool_]) -> LabelPairs:
    """Each detection, best score first, takes the free object that it covers best, from an IoU of 0.5.

    Args:
        annotations: the ground truth; crowd and difficult objects are left out.
        results: those that are shown.
        counted: `(N,)` False for detections that the evaluation ignores.
    """
    row_labels, background = labels_of(annotations, results), annotations.num_classes
    is_object = annotations.is_counted
    pairs: list[tuple[int, int, int]] = []  # image, label of the object, label of the detection
    for image, rows in enumerate(rows_by_image(annotations, results)):
        first, last = annotations.first_box[image : image + 2]
        boxes = np.arange(first, last)[is_object[first:last]]
        rows = rows[counted[rows]]
        overlap = box_overlap(xyxy_of(results[rows]), annotations.boxes_xyxy[boxes])
        there, taken = annotations.labels[boxes].tolist(), np.zeros(len(boxes), bool)
        for place, found in enumerate(row_labels[rows].tolist()):
            free = np.where(taken, -1.0, overlap[place])
            best = int(free.argmax()) if len(free) else -1
            if best >= 0 and free[best] >= F1_IOU:
                taken[best] = True
                pairs.append((image, there[best], found))
            else:
                pairs.append((image, background, found))
        pairs.extend((image, label, background) for label in annotations.labels[boxes[~taken]].tolist())
    columns = np.array(pairs, np.int64).reshape(-1, 3)
    return LabelPairs(columns[:, 0], columns[:, 1], columns[:, 2], annotations.num_classes)


def box_overlap(boxes: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """`(N, M)` IoU of boxes xyxy; in float64, so that it agrees with the evaluation's at the threshold.

    In numpy: for the few boxes of an image, torchvision's takes twice as long.
    """
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = (high - low).clip(min=0).prod(axis=2)
    areas, other_areas = ((b[:, 2:] - b[:, :2]).prod(axis=1) for b in (boxes, others))
    united = areas[:, None] + other_areas[None] - shared
    overlap: NDArray[np.float64] = np.zeros_like(shared)
    np.divide(shared, united, out=overlap, where=united > 0)
    return overlap
