"""Label assignment: ground truth to targets per point (sections 3.1 to 3.3 of the paper).

A point is positive for a box if it lies inside (with center sampling: near the center), and if its level is
the one for the box's size there (``lower <= max(l, t, r, b) <= upper``). Of several boxes the smallest wins.
Other code bases differ only in ties, which `eligible_pairs` and `smallest_box` can reproduce.

`Assigner` is a seam. The targets of `StaticAssigner` depend on boxes and grid alone, so the training
loop can count the positives of a whole optimizer step before the first forward pass; others may look at
predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from fcos.config.conventions import Areas
from fcos.model.fcos import HeadOutput
from fcos.model.points import PointGrid, box_distances

BACKGROUND = -1

Boxes = Sequence[Float[Tensor, "_ 4"]]
"""Of each image of a batch, xyxy in input pixels; images without boxes take the same path."""
Labels = Sequence[Int64[Tensor, " _"]]
"""Of each image, one for each box, 0-based."""


class Targets(NamedTuple):
    """The targets of every point of a batch.

    Attributes:
        labels: 0-based class, or `BACKGROUND`.
        class_scores: what the score of that class should be: 1, or less with soft labels; 0 on background.
        distances: ltrb in input pixels; meaningful where the label is not background.
        centerness: in [0, 1] (eq. 3); 0 on background.
        box_weights: of the box loss; 0 on background.
        matched: index of the box among its image's ground truth, or -1.
    """

    labels: Int64[Tensor, "batch points"]
    class_scores: Float[Tensor, "batch points"]
    distances: Float[Tensor, "batch points 4"]
    centerness: Float[Tensor, "batch points"]
    box_weights: Float[Tensor, "batch points"]
    matched: Int64[Tensor, "batch points"]

    def class_targets(self, num_classes: int) -> Float[Tensor, "batch points {num_classes}"]:
        """The target score of each class; all zero on background."""
        classes = torch.arange(num_classes, device=self.labels.device)
        return (self.labels[..., None] == classes) * self.class_scores[..., None]

    def normalizers(self) -> Float[Tensor, " 3"]:
        """The normalizers of the class, box and quality losses, to be summed over the optimizer step.

        The sum of the class scores, the sum of the box weights and the number of positives. (With hard labels
        and without weights all three are the number of positives.)
        """
        num_positive = (self.labels != BACKGROUND).sum().to(self.box_weights.dtype)
        return torch.stack([self.class_scores.sum(), self.box_weights.sum(), num_positive])


@runtime_checkable
class Assigner(Protocol):
    """Assigns boxes to points.

    With `needs_predictions`, all losses are divided by one number, the sum of the box weights: the training
    loop knows it only after the last forward pass of a step, and divides the gradients by it.
    """

    @property
    def needs_predictions(self) -> bool:
        """Whether targets depend on the current predictions."""
        ...

    def __call__(
        self, grid: PointGrid, boxes_xyxy: Boxes, labels: Labels, predictions: HeadOutput | None = None
    ) -> Targets:
        """Targets of a batch.

        Args:
            grid: of the padded batch.
            boxes_xyxy: of each image, in input pixels.
            labels: of each image.
            predictions: of the network for this batch; only where `needs_predictions`.
        """
        ...


def centerness_of(distances: Float[Tensor, "*points 4"]) -> Float[Tensor, "*points"]:
    """How central a point lies in its box: 1 in the middle, 0 on a side (eq. 3).

    Args:
        distances: ltrb, any unit; negative values (outside) count as 0.
    """
    inside = distances.clamp(min=0)
    low, high = inside[..., :2], inside[..., 2:]
    ratios = torch.minimum(low, high) / torch.maximum(low, high).clamp(min=1e-6)
    return ratios.prod(dim=-1).sqrt()


def near_center(
    points: Float[Tensor, "points 2"],
    boxes_xyxy: Float[Tensor, "boxes 4"],
    radius: Float[Tensor, " points"],
) -> Bool[Tensor, "points boxes"]:
    """Points strictly inside the box and within `radius` pixels (per side) of its center.

    The sub-box of the improved paper (2006.09214, section 3.1): center +- radius * stride, cut to the box.
    """
    centers, radius = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2, radius[:, None]
    near = []
    for axis in (0, 1):  # one at a time: twice as fast as both in a tensor
        low = torch.maximum(centers[:, axis] - radius, boxes_xyxy[:, axis])
        high = torch.minimum(centers[:, axis] + radius, boxes_xyxy[:, axis + 2])
        near.append((points[:, axis, None] > low) & (points[:, axis, None] < high))
    return near[0] & near[1]


class Eligible(NamedTuple):
    """The two halves of the rule, for each pair of point and box; a point may learn a box where both hold.

    Attributes:
        inside: the point is in the right place: inside the box (near its center).
        in_range: the box has the right size there for the point's level.
    """

    inside: Bool[Tensor, "points boxes"]
    in_range: Bool[Tensor, "points boxes"]


def eligible_pairs(
    points: Float[Tensor, "points 2"],
    strides: Float[Tensor, " points"],
    boxes_xyxy: Float[Tensor, "boxes 4"],
    lower: Float[Tensor, " points"],
    upper: Float[Tensor, " points"],
    center_radius: float | None,
    *,
    strict_ranges: bool = False,
) -> Eligible:
    """Which boxes may be assigned to which points.

    Args:
        points: x, y in input pixels.
        strides: of each point's level, input pixels.
        boxes_xyxy: xyxy in input pixels.
        lower: lower limit of the point's largest distance on its level, input pixels.
        upper: its upper limit, input pixels; both inclusive, as in the official code.
        center_radius: in strides of the level; None: everywhere inside the box.
        strict_ranges: exclude both (detectron2, torchvision): a largest distance of exactly 64, 128, ...
            pixels is then positive nowhere instead of on two levels.
    """
    distances = box_distances(points, boxes_xyxy)
    if center_radius is None:
        inside = distances.amin(dim=-1) > 0
    else:
        inside = near_center(points, boxes_xyxy, center_radius * strides)
    largest = distances.amax(dim=-1)
    if strict_ranges:
        return Eligible(inside, (largest > lower[:, None]) & (largest < upper[:, None]))
    return Eligible(inside, (largest >= lower[:, None]) & (largest <= upper[:, None]))


def smallest_box(
    candidate: Bool[Tensor, "points boxes"], boxes_xyxy: Float[Tensor, "boxes 4"], areas: Areas = "exact"
) -> Int64[Tensor, " points"]:
    """Index of the smallest of each point's candidate boxes (section 3.1), or -1.

    Args:
        candidate: which boxes each point may learn.
        boxes_xyxy: xyxy in input pixels.
        areas: how they are compared: exactly; as 1e8 - area in float32, which has steps of 8 square pixels,
            so the first of nearly equal boxes wins (detectron2, torchvision); or with sides that are 1
            longer (official code).
    """
    if len(boxes_xyxy) == 0:
        return torch.full((len(candidate),), -1, dtype=torch.int64, device=candidate.device)
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2] + (1 if areas == "inclusive" else 0)
    area = sides.prod(dim=-1)
    if areas == "float32":
        area = 1e8 - (1e8 - area)
    smallest, index = torch.where(candidate, area[None], torch.inf).min(dim=1)
    return torch.where(smallest < torch.inf, index, -1)


class Match(NamedTuple):
    """The box assigned to each point of an image, with score and weight.

    Attributes:
        matched: index of the box, or -1.
        class_scores: what the score of its class should be; 0 on background.
        box_weights: of the box loss; 0 on background.
    """

    matched: Int64[Tensor, " points"]
    class_scores: Float[Tensor, " points"]
    box_weights: Float[Tensor, " points"]

    @classmethod
    def hard(cls, matched: Int64[Tensor, " points"]) -> Match:
        """Score and weight are 1 for every point with a box."""
        positive = (matched >= 0).float()
        return cls(matched, positive, positive)

    def spread(self, kept: Int64[Tensor, " points"], num_points: int) -> Match:
        """The same among all points of the image, given the indices of these; the others are background."""
        matched = torch.full((num_points,), -1, device=kept.device).index_copy(0, kept, self.matched)
        class_scores, box_weights = (
            torch.zeros(num_points, device=kept.device).index_copy(0, kept, values)
            for values in (self.class_scores, self.box_weights)
        )
        return Match(matched, class_scores, box_weights)


def build_targets(
    points: Float[Tensor, "points 2"],
    matches: Sequence[Match],
    boxes_xyxy: Boxes,
    labels: Labels,
    *,
    weigh_by_centerness: bool = False,
) -> Targets:
    """Targets of a batch from the match of each image.

    With `weigh_by_centerness` the box weights are the centerness of the points, not those of the matches.
    """
    images = []
    for match, image_boxes, image_labels in zip(matches, boxes_xyxy, labels, strict=True):
        # Background points index an added empty box, so that images without boxes need no branch.
        boxes = torch.cat([image_boxes, image_boxes.new_zeros(1, 4)])[match.matched]
        point_labels = torch.cat([image_labels, image_labels.new_full((1,), BACKGROUND)])[match.matched]
        distances = torch.cat([points - boxes[:, :2], boxes[:, 2:] - points], dim=-1)
        centerness = torch.where(match.matched >= 0, centerness_of(distances), 0.0)
        weights = centerness if weigh_by_centerness else match.box_weights
        images.append((point_labels, match.class_scores, distances, centerness, weights, match.matched))
    return Targets(*(torch.stack(parts) for parts in zip(*images, strict=True)))


@dataclass(frozen=True)
class StaticAssigner:
    """The papers' rule: by position and size, ties to the smallest box.

    Attributes:
        regress_ranges: upper end of each level's range except the last, input pixels; None: boxes of any
            size on every level.
        center_radius: center sampling radius in strides; None: off.
        strict_ranges: as in `eligible_pairs`.
        areas: as in `smallest_box`.
        weight_boxes: weigh the box loss of a point by its centerness; otherwise all alike.
    """

    needs_predictions: ClassVar[bool] = False

    regress_ranges: Sequence[float] | None
    center_radius: float | None
    strict_ranges: bool = False
    areas: Areas = "exact"
    weight_boxes: bool = True

    def __call__(
        self, grid: PointGrid, boxes_xyxy: Boxes, labels: Labels, predictions: HeadOutput | None = None
    ) -> Targets:
        """Targets of a batch, as `Assigner` says; predictions are ignored."""
        ranges = self._ranges(grid)
        matches = [
            Match.hard(self.choose(grid, boxes, self._eligible(grid, ranges, boxes))) for boxes in boxes_xyxy
        ]
        return build_targets(grid.points, matches, boxes_xyxy, labels, weigh_by_centerness=self.weight_boxes)

    def eligible(self, grid: PointGrid, boxes_xyxy: Float[Tensor, "boxes 4"]) -> Eligible:
        """Which boxes of an image may be assigned to which points, before the smallest one is chosen."""
        return self._eligible(grid, self._ranges(grid), boxes_xyxy)

    def choose(
        self, grid: PointGrid, boxes_xyxy: Float[Tensor, "boxes 4"], eligible: Eligible
    ) -> Int64[Tensor, " points"]:
        """Index of the smallest of each point's eligible boxes, or -1."""
        return smallest_box(eligible.inside & eligible.in_range, boxes_xyxy, self.areas)

    def _ranges(self, grid: PointGrid) -> tuple[Tensor, Tensor]:
        """Lower and upper end of the range of each point's level."""
        if self.regress_ranges is None:
            return torch.zeros_like(grid.strides), torch.full_like(grid.strides, torch.inf)
        ends = torch.tensor([0.0, *self.regress_ranges, torch.inf], device=grid.points.device)
        counts = torch.tensor(grid.points_per_level, device=grid.points.device)
        return ends[:-1].repeat_interleave(counts), ends[1:].repeat_interleave(counts)

    def _eligible(self, grid: PointGrid, ranges: tuple[Tensor, Tensor], boxes_xyxy: Tensor) -> Eligible:
        points, strides, _ = grid
        radius, strict = self.center_radius, self.strict_ranges
        return eligible_pairs(points, strides, boxes_xyxy, *ranges, radius, strict_ranges=strict)
