"""Assigners newer than FCOS, on the same points: ATSS, SimOTA, task alignment and dynamic soft labels.

ATSS looks at the boxes alone. The others look at the current predictions: a box goes to the points
whose predictions fit it best, and the class target says how well they fit (or is 1, for SimOTA).
Each rule is a function from the pairs of points and boxes of one image to a `Match`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torchvision.ops import box_iou

from fcos.model.assign import Boxes, Eligible, Labels, Match, Targets, build_targets, near_center
from fcos.model.fcos import HeadOutput
from fcos.model.points import PointGrid, box_distances, distances_to_boxes

ATSS_CANDIDATES, ATSS_SQUARE = 9, 8.0  # of a level; the side of a point's square, strides
CENTER_RADIUS = 2.5  # of SimOTA, strides


@dataclass(frozen=True)
class AtssAssigner:
    """Adaptive training sample selection (arXiv 1912.02424, algorithm 1).

    Around each point stands a square of 8 strides. Of each level, the 9 points nearest to the center of a box
    are its candidates; those whose squares overlap it more than their mean plus one standard deviation learn
    it, if they are inside. Of several boxes the one that a point's square overlaps most wins.

    Attributes:
        weight_boxes: weigh the box loss of a point by its centerness; otherwise all alike.
    """

    needs_predictions: ClassVar[bool] = False

    weight_boxes: bool = True

    def __call__(
        self, grid: PointGrid, boxes_xyxy: Boxes, labels: Labels, predictions: HeadOutput | None = None
    ) -> Targets:
        """Targets of a batch, as `Assigner` says; predictions are ignored."""
        matches = [Match.hard(self.match(grid, boxes)) for boxes in boxes_xyxy]
        return build_targets(grid.points, matches, boxes_xyxy, labels, weigh_by_centerness=self.weight_boxes)

    def match(self, grid: PointGrid, boxes_xyxy: Float[Tensor, "boxes 4"]) -> Int64[Tensor, " points"]:
        """Index of each point's box, or -1."""
        return self.choose(grid, boxes_xyxy, self.eligible(grid, boxes_xyxy))

    def eligible(self, grid: PointGrid, boxes_xyxy: Float[Tensor, "boxes 4"]) -> Eligible:
        """Which boxes may be assigned to which points; in range are candidates that overlap enough."""
        centers = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
        from_center = torch.cdist(grid.points, centers).split_with_sizes(grid.points_per_level)
        candidate = torch.cat([_smallest_rows(level, ATSS_CANDIDATES) for level in from_center])
        overlaps, count = self._overlaps(grid, boxes_xyxy), candidate.sum(dim=0)
        mean = (overlaps * candidate).sum(dim=0) / count
        # of a sample, as in the authors' code
        variance = ((overlaps - mean).square() * candidate).sum(dim=0) / (count - 1).clamp(min=1)
        inside = box_distances(grid.points, boxes_xyxy).amin(dim=-1) > 0
        return Eligible(inside, candidate & (overlaps >= mean + variance.sqrt()))

    def choose(
        self, grid: PointGrid, boxes_xyxy: Float[Tensor, "boxes 4"], eligible: Eligible
    ) -> Int64[Tensor, " points"]:
        """Index of the eligible box with the largest overlap for each point, or -1."""
        return _largest(self._overlaps(grid, boxes_xyxy), eligible.inside & eligible.in_range)

    def _overlaps(self, grid: PointGrid, boxes_xyxy: Tensor) -> Float[Tensor, "points boxes"]:
        half = ATSS_SQUARE / 2 * grid.strides[:, None]
        overlaps: Tensor = box_iou(torch.cat([grid.points - half, grid.points + half], dim=1), boxes_xyxy)
        return overlaps


class Pairs(NamedTuple):
    """Points of an image that lie inside a box, against its boxes.

    Attributes:
        points: x, y in input pixels.
        strides: of each point's level, input pixels.
        logits: class scores before sigmoid.
        boxes_xyxy: the true boxes, input pixels.
        labels: their classes, 0-based.
        inside: which points are inside which boxes.
        ious: of the box that a point predicts, with each true box.
    """

    points: Float[Tensor, "points 2"]
    strides: Float[Tensor, " points"]
    logits: Float[Tensor, "points classes"]
    boxes_xyxy: Float[Tensor, "boxes 4"]
    labels: Int64[Tensor, " boxes"]
    inside: Bool[Tensor, "points boxes"]
    ious: Float[Tensor, "points boxes"]

    def class_cost(
        self, wanted: Float[Tensor, "points boxes"], gamma: float
    ) -> Float[Tensor, "points boxes"]:
        """Cross-entropy of all classes if a point learned a box with this score, times |error| ** gamma."""

        def cost(logits: Tensor, targets: Tensor) -> Tensor:
            entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
            return entropy * (logits.sigmoid() - targets).abs() ** gamma

        others = cost(self.logits, torch.zeros_like(self.logits))
        own = self.logits[:, self.labels]
        return others.sum(dim=1, keepdim=True) - others[:, self.labels] + cost(own, wanted)


def match_aligned(pairs: Pairs, top: int = 13, alpha: float = 1.0, beta: float = 6.0) -> Match:
    """Task alignment (TOOD, arXiv 2108.07755, section 3.2): the points whose score and box fit together best.

    Args:
        pairs: of one image.
        top: number of points of a box.
        alpha: power of the class score in the alignment.
        beta: power of the IoU.
    """
    scores = pairs.logits[:, pairs.labels].sigmoid()
    alignment = torch.where(pairs.inside, scores**alpha * pairs.ious**beta, 0.0)
    matched = _largest(pairs.ious, _smallest_rows(-alignment, top) & pairs.inside)
    won = matched[:, None] == torch.arange(len(pairs.labels), device=matched.device)
    best, best_iou = (alignment * won).amax(dim=0), (pairs.ious * won).amax(dim=0)
    normalized = alignment / best.clamp(min=1e-9) * best_iou
    wanted = (normalized * won).sum(dim=1)
    return Match(matched, wanted, wanted)


def match_simota(pairs: Pairs, top: int = 10) -> Match:
    """SimOTA (YOLOX, arXiv 2107.08430): the points of lowest cost, as many as the sum of the IoUs.

    Points far from the center come last. The wanted score is the IoU, as in the authors' code.
    """
    near = near_center(pairs.points, pairs.boxes_xyxy, CENTER_RADIUS * pairs.strides)
    fit = -pairs.ious.clamp(min=1e-8).log()
    cost = pairs.class_cost(torch.ones_like(pairs.ious), 0.0) + 3 * fit + 1e5 * ~near
    matched = _lowest_cost(pairs, cost, top)
    positive = (matched >= 0).to(cost.dtype)
    return Match(matched, _of_matched(pairs.ious, matched), positive)


def match_soft(pairs: Pairs, top: int = 13) -> Match:
    """Dynamic soft label assignment (RTMDet, arXiv 2212.07784, section 3.3): a soft class cost and center."""
    centers = (pairs.boxes_xyxy[:, :2] + pairs.boxes_xyxy[:, 2:]) / 2
    from_center = torch.cdist(pairs.points, centers) / pairs.strides[:, None]
    fit = -pairs.ious.clamp(min=1e-7).log()
    cost = pairs.class_cost(pairs.ious, 2.0) + 3 * fit + 10 ** (from_center - 3)
    matched = _lowest_cost(pairs, cost, top)
    wanted = _of_matched(pairs.ious, matched)
    return Match(matched, wanted, wanted)


RULES: dict[str, Callable[[Pairs], Match]] = {
    "tal": match_aligned,
    "simota": match_simota,
    "dsla": match_soft,
}


@dataclass(frozen=True)
class DynamicAssigner:
    """Matches boxes with points by the network's predictions at the points.

    Attributes:
        rule: one of `RULES`.
    """

    needs_predictions: ClassVar[bool] = True

    rule: Callable[[Pairs], Match]

    def __call__(
        self, grid: PointGrid, boxes_xyxy: Boxes, labels: Labels, predictions: HeadOutput | None = None
    ) -> Targets:
        """Targets of a batch, as `Assigner` says."""
        assert predictions is not None
        matches = []
        for i, (boxes, image_labels) in enumerate(zip(boxes_xyxy, labels, strict=True)):
            inside = box_distances(grid.points, boxes).amin(dim=-1) > 0
            some = inside.any(dim=1).nonzero().squeeze(1)
            points, strides = grid.points[some], grid.strides[some]
            logits, distances = predictions.logits[i, some].float(), predictions.distances[i, some].float()
            ious = box_iou(distances_to_boxes(points, distances), boxes)
            pairs = Pairs(points, strides, logits, boxes, image_labels, inside[some], ious)
            match = self.rule(pairs) if len(some) else Match.hard(some)
            matches.append(match.spread(some, len(inside)))
        return build_targets(grid.points, matches, boxes_xyxy, labels)


def _lowest_cost(pairs: Pairs, cost: Tensor, top: int) -> Int64[Tensor, " points"]:
    """Each box takes its points of lowest cost, as many as the sum of its `top` IoUs, at least one."""
    ious = torch.where(pairs.inside, pairs.ious, 0.0)
    wanted = ious.topk(min(top, len(ious)), dim=0).values.sum(dim=0).long().clamp(min=1)
    cost = torch.where(pairs.inside, cost, torch.inf)
    return _largest(-cost, _smallest_rows(cost, wanted) & pairs.inside)


def _smallest_rows(
    values: Float[Tensor, "points boxes"], number: int | Int64[Tensor, " boxes"]
) -> Bool[Tensor, "points boxes"]:
    """Marks the `number` smallest values of each column."""
    ranks = values.argsort(dim=0, stable=True).argsort(dim=0)
    return ranks < number


def _largest(
    values: Float[Tensor, "points boxes"], chosen: Bool[Tensor, "points boxes"]
) -> Int64[Tensor, " points"]:
    """The chosen box of the largest value of each point, or -1."""
    if not values.shape[1]:
        return torch.full((len(values),), -1, device=values.device)
    index = torch.where(chosen, values, -torch.inf).argmax(dim=1)
    return torch.where(chosen.any(dim=1), index, -1)


def _of_matched(values: Float[Tensor, "points boxes"], matched: Int64[Tensor, " points"]) -> Tensor:
    """The value of each point's box; 0 for points without a box."""
    own = values.gather(1, matched.clamp(min=0)[:, None]).squeeze(1)
    return torch.where(matched >= 0, own, 0.0)
