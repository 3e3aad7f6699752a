"""Why each missed object was missed.

The results say much: another class was shown there, or the score was under the threshold. What NMS took away
is not in them; for images that are predicted again, `candidates` (all that entered NMS) tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import batched_nms

from fcos.data.annotations import Annotations
from fcos.metrics.analysis import Analysis
from fcos.metrics.coco import F1_IOU
from fcos.metrics.confusion import box_overlap
from fcos.metrics.rows import labels_of, rows_by_image, xyxy_of
from fcos.model.postprocess import ImageDetections

NEAR_IOU = 0.1  # TIDE's limit between a box that is off and one that means something else

# In the order in which they are tried: the first that holds is reported.
REASONS = {
    "no point": "no positive point at this size: the detector cannot learn such objects",
    "nms": "suppressed by NMS: it overlaps a box with a higher score",
    "class": "detected, but with the wrong class",
    "score": "detected, but with a score below the threshold",
    "shared": "detected, but that detection is matched to another object",
    "box": "a detection of its class is nearby, but poorly localized",
    "nothing": "no detection of its class nearby",
}


@dataclass(frozen=True)
class Miss:
    """A missed object.

    Attributes:
        image: index of the image.
        box: index of the object among all boxes.
        reason: a key of `REASONS`.
        told: the reason with its class, score or overlap.
    """

    image: int
    box: int
    reason: str
    told: str


@dataclass(frozen=True)
class DetectedBoxes:
    """Detections of an image, best first: boxes xyxy in original pixels, scores and labels."""

    boxes_xyxy: NDArray[np.float64]
    scores: NDArray[np.float64]
    labels: NDArray[np.int64]


def why_missed(
    annotations: Annotations,
    analysis: Analysis,
    without_point: NDArray[np.bool_],
    candidates: Mapping[int, ImageDetections] | None = None,
    nms_iou: float = 0.6,
    *,
    agnostic_nms: bool = False,
) -> list[Miss]:
    """A reason for each object that is missed at the threshold.

    Args:
        annotations: the ground truth.
        analysis: of the results.
        without_point: `(boxes,)` objects without a positive point.
        candidates: by image id, what entered NMS in the images that were predicted again.
        nms_iou, agnostic_nms: of the detector.
    """
    rows_of = rows_by_image(annotations, analysis.rows)
    misses = []
    for image in np.unique(annotations.image_of_box[analysis.shown.missed]).tolist():
        rows = analysis.rows[rows_of[image]]
        found = DetectedBoxes(xyxy_of(rows), rows["score"], labels_of(annotations, rows))
        entered = (candidates or {}).get(int(annotations.image_ids[image]))
        suppressed = (
            _Suppressed(entered, analysis.threshold, nms_iou, agnostic_nms) if entered is not None else None
        )
        first, last = annotations.first_box[image : image + 2]
        for box in first + np.flatnonzero(analysis.shown.missed[first:last]):
            reasons = _reasons(
                annotations, int(box), found, analysis.threshold, bool(without_point[box]), suppressed
            )
            misses.append(Miss(image, int(box), *next(reasons)))
    return misses


def _reasons(
    annotations: Annotations,
    box: int,
    found: DetectedBoxes,
    threshold: float,
    is_without_point: bool,
    suppressed: _Suppressed | None,
) -> Iterator[tuple[str, str]]:
    """All that hold, in the order of `REASONS`: key, words."""
    label, place = int(annotations.labels[box]), annotations.boxes_xyxy[box]
    if is_without_point:
        yield "no point", "no positive point at this size"
    if suppressed is not None and (scores := suppressed.by(place, label)) is not None:
        own, other = scores
        yield "nms", f"its score {own:.2f} was suppressed by NMS for a box with {other:.2f}"
    overlap = box_overlap(place[None], found.boxes_xyxy)[0]
    fits, same, shown = overlap >= F1_IOU, found.labels == label, found.scores >= threshold
    if (others := np.flatnonzero(fits & ~same & shown)).size:
        best = int(others[0])
        yield "class", f"detected as {annotations.class_names[found.labels[best]]}, {found.scores[best]:.2f}"
    if (own_rows := np.flatnonzero(fits & same & ~shown)).size:
        yield "score", f"its score {found.scores[own_rows[0]]:.2f} is below the threshold"
    if (fits & same & shown).any():
        yield "shared", "one detection for two objects"
    if (near := (overlap >= NEAR_IOU) & same & shown).any():
        yield "box", f"the closest box has an IoU of {overlap[near].max():.2f}"
    yield "nothing", "no detection of its class nearby"


class _Suppressed:
    """Candidates above the threshold that NMS removed, and the boxes that suppressed them."""

    def __init__(
        self, entered: ImageDetections, threshold: float, nms_iou: float, agnostic_nms: bool
    ) -> None:
        groups = torch.zeros_like(entered.labels) if agnostic_nms else entered.labels
        kept = batched_nms(entered.boxes_xyxy, entered.scores, groups, nms_iou)
        is_kept = torch.zeros(len(entered.scores), dtype=torch.bool)
        is_kept[kept] = True
        self.kept, self.lost = (
            DetectedBoxes(
                entered.boxes_xyxy[chosen].double().numpy(),
                entered.scores[chosen].double().numpy(),
                entered.labels[chosen].numpy(),
            )
            for chosen in (is_kept, ~is_kept & (entered.scores >= threshold))
        )
        self.nms_iou, self.agnostic_nms = nms_iou, agnostic_nms

    def by(self, box_xyxy: NDArray[np.float64], label: int) -> tuple[float, float] | None:
        """Score of the object's best suppressed candidate, and of what suppressed it."""
        fits = box_overlap(box_xyxy[None], self.lost.boxes_xyxy)[0] >= F1_IOU
        own = np.flatnonzero(fits & (self.lost.labels == label))
        if not own.size:
            return None
        best = int(own[self.lost.scores[own].argmax()])
        over = box_overlap(self.lost.boxes_xyxy[[best]], self.kept.boxes_xyxy)[0] > self.nms_iou
        competes = over & ((self.kept.labels == label) | self.agnostic_nms)
        winners = np.flatnonzero(competes & (self.kept.scores >= self.lost.scores[best]))
        if not winners.size:  # rounding at the very limit
            return None
        return float(self.lost.scores[best]), float(self.kept.scores[winners].max())
